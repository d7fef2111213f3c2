// The scan on the binary tensor cores. With A = [q, not q] and B = [not x, x], the ones of A and B are the Hamming
// distance; B comes straight from packed rows. C starts at minus the limit, so the sign says what is found.
#include "mma.cuh"
#include "scan.cuh"

namespace nhl::cuda {
namespace {

// Words of an item that a lane holds: those of column lane / 4 at its place in the fragments. A row is read V words at a
// time, so the words of one product are not adjacent; A and B agree on which they are.
template <int W>
struct Fragment {
  static constexpr int R = W <= 2 ? 1 : W / 4, V = R < 4 ? R : 4;
  __device__ static __forceinline__ int word(int lane, int r) {
    return W <= 2 ? lane % 2 : r / V * 4 * V + lane % 4 * V + r % V;
  }
};

template <int W>
__device__ __forceinline__ void load_words(uint32_t (&b)[Fragment<W>::R], const uint8_t* row, int lane, int words,
                                           bool wide) {
  using F = Fragment<W>;
#pragma unroll
  for (int r = 0; r < F::R; r += F::V) {
    const int at = F::word(lane, r);
    const uint32_t* const from = reinterpret_cast<const uint32_t*>(row) + at;
    if (F::V == 4 && wide) {
      const uint4 v = at < words ? __ldg(reinterpret_cast<const uint4*>(from)) : uint4{0, 0, 0, 0};
      b[r] = v.x, b[r + F::V / 4] = v.y, b[r + F::V / 2] = v.z, b[r + F::V * 3 / 4] = v.w;
    } else if (F::V == 2 && wide) {
      const uint2 v = at < words ? __ldg(reinterpret_cast<const uint2*>(from)) : uint2{0, 0};
      b[r] = v.x, b[r + F::V / 2] = v.y;
    } else {
#pragma unroll
      for (int v = 0; v < F::V; ++v) b[r + v] = at + v < words ? __ldg(from + v) : 0;
    }
  }
}

// All warps of a block hold the same 16 MT queries and take turns at 8 U items, the next of which are on their way while
// the last are counted. Floor: the tensor cores, or HBM once when the queries are few (MT = 1).
template <int W, int MT, int U>
__global__ void __launch_bounds__(kThreads, MT == 1 ? 3 : 2)
    mma_kernel(Rows queries, Rows items, Layout query_layout, int words, bool wide, Find find) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 1000
  using F = Fragment<W>;
  constexpr int R = F::R;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * 16 * MT;
  uint32_t a[MT][R][4];
  int c[MT][4], reach = 0;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t q = first + 16 * m + 8 * h + row;
      const int own = q < queries.count ? reach_of(find.limit_of(q)) : 0;
      c[m][2 * h] = c[m][2 * h + 1] = -own;
      reach |= own;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int w = F::word(lane, r);
        uint32_t bits = 0, counting = 0;
        if (q < queries.count && w < words) {
          bits = Code<0>{queries.data + q * queries.stride, query_layout}(w);
          counting = w == words - 1 ? query_layout.tail : ~0u;
        }
        a[m][r][h] = W <= 2 && lane % 4 >= 2 ? ~bits & counting : bits;
        a[m][r][2 + h] = ~bits & counting;
      }
    }
  if (!__any_sync(~0u, reach)) return;
  const uint32_t flip = lane % 4 < 2 ? ~0u : 0;
  const int64_t groups = (items.count + 8 * U - 1) / (8 * U), step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  int64_t g = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + warp;
  uint32_t next[U][R];
  const auto load = [&](int64_t group) {
    const int64_t item = group * 8 * U + row;
    const uint8_t* const at = items.data + item * items.stride;
    if ((group + 1) * 8 * U <= items.count) {
#pragma unroll
      for (int u = 0; u < U; ++u) load_words<W>(next[u], at + 8 * u * items.stride, lane, words, wide);
    } else {
#pragma unroll
      for (int u = 0; u < U; ++u)
        load_words<W>(next[u], at + 8 * u * items.stride, lane, item + 8 * u < items.count ? words : 0, wide);
    }
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
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        if constexpr (W <= 2) {
          const uint32_t q[2] = {a[m][0][0], a[m][0][1]};
          mma_and_128(d[m], q, b[u][0] ^ flip, c[m]);
        } else {
          mma_and_256(d[m], a[m][0], ~b[u][0], b[u][0], c[m]);
#pragma unroll
          for (int r = 1; r < R; ++r) mma_and_256(d[m], a[m][r], ~b[u][r], b[u][r], d[m]);
        }
        any |= d[m][0] | d[m][1] | d[m][2] | d[m][3];
      }
      if (__any_sync(~0u, any < 0)) {
        const int64_t item = (g * U + u) * 8 + 2 * (lane % 4);
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (d[m][i] < 0) {
              const int64_t q = first + 16 * m + 8 * (i / 2) + row, id = item + i % 2;
              const int distance = d[m][i] - c[m][i];
              if (id < items.count && (static_cast<int64_t>(distance) << kIdBits | id) < find.limit_of(q) &&
                  (find.allow == nullptr || find.allow[id]))
                find.put(q, static_cast<int64_t>(atomicAdd(find.counts + q, 1ull)), distance, id);
            }
      }
    }
  }
#else
  __trap();  // sm_100 has no such product; scan() does not come here
#endif
}

template <int W, int MT, int U>
void launch(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  using F = Fragment<W>;
  const Layout query_layout = layout_of(queries, bits);
  const bool wide = (reinterpret_cast<uint64_t>(items.data) | items.stride | 4 * query_layout.words) % (4 * F::V) == 0;
  // Several turns of blocks, so that the last one is short; a turn's blocks walk the items side by side, through L2.
  const int64_t tiles = divide_up(queries.count, 16 * MT), groups = divide_up(items.count, 8 * U * (kThreads / 32));
  const int64_t turn = 2 * context.multiprocessors * (MT == 1 ? 2 : 1);
  const int64_t blocks = std::min(groups, tiles >= turn / 2 ? divide_up(4 * turn, tiles) : std::max<int64_t>(1, turn / tiles));
  mma_kernel<W, MT, U><<<grid_of(blocks, tiles), kThreads, 0, context.stream>>>(
      queries, items, query_layout, query_layout.words, wide, find);
  check(cudaGetLastError());
}

template <int W>
void launch_for(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  constexpr int MT = W <= 8 ? 4 : W <= 16 ? 2 : 1, U = W <= 4 ? 4 : W <= 8 ? 2 : 1;
  constexpr int few_U = W <= 4 ? 8 : W <= 8 ? 4 : W <= 16 ? 2 : 1;
  if (queries.count <= 16) return launch<W, 1, few_U>(queries, items, bits, find, context);
  launch<W, MT, U>(queries, items, bits, find, context);
}

}  // namespace

void scan_mma(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context) {
  const int64_t words = divide_up(bits, 32);
  const auto run = words <= 2    ? launch_for<2>
                   : words <= 4  ? launch_for<4>
                   : words <= 8  ? launch_for<8>
                   : words <= 16 ? launch_for<16>
                                 : launch_for<32>;
  run(queries, items, bits, find, context);
}

}  // namespace nhl::cuda
