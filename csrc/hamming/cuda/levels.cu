// Counting for top-k; see levels.cuh. The last block of a tile of queries draws the conclusions: a warp a query.
#include <cmath>

#include "levels.cuh"

namespace nhl::cuda {
namespace {

constexpr int kTile = 8;  // queries a block holds: one a warp at the end
constexpr int64_t kLeastChunks = 32;
static_assert(kTile * 32 == kThreads);

// Whether this block is the last of its tile of queries to come here; what the others wrote is then seen.
__device__ __forceinline__ bool last_of_tile(unsigned* done) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(done + blockIdx.y, 1u) == gridDim.x - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// A limit for the whole from what a sample has at each distance. By a warp.
__device__ __forceinline__ int64_t limit_from(const Sample& sample, int bins, int64_t items, const unsigned long long* totals) {
  const auto number = [&](int64_t d) { return static_cast<int64_t>(__ldcg(totals + d)); };
  const Reached r = reached(bins, sample.wanted, number);
  if (r.at == bins) return static_cast<int64_t>(bins) << kIdBits;
  const int64_t own = number(r.at);
  if (r.before + own <= sample.most) return (r.at + 1) << kIdBits;
  // Too many at this distance: the first of them by row, as if they lay evenly, and well between the two bounds.
  const double middle = sqrt(static_cast<double>(sample.wanted) * static_cast<double>(sample.most));
  const double part = (max(middle, r.before + 1.0) - static_cast<double>(r.before)) / static_cast<double>(own);
  return r.at << kIdBits | max(int64_t{1}, static_cast<int64_t>(part * static_cast<double>(items)));
}

// Items at each distance, and from them a sample's limits (sample.limits set) or the k-th neighbours' levels. Floor:
// popc, 16 a clock an SM, with one shared-memory increment a pair close behind.
template <int W, int I>
__global__ void __launch_bounds__(kThreads, W >= 32 ? 3 : 4)
    count_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int64_t chunk, int bins,
                 const uint8_t* __restrict__ allow, Doubt doubt, unsigned long long* totals, unsigned* done, int64_t k,
                 Level* __restrict__ levels, Sample sample, int64_t whole) {
  extern __shared__ __align__(16) uint32_t shared[];
  __shared__ bool wanted[kTile];
  uint32_t* const query_words = shared;
  uint32_t* const counters = shared + kTile * W;  // [kTile + 1][bins], the last ones for items that don't count
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile;
  const int num = static_cast<int>(min(static_cast<int64_t>(kTile), queries.count - first));
  if (threadIdx.x < kTile) wanted[threadIdx.x] = threadIdx.x < num && doubt(first + threadIdx.x);
  __syncthreads();
  bool any = false;
  for (int q = 0; q < num; ++q) any |= wanted[q];
  if (!any) return;
  stage_queries<W>(queries, query_layout, first, first + num, query_words);
  for (int b = threadIdx.x; b < (kTile + 1) * bins; b += kThreads) counters[b] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * chunk, end = min(items.count, begin + chunk);
  for (int64_t at = begin + threadIdx.x; at < end; at += I * kThreads) {
    Code<W> x[I];
    int nowhere[I];  // 0, or what leads from a query's counters to the unread ones
#pragma unroll
    for (int j = 0; j < I; ++j) {
      const int64_t i = sampled(min(at + j * kThreads, end - 1), sample.stride, whole);
      x[j] = load_row<W>(items.data + i * items.stride, layout);
      const bool counts = at + j * kThreads < end && (allow == nullptr || allow[i]);
      nowhere[j] = counts ? 0 : kTile;
    }
    for (int q = 0; q < num; ++q) {
      if (!wanted[q]) continue;
      const auto query = staged<W>(query_words, q, query_layout);
#pragma unroll
      for (int j = 0; j < I; ++j) atomicAdd(counters + max(q, nowhere[j]) * bins + distance<W>(x[j], query), 1u);
    }
  }
  __syncthreads();
  for (int q = 0; q < num; ++q)
    for (int b = threadIdx.x; b < bins; b += kThreads) {
      const uint32_t count = counters[q * bins + b];
      if (count) atomicAdd(totals + (first + q) * bins + b, static_cast<unsigned long long>(count));
    }
  if (!last_of_tile(done)) return;
  const int own = threadIdx.x / 32;
  if (own >= num || !wanted[own]) return;
  const int64_t q = first + own;
  const unsigned long long* const mine = totals + q * bins;
  if (sample.limits != nullptr) {
    const int64_t limit = limit_from(sample, bins, whole, mine);
    if (threadIdx.x % 32 == 0) sample.limits[q] = limit;
  } else {
    const Reached r = reached(bins, k, [&](int64_t d) { return static_cast<int64_t>(__ldcg(mine + d)); });
    if (threadIdx.x % 32 == 0) levels[q] = {k - r.before, static_cast<int>(r.at)};
  }
}

// Of the items at a query's level, how many each chunk has, and which are taken. Floor: popc, 16 a clock an SM.
template <int W, int I>
__global__ void __launch_bounds__(kThreads, W >= 32 ? 3 : 4)
    ties_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int bins, const uint8_t* __restrict__ allow,
                Doubt doubt, uint32_t* in_chunks, unsigned* done, Levels out) {
  extern __shared__ __align__(16) uint32_t query_words[];
  __shared__ int levels[kTile];  // -1: a query that is not asked for
  __shared__ unsigned counts[kTile];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile, chunks = gridDim.x;
  const int num = static_cast<int>(min(static_cast<int64_t>(kTile), queries.count - first));
  if (threadIdx.x < kTile) {
    levels[threadIdx.x] = threadIdx.x < num && doubt(first + threadIdx.x) ? out.levels[first + threadIdx.x].distance : -1;
    counts[threadIdx.x] = 0;
  }
  __syncthreads();
  int most = -1;
  for (int q = 0; q < num; ++q) most = max(most, levels[q]);
  if (most < 0) return;
  stage_queries<W>(queries, query_layout, first, first + num, query_words);
  __syncthreads();
  const int64_t begin = blockIdx.x * out.chunk, end = min(items.count, begin + out.chunk);
  for (int64_t at = begin; at < end; at += I * kThreads) {
    Code<W> x[I];
    int out_of_reach[I];
    load_items<W>(x, out_of_reach, items, layout, at, end, allow);
    for (int q = 0; q < num; ++q) {
      if (levels[q] < 0) continue;
      const auto query = staged<W>(query_words, q, query_layout);
#pragma unroll
      for (int j = 0; j < I; ++j) {
        const unsigned same = __ballot_sync(~0u, distance<W>(x[j], query) + out_of_reach[j] == levels[q]);
        if (same && threadIdx.x % 32 == 0) atomicAdd(counts + q, static_cast<unsigned>(__popc(same)));
      }
    }
  }
  __syncthreads();
  if (threadIdx.x < num) in_chunks[(first + threadIdx.x) * chunks + blockIdx.x] = counts[threadIdx.x];
  if (!last_of_tile(done)) return;
  const int own = threadIdx.x / 32;
  if (own >= num || levels[own] < 0) return;
  const int64_t q = first + own;
  Walk walk{0, 0};
  int64_t limit = static_cast<int64_t>(levels[own]) << kIdBits;
  if (levels[own] < bins) {
    const int64_t left = out.levels[q].left;
    const uint32_t* const mine = in_chunks + q * chunks;
    const Reached r = reached(chunks, left, [&](int64_t c) { return static_cast<int64_t>(__ldcg(mine + c)); });
    walk = {left - r.before, static_cast<int>(r.at)};
    limit |= r.at * out.chunk;
  }
  if (threadIdx.x % 32 == 0) {
    out.walks[q] = walk;
    out.limits[q] = limit;
  }
}

