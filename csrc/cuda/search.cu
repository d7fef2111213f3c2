// Top-k by counting in two scans, and radius search; see engine.h for what comes out.
//
// Scan one counts distances, by query and chunk of items. From the counts follow the distance T of the k-th
// neighbour and, of the items at T, how many each chunk gives: the first ones by row. Scan two collects. Only the
// chunk in which the last neighbour at T lies has to be walked in order.
#include "device.cuh"

namespace nhl::cuda {
namespace {

constexpr int kTile = 8;                // queries a block holds
constexpr int64_t kMostChunk = 16384;   // items a block scans: bounds the walk in order

// What a query takes: items below `limit`; at the limit those of chunks before `chunk`, and `take` in that chunk.
struct Selection {
  int limit, chunk;
  int64_t take;
};

struct Keys {
  int64_t per_query;  // key = (query * per_query + distance) << shift | id
  int shift;
};

// Floor: popc, 16 a clock an SM, with one shared-memory increment a pair close behind.
template <int W, int I>
__global__ void __launch_bounds__(kThreads)
    count_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int64_t chunk, int bins,
                 const uint8_t* __restrict__ allow, uint32_t* __restrict__ by_chunk,
                 unsigned long long* __restrict__ totals) {
  extern __shared__ __align__(16) uint32_t shared[];
  uint32_t* const query_words = shared;
  uint32_t* const counters = shared + kTile * W;  // [kTile + 1][bins], the last ones for items that don't count
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile;
  const int num = static_cast<int>(min(static_cast<int64_t>(kTile), queries.count - first));
  stage_queries<W>(queries, query_layout, first, first + num, query_words);
  for (int b = threadIdx.x; b < (kTile + 1) * bins; b += kThreads) counters[b] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * chunk, end = min(items.count, begin + chunk);
  for (int64_t at = begin + threadIdx.x; at < end; at += I * kThreads) {
    Code<W> x[I];
    int nowhere[I];  // 0, or what leads from a query's counters to the unread ones
#pragma unroll
    for (int j = 0; j < I; ++j) {
      const int64_t i = min(at + j * kThreads, end - 1);
      x[j] = load_row<W>(items.data + i * items.stride, layout);
      const bool counts = at + j * kThreads < end && (allow == nullptr || allow[i]);
      nowhere[j] = counts ? 0 : kTile;
    }
    for (int q = 0; q < num; ++q) {
      const auto query = staged<W>(query_words, q, query_layout);
#pragma unroll
      for (int j = 0; j < I; ++j) atomicAdd(counters + max(q, nowhere[j]) * bins + distance<W>(x[j], query), 1u);
    }
  }
  __syncthreads();
  for (int q = 0; q < num; ++q)
    for (int b = threadIdx.x; b < bins; b += kThreads) {
      const uint32_t count = counters[q * bins + b];
      by_chunk[((first + q) * gridDim.x + blockIdx.x) * bins + b] = count;
      if (count) atomicAdd(totals + (first + q) * bins + b, static_cast<unsigned long long>(count));
    }
}

// One warp a query. Floor: latency (a few kilobytes a query).
__global__ void __launch_bounds__(32)
    select_kernel(int64_t k, int bins, int64_t chunks, const uint32_t* __restrict__ by_chunk,
                  const unsigned long long* __restrict__ totals, Selection* __restrict__ selections) {
  const int lane = threadIdx.x;
  const int64_t q = blockIdx.x;
  int64_t before = 0;  // items below the bins looked at
  int limit = bins;
  for (int base = 0; base < bins; base += 32) {
    const int64_t own = base + lane < bins ? static_cast<int64_t>(totals[q * bins + base + lane]) : 0;
    int64_t up_to = own;
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(~0u, up_to, step);
      if (lane >= step) up_to += other;
    }
    const unsigned reached = __ballot_sync(~0u, before + up_to >= k);
    if (reached) {
      const int at = __ffs(reached) - 1;
      limit = base + at;
      before += __shfl_sync(~0u, up_to - own, at);
      break;
    }
    before += __shfl_sync(~0u, up_to, 31);
  }
  Selection result{limit, 0, 0};
  if (limit < bins) {
    int64_t left = k - before;  // neighbours at the limit still to be given out, at least 1
    for (int64_t base = 0; base < chunks; base += 32) {
      const int64_t own = base + lane < chunks ? by_chunk[(q * chunks + base + lane) * bins + limit] : 0;
      int64_t up_to = own;
      for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(~0u, up_to, step);
        if (lane >= step) up_to += other;
      }
      const unsigned reached = __ballot_sync(~0u, up_to >= left);
      if (reached) {
        const int at = __ffs(reached) - 1;
        result.chunk = static_cast<int>(base) + at;
        result.take = left - __shfl_sync(~0u, up_to - own, at);
        break;
      }
      left -= __shfl_sync(~0u, up_to, 31);
    }
  }
  if (lane == 0) selections[q] = result;
}

