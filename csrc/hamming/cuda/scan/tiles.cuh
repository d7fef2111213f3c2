// The scan on tensor cores, whichever they are: a warp holds 16 MT queries as fragments of A, and items come straight from
// packed rows as fragments of B. C starts at minus the limit, so the sign of D says what is found.
//
// A Unit<W> has: kA, the registers of A for 16 queries and a word of each lane; set(), which fills those of row lane / 4
// (h = 0) or lane / 4 + 8 (h = 1) from a query's word; base(), what that word adds to C; multiply(), D of MT tiles for 8
// items; blocks(), how many blocks a multiprocessor should hold at least.
#pragma once

#include "find.cuh"

namespace nhl::cuda {

// Words of an item that a lane holds: those of column lane / 4 at its place in the fragments. A row is read V words at a
// time, so the words of one product are not adjacent; A and B agree on which they are.
template <int W>
struct Fragment {
  static constexpr int R = W <= 2 ? 1 : W / 4, V = R < 4 ? R : 4;
  __device__ static __forceinline__ int word(int lane, int r) {
    return W <= 2 ? lane % 2 : r / V * 4 * V + lane % 4 * V + r % V;
  }
};

// `first`: the first word's place in an item's row; the others are `places` further. Words that the code has not got
// are others of it, which meet zeros in A.
template <int W>
__device__ __forceinline__ void load_words(uint32_t (&b)[Fragment<W>::R], const uint8_t* first, const int (&places)[Fragment<W>::R],
                                           bool wide) {
  using F = Fragment<W>;
#pragma unroll
  for (int r = 0; r < F::R; r += F::V) {
    if (F::V == 4 && wide) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(first + places[r]));
      b[r] = v.x, b[r + F::V / 4] = v.y, b[r + F::V / 2] = v.z, b[r + F::V * 3 / 4] = v.w;
    } else if (F::V == 2 && wide) {
      const uint2 v = __ldg(reinterpret_cast<const uint2*>(first + places[r]));
      b[r] = v.x, b[r + F::V / 2] = v.y;
    } else {
#pragma unroll
      for (int v = 0; v < F::V; ++v) b[r + v] = __ldg(reinterpret_cast<const uint32_t*>(first + places[r + v]));
    }
  }
}

// What a warp has found and not yet written: it waits for memory once for 32 finds, not for each.
struct Queue {
  int64_t* keys;  // 64
  uint8_t* queries;
  int count;

  __device__ __forceinline__ void push(bool mine, unsigned q, int64_t key, int lane) {
    const unsigned all = __ballot_sync(~0u, mine);
    if (mine) {
      const int at = count + __popc(all & ((1u << lane) - 1));
      keys[at] = key;
      queries[at] = static_cast<uint8_t>(q);
    }
    count += __popc(all);
    __syncwarp();
  }

  // The last 32, or all that there are.
  __device__ __forceinline__ void send(const Find& find, int64_t first, int lane) {
    const int from = max(count - 32, 0), at = from + lane;
    if (at < count) {
      const int64_t q = first + queries[at], id = keys[at] & kIdMask;
      if (find.allow == nullptr || find.allow[id])
        find.put(q, static_cast<int64_t>(atomicAdd(find.counts + q, 1ull)), static_cast<int>(keys[at] >> kIdBits), id);
    }
    count = from;
    __syncwarp();
  }
};

// All warps of a block hold the same 16 MT queries and take turns at 8 U items, the next of which are on their way while
// the last are counted. Floor: the tensor cores, or HBM once when the queries are few (MT = 1).
template <template <int> class Unit, int W, int MT, int U>
__global__ void __launch_bounds__(kThreads, Unit<W>::blocks(MT))
    tiles_kernel(Rows queries, Rows items, Layout query_layout, int words, bool wide, Find find) {
  using F = Fragment<W>;
  constexpr int R = F::R;
  extern __shared__ __align__(16) uint32_t query_words[];
  __shared__ int64_t limits[16 * MT];
  __shared__ uint4 found[kThreads / 32 * MT * 32];  // D where something is found; a thread reads only its own
  __shared__ int64_t queued_keys[kThreads / 32 * 64];
  __shared__ uint8_t queued_queries[kThreads / 32 * 64];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * 16 * MT;
  const int num = static_cast<int>(min(static_cast<int64_t>(16 * MT), queries.count - first));
  stage_queries<0>(queries, query_layout, first, first + num, query_words);
  if (threadIdx.x < 16 * MT) limits[threadIdx.x] = threadIdx.x < num ? find.limit_of(first + threadIdx.x) : 0;
  __syncthreads();
  uint32_t a[MT][R][Unit<W>::kA];
  int c[MT][4], reach = 0;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int q = 16 * m + 8 * h + row, own = reach_of(limits[q]);
      reach |= own;
      int base = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int w = F::word(lane, r);
        const uint32_t counting = q >= num || w >= words ? 0 : w == words - 1 ? query_layout.tail : ~0u;
        const uint32_t bits = counting ? query_words[q * words + w] : 0;
        Unit<W>::set(a[m][r], h, bits, counting, lane);
        base += Unit<W>::base(bits, lane);
      }
      for (int step = 1; step < 4; step *= 2) base += __shfl_xor_sync(~0u, base, step);
      // From two lanes that hold the same, so that both stay in registers: else they are made anew for every product.