void count(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow, const Doubt& doubt,
           Level* levels, const Sample& sample, int64_t whole, const Context& context) {
  const int bins = static_cast<int>(bits) + 1;
  const Layout query_layout = layout_of(queries, bits), layout = layout_of(items, bits);
  const int64_t tiles = divide_up(queries.count, kTile);
  const int64_t busy = doubt.counts != nullptr ? divide_up(tiles, sparse_blocks(items.count)) : tiles;
  const int64_t chunk = chunk_items(items.count, busy, context.multiprocessors, int64_t{1} << 31);
  auto* const totals = static_cast<unsigned long long*>(context.zeros(8 * bins * queries.count + 4 * tiles));
  auto* const done = reinterpret_cast<unsigned*>(totals + bins * queries.count);
  with_words(layout.words, [&](auto words) {
    constexpr int W = decltype(words)::value, I = decltype(words)::items;
    const dim3 grid = grid_of(divide_up(items.count, chunk), tiles);
    const int bytes = 4 * (kTile * W + (kTile + 1) * bins);
    count_kernel<W, I><<<grid, kThreads, bytes, context.stream>>>(queries, items, query_layout, layout, chunk, bins, allow,
                                                                  doubt, totals, done, k, levels, sample, whole);
    check(cudaGetLastError());
  });
}

}  // namespace

void sample_limits(const Rows& queries, const Rows& items, int64_t bits, const uint8_t* allow, const Sample& sample,
                   const Context& context) {
  const Rows some{items.data, divide_up(items.count, sample.stride), items.stride};  // as many as it has
  count(queries, some, bits, 0, allow, {}, nullptr, sample, items.count, context);
}

Levels find_levels(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow,
                   const Doubt& doubt, const Context& context) {
  const int bins = static_cast<int>(bits) + 1;
  const int64_t tiles = divide_up(queries.count, kTile);
  Levels out{};
  const int64_t busy = doubt.counts != nullptr ? divide_up(tiles, sparse_blocks(items.count)) : tiles;
  out.chunk = std::min(chunk_items(items.count, busy, context.multiprocessors, int64_t{1} << 31),
                       divide_up(divide_up(items.count, kLeastChunks), kThreads) * kThreads);
  const int64_t chunks = divide_up(items.count, out.chunk);
  // The largest alignment first.
  auto* const memory = static_cast<int64_t*>(context.zeros((8 + sizeof(Level) + sizeof(Walk)) * queries.count + 4 * tiles));
  out.limits = memory;
  out.levels = reinterpret_cast<Level*>(out.limits + queries.count);
  out.walks = reinterpret_cast<Walk*>(out.levels + queries.count);
  auto* const done = reinterpret_cast<unsigned*>(out.walks + queries.count);
  auto* const in_chunks = static_cast<uint32_t*>(context.scratch(4 * chunks * queries.count));
  count(queries, items, bits, k, allow, doubt, out.levels, {1, 0, 0, nullptr}, items.count, context);
  const Layout query_layout = layout_of(queries, bits), layout = layout_of(items, bits);
  with_words(layout.words, [&](auto words) {
    constexpr int W = decltype(words)::value, I = decltype(words)::items;
    ties_kernel<W, I><<<grid_of(chunks, tiles), kThreads, 4 * kTile * W, context.stream>>>(
        queries, items, query_layout, layout, bins, allow, doubt, in_chunks, done, out);
    check(cudaGetLastError());
  });
  return out;
}

}  // namespace nhl::cuda