// Everything a query takes but its walk in order. `selections` null: all items below `limit`. `out` null: counts
// only. Floor: popc, 16 a clock an SM, or HBM when the queries are few.
template <int W, int I>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int64_t chunk,
                   const uint8_t* __restrict__ allow, const Selection* __restrict__ selections, int limit, Keys keys,
                   const int64_t* __restrict__ offsets, int64_t k, unsigned long long* __restrict__ cursors,
                   int64_t* __restrict__ out) {
  extern __shared__ __align__(16) uint32_t query_words[];
  __shared__ int limits[kTile];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile;
  const int num = static_cast<int>(min(static_cast<int64_t>(kTile), queries.count - first));
  stage_queries<W>(queries, query_layout, first, first + num, query_words);
  if (threadIdx.x < num) {
    // At the limit itself, a chunk before the last one taken gives all it has: one more distance.
    limits[threadIdx.x] = limit;
    if (selections != nullptr) {
      const Selection s = selections[first + threadIdx.x];
      limits[threadIdx.x] = s.limit + (static_cast<int>(blockIdx.x) < s.chunk);
    }
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t begin = blockIdx.x * chunk, end = min(items.count, begin + chunk);
  for (int64_t at = begin; at < end; at += I * kThreads) {
    Code<W> x[I];
    int out_of_reach[I];  // added to the distance of items that don't count
#pragma unroll
    for (int j = 0; j < I; ++j) {
      const int64_t i = at + j * kThreads + threadIdx.x, inside = min(i, end - 1);
      x[j] = load_row<W>(items.data + inside * items.stride, layout);
      out_of_reach[j] = i < end && (allow == nullptr || allow[inside]) ? 0 : 1 << 20;
    }
    for (int q = 0; q < num; ++q) {
      const auto query = staged<W>(query_words, q, query_layout);
#pragma unroll
      for (int j = 0; j < I; ++j) {
        const int d = distance<W>(x[j], query) + out_of_reach[j];
        const unsigned taken = __ballot_sync(~0u, d < limits[q]);
        if (taken == 0) continue;
        unsigned long long start = 0;
        if (lane == 0) start = atomicAdd(cursors + first + q, static_cast<unsigned long long>(__popc(taken)));
        start = __shfl_sync(~0u, start, 0);
        if (out != nullptr && d < limits[q]) {
          const int64_t slot = (offsets != nullptr ? offsets[first + q] : (first + q) * k) + start +
                               __popc(taken & ((1u << lane) - 1));
          out[slot] = ((first + q) * keys.per_query + d) << keys.shift | (at + j * kThreads + threadIdx.x);
        }
      }
    }
  }
}

// The walk in order: the first `take` items at the limit in the selection's chunk, one block a query. They end the
// query's row. Floor: latency (at most kMostChunk / kThreads turns).
template <int W>
__global__ void __launch_bounds__(kThreads)
    walk_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int64_t chunk,
                const uint8_t* __restrict__ allow, const Selection* __restrict__ selections, int64_t k,
                int64_t* __restrict__ out) {
  constexpr int kWarps = kThreads / 32;
  __shared__ __align__(16) uint32_t query_words[W];
  __shared__ int in_warp[2][kWarps];
  const int64_t q = blockIdx.x;
  const Selection s = selections[q];
  if (s.take == 0) return;
  stage_queries<W>(queries, query_layout, q, q + 1, query_words);
  __syncthreads();
  const auto query = staged<W>(query_words, 0, query_layout);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t begin = s.chunk * chunk, end = min(items.count, begin + chunk);
  int64_t taken = 0;
  for (int64_t at = begin; at < end && taken < s.take; at += kThreads) {
    const int64_t i = at + threadIdx.x, inside = min(i, end - 1);
    const Code<W> x = load_row<W>(items.data + inside * items.stride, layout);
    const bool mine = i < end && (allow == nullptr || allow[inside]) && distance<W>(x, query) == s.limit;
    const unsigned same = __ballot_sync(~0u, mine);
    int* const counts = in_warp[(at - begin) / kThreads % 2];  // two sets: one barrier a turn
    if (lane == 0) counts[warp] = __popc(same);
    __syncthreads();
    int64_t slot = taken + __popc(same & ((1u << lane) - 1));
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) slot += counts[w];
      taken += counts[w];
    }
    if (mine && slot < s.take)
      out[(q + 1) * k - s.take + slot] = static_cast<int64_t>(s.limit) << kIdBits | i;
  }
}