#pragma unroll
      for (int i = 0; i < 2; ++i) c[m][2 * h + i] = __shfl_sync(~0u, base - own, lane ^ i);
    }
  if (!__any_sync(~0u, reach)) return;
  uint4* const own = found + warp * MT * 32 + lane;
  Queue queue{queued_keys + 64 * warp, queued_queries + 64 * warp, 0};
  const auto place = [&](int r) { return 4 * (F::word(lane, r) < words ? F::word(lane, r) : wide ? r % F::V : 0); };
  const int front = place(0);
  int places[R];
#pragma unroll
  for (int r = 0; r < R; ++r) places[r] = r == 0 ? 0 : place(r) - front;
  const auto full = static_cast<unsigned>(items.count / (8 * U));
  const unsigned groups = full + (items.count % (8 * U) != 0), step = gridDim.x * (kThreads / 32);
  unsigned g = blockIdx.x * (kThreads / 32) + warp;
  const uint8_t* from = items.data + (static_cast<int64_t>(g) * 8 * U + row) * items.stride + front;
  const int64_t eight = 8 * items.stride, far = step * U * eight;
  uint32_t next[U][R];
  const auto load = [&](unsigned group) {
    if (group < full) {
      const uint8_t* at = from;
#pragma unroll
      for (int u = 0; u < U; ++u, at += eight) load_words<W>(next[u], at, places, wide);
    } else {  // the last one: items past the end are the last one, and not found
#pragma unroll 1
      for (int u = 0; u < U; ++u) {
        const int64_t item = min(static_cast<int64_t>(group) * 8 * U + 8 * u + row, items.count - 1);
        uint32_t words_of[R];
        load_words<W>(words_of, items.data + item * items.stride + front, places, wide);
#pragma unroll
        for (int v = 0; v < U; ++v)
#pragma unroll
          for (int r = 0; r < R; ++r) next[v][r] = v == u ? words_of[r] : next[v][r];
      }
    }
    from += far;
  };
  if (g < groups) load(g);
  for (; g < groups; g += step) {
    uint32_t b[U][R];
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int r = 0; r < R; ++r) b[u][r] = next[u][r];
    if (g + step < groups) load(g + step);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      int d[MT][4], any = 0;
      Unit<W>::multiply(d, a, b[u], c, lane);
#pragma unroll
      for (int m = 0; m < MT; ++m) any |= d[m][0] | d[m][1] | d[m][2] | d[m][3];
      if (!__any_sync(~0u, any < 0)) continue;
      uint32_t signs = 0;  // of d, the first one highest
#pragma unroll
      for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) signs = __funnelshift_l(d[m][i], signs, 1);
        own[m * 32] = uint4{static_cast<uint32_t>(d[m][0]), static_cast<uint32_t>(d[m][1]),
                            static_cast<uint32_t>(d[m][2]), static_cast<uint32_t>(d[m][3])};
      }
      const int64_t item = (static_cast<int64_t>(g) * U + u) * 8 + 2 * (lane % 4);
      do {
        bool mine = signs != 0;
        unsigned q = 0;
        int64_t key = 0;
        if (mine) {
          const unsigned at = __clz(signs) - (32 - 4 * MT);
          signs ^= 1u << (4 * MT - 1 - at);
          q = at / 4 * 16 + at % 4 / 2 * 8 + row;
          const int64_t id = item + at % 2, limit = limits[q];
          const int distance = reinterpret_cast<const int*>(own + at / 4 * 32)[at % 4] + reach_of(limit);
          key = static_cast<int64_t>(distance) << kIdBits | id;
          mine = id < items.count && key < limit;
        }
        queue.push(mine, q, key, lane);
        if (queue.count >= 32) queue.send(find, first, lane);
      } while (__any_sync(~0u, signs != 0));
    }
  }
  queue.send(find, first, lane);
}

template <template <int> class Unit, int W, int MT, int U>
void launch_tiles(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  const Layout layout = layout_of(queries, bits);
  const bool wide =
      (reinterpret_cast<uint64_t>(items.data) | items.stride | 4 * layout.words) % (4 * Fragment<W>::V) == 0;
  // Several turns of blocks, so that the last one is short; a turn's blocks walk the items side by side, through L2.
  const int64_t tiles = divide_up(queries.count, 16 * MT), groups = divide_up(items.count, 8 * U * (kThreads / 32));
  const int shared_bytes = 16 * MT * 4 * layout.words;
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, tiles_kernel<Unit, W, MT, U>, kThreads, shared_bytes));
  const int64_t turn = std::max(resident, 1) * context.multiprocessors;
  const int64_t dense = tiles >= turn / 2 ? divide_up(4 * turn, tiles) : std::max<int64_t>(1, turn / tiles);
  const int64_t blocks = std::min(groups, dense * (find.sparse ? sparse_blocks(items.count) : 1));
  tiles_kernel<Unit, W, MT, U><<<grid_of(blocks, tiles), kThreads, shared_bytes, context.stream>>>(
      queries, items, layout, layout.words, wide, find);
  check(cudaGetLastError());
}

}  // namespace nhl::cuda