// Floor: HBM.
__global__ void fill_kernel(int64_t* out, int64_t count, int64_t value) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) out[i] = value;
}

// One block. Floor: latency (a few numbers a query).
__global__ void __launch_bounds__(1024)
    running_sum_kernel(const int64_t* __restrict__ in, int64_t count, int64_t* __restrict__ out) {
  __shared__ int64_t in_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t before = 0;
  for (int64_t base = 0; base < count; base += 1024) {
    const int64_t i = base + threadIdx.x;
    int64_t sum = i < count ? in[i] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) in_warp[warp] = sum;
    __syncthreads();
    int64_t all = 0;
    for (int w = 0; w < 32; ++w) {
      if (w < warp) sum += in_warp[w];
      all += in_warp[w];
    }
    if (i < count) out[i] = before + sum;
    before += all;
    __syncthreads();
  }
}

// Floor: HBM (8 bytes in, 12 out, a neighbour).
__global__ void split_kernel(const int64_t* __restrict__ keys, int64_t count, int id_bits, int64_t bins, int64_t base,
                             int32_t* __restrict__ distances, int64_t* __restrict__ ids) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t key = keys[i];
    const bool none = key == kNoNeighbour;
    distances[i] = none ? -1 : static_cast<int32_t>((key >> id_bits) % bins);
    ids[i] = none ? -1 : (key & ((int64_t{1} << id_bits) - 1)) + base;
  }
}

Rows slice(const Rows& rows, int64_t first, int64_t count) {
  return {rows.data + first * rows.stride, count, rows.stride};
}

void scan_within(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, const uint8_t* allow,
                 const int64_t* offsets, int id_bits, unsigned long long* cursors, int64_t* out,
                 const Context& context) {
  if (queries.count == 0 || items.count == 0) return;
  const Layout query_layout = layout_of(queries, bits), layout = layout_of(items, bits);
  const int64_t tiles = divide_up(queries.count, kTile);
  const int64_t chunk = chunk_items(items.count, tiles, context.multiprocessors, 1 << 20);
  const int limit = static_cast<int>(std::min(radius, bits)) + 1;
  with_words(layout.words, [&](auto words) {
    constexpr int W = decltype(words)::value, I = decltype(words)::items;
    const dim3 grid = grid_of(divide_up(items.count, chunk), tiles);
    collect_kernel<W, I><<<grid, kThreads, 4 * kTile * W, context.stream>>>(
        queries, items, query_layout, layout, chunk, allow, nullptr, limit, Keys{bits + 1, id_bits}, offsets, 0,
        cursors, out);
    check(cudaGetLastError());
  });
}

}  // namespace

void nearest(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow, int64_t* out,
             const Context& context) {
  if (queries.count == 0 || k == 0) return;
  fill_kernel<<<4 * context.multiprocessors, kThreads, 0, context.stream>>>(out, queries.count * k, kNoNeighbour);
  check(cudaGetLastError());
  if (items.count == 0) return;
  const int bins = static_cast<int>(bits) + 1;
  const int64_t chunk = chunk_items(items.count, divide_up(queries.count, kTile), context.multiprocessors, kMostChunk);
  const int64_t chunks = divide_up(items.count, chunk);
  // Counts by chunk take at most 256 MB at a time.
  const int64_t batch = std::clamp<int64_t>((int64_t{256} << 20) / (4 * bins * chunks) / kTile * kTile, kTile,
                                            int64_t{65535} * kTile);
  const int64_t most = std::min(batch, queries.count);
  auto* const by_chunk = static_cast<uint32_t*>(context.zeros(4 * bins * chunks * most));
  auto* const totals = static_cast<unsigned long long*>(context.zeros(8 * bins * queries.count));
  auto* const cursors = static_cast<unsigned long long*>(context.zeros(8 * queries.count));
  auto* const selections = static_cast<Selection*>(context.zeros(sizeof(Selection) * queries.count));
  for (int64_t first = 0; first < queries.count; first += batch) {
    const Rows some = slice(queries, first, std::min(batch, queries.count - first));
    const Layout query_layout = layout_of(some, bits), layout = layout_of(items, bits);
    const int64_t tiles = divide_up(some.count, kTile);
    with_words(layout.words, [&](auto words) {
      constexpr int W = decltype(words)::value, I = decltype(words)::items;
      const dim3 grid = grid_of(chunks, tiles);
      const int query_bytes = 4 * kTile * W, counter_bytes = 4 * (kTile + 1) * bins;
      count_kernel<W, I><<<grid, kThreads, query_bytes + counter_bytes, context.stream>>>(
          some, items, query_layout, layout, chunk, bins, allow, by_chunk, totals + first * bins);
      check(cudaGetLastError());
      select_kernel<<<static_cast<unsigned>(some.count), 32, 0, context.stream>>>(k, bins, chunks, by_chunk,
                                                                                  totals + first * bins,
                                                                                  selections + first);
      check(cudaGetLastError());
      collect_kernel<W, I><<<grid, kThreads, query_bytes, context.stream>>>(
          some, items, query_layout, layout, chunk, allow, selections + first, 0, Keys{0, kIdBits}, nullptr, k,
          cursors + first, out + first * k);
      check(cudaGetLastError());
      walk_kernel<W><<<static_cast<unsigned>(some.count), kThreads, 0, context.stream>>>(
          some, items, query_layout, layout, chunk, allow, selections + first, k, out + first * k);
      check(cudaGetLastError());
    });
  }
}

void count_within(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, const uint8_t* allow,
                  int64_t* counts, const Context& context) {
  scan_within(queries, items, bits, radius, allow, nullptr, 0, reinterpret_cast<unsigned long long*>(counts), nullptr,
              context);
}

void collect_within(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, const uint8_t* allow,
                    const int64_t* offsets, int id_bits, int64_t* out, const Context& context) {
  auto* const cursors = static_cast<unsigned long long*>(context.zeros(8 * queries.count));
  scan_within(queries, items, bits, radius, allow, offsets, id_bits, cursors, out, context);
}

void running_sum(const int64_t* in, int64_t count, int64_t* out, const Context& context) {
  running_sum_kernel<<<1, 1024, 0, context.stream>>>(in, count, out);
  check(cudaGetLastError());
}

void split_keys(const int64_t* keys, int64_t count, int id_bits, int64_t bins, int64_t base, int32_t* distances,
                int64_t* ids, const Context& context) {
  if (count == 0) return;
  split_kernel<<<4 * context.multiprocessors, kThreads, 0, context.stream>>>(keys, count, id_bits, bins, base,
                                                                            distances, ids);
  check(cudaGetLastError());
}

}  // namespace nhl::cuda
