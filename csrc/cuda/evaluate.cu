// Rank sums of the relevant items; the method is that of ../cpu/evaluate.cpp.
//
// One warp ranks one query at one length: 32 items a turn in row order, their turns within a distance by matching
// lanes, the counters of all distances in shared memory.
#include "device.cuh"

namespace nhl::cuda {
namespace {

constexpr int kWarps = 4;  // a block
// 1 / (relevant items) as two integers in units of 2^-46 and 2^-92: their sums do not depend on the order.
constexpr int kFixedBits = 46;

// Floor: latency of the warp-wide match (one turn of 32 items), then popc.
template <int W, class Relevant>
__global__ void __launch_bounds__(kWarps * 32)
    rank_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int bins, int64_t cutoff,
                Relevant relevant, const int64_t* __restrict__ counts, double* __restrict__ precision,
                int64_t* __restrict__ retrieved, uint32_t* __restrict__ hits, unsigned long long* __restrict__ weights) {
  extern __shared__ __align__(16) uint32_t shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps, q = first + warp;
  uint32_t* const query_words = shared;
  uint32_t* const next_item = shared + kWarps * W + warp * bins * 2;
  uint32_t* const next_relevant = next_item + bins;
  stage_queries<W>(queries, query_layout, first, min(queries.count, first + kWarps), query_words);
  __syncthreads();
  if (q >= queries.count) return;

  uint32_t items_before = 0, relevant_before = 0;
  for (int base = 0; base < bins; base += 32) {
    const bool inside = base + lane < bins;
    const int64_t* const pair = counts + (q * bins + min(base + lane, bins - 1)) * 2;
    const uint32_t own_relevant = inside ? static_cast<uint32_t>(pair[1]) : 0;
    const uint32_t own_items = inside ? static_cast<uint32_t>(pair[0]) + own_relevant : 0;
    uint32_t up_to_items = own_items, up_to_relevant = own_relevant;
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t a = __shfl_up_sync(~0u, up_to_items, step), b = __shfl_up_sync(~0u, up_to_relevant, step);
      if (lane >= step) up_to_items += a, up_to_relevant += b;
    }
    if (inside) {
      next_item[base + lane] = items_before + up_to_items - own_items;
      next_relevant[base + lane] = relevant_before + up_to_relevant - own_relevant;
    }
    items_before += __shfl_sync(~0u, up_to_items, 31);
    relevant_before += __shfl_sync(~0u, up_to_relevant, 31);
  }
  __syncwarp();
  const uint64_t total = max(relevant_before, 1u), one = 1ull << kFixedBits;
  const uint64_t high = one / total;
  const uint64_t low = static_cast<uint64_t>(static_cast<double>(one - high * total) / total * one);

  const auto query = staged<W>(query_words, warp, query_layout);
  const unsigned lower = (1u << lane) - 1;
  double sum = 0;
  int64_t found = 0;
  for (int64_t at = 0; at < items.count; at += 32) {
    const int64_t i = at + lane, inside = min(i, items.count - 1);
    const Code<W> x = load_row<W>(items.data + inside * items.stride, layout);
    const int d = i < items.count ? distance<W>(x, query) : bins;  // past the end: a distance of its own
    const bool mine = i < items.count && relevant(q, inside);
    const unsigned same = __match_any_sync(~0u, d), marked = __ballot_sync(~0u, mine) & same;
    uint32_t rank = 0, number = 0;
    if (i < items.count) {
      rank = next_item[d] + __popc(same & lower);
      number = next_relevant[d] + __popc(marked & lower) + 1;
    }
    __syncwarp();
    if (i < items.count && (same & lower) == 0) {
      next_item[d] += __popc(same);
      next_relevant[d] += __popc(marked);
    }
    __syncwarp();
    if (mine) {
      if (rank < cutoff) {
        sum += static_cast<double>(number) / (static_cast<double>(rank) + 1.0);
        ++found;
      }
      atomicAdd(hits + rank, 1u);
      atomicAdd(weights + 2 * static_cast<int64_t>(rank), static_cast<unsigned long long>(high));
      atomicAdd(weights + 2 * static_cast<int64_t>(rank) + 1, static_cast<unsigned long long>(low));
    }
  }
  for (int step = 16; step; step /= 2) {
    sum += __shfl_down_sync(~0u, sum, step);
    found += __shfl_down_sync(~0u, found, step);
  }
  if (lane == 0) {
    precision[q] = sum;
    retrieved[q] = found;
  }
}

// Floor: HBM (20 bytes in, 16 out, a rank).
__global__ void finish_kernel(int64_t n, const uint32_t* __restrict__ counts,
                              const unsigned long long* __restrict__ weights, double* __restrict__ hits,
                              double* __restrict__ recall) {
  const double unit = 1.0 / static_cast<double>(1ull << kFixedBits);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; r < n; r += step) {
    hits[r] = counts[r];
    recall[r] = (static_cast<double>(weights[2 * r]) + static_cast<double>(weights[2 * r + 1]) * unit) * unit;
  }
}

}  // namespace

void rank_sums(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
               const Relevance& relevance, int64_t cutoff, const int64_t* counts, double* precision,
               int64_t* retrieved, double* hits, double* recall, const Context& context) {
  if (queries.count == 0 || items.count == 0) return;
  if (items.count >= (int64_t{1} << 32) || queries.count >= (int64_t{1} << 17))
    throw std::runtime_error("nhl_fast CUDA: evaluation takes less than 2^32 items and 2^17 queries at a time");
  const auto m = static_cast<int64_t>(lengths.size()), n = items.count;
  auto* const hit_counts = static_cast<uint32_t*>(context.zeros(4 * m * n));
  auto* const weights = static_cast<unsigned long long*>(context.zeros(16 * m * n));
  for (int64_t j = 0; j < m; ++j) {
    const int bins = static_cast<int>(lengths[j]) + 1;
    const Layout query_layout = layout_of(queries, lengths[j]), layout = layout_of(items, lengths[j]);
    with_words(layout.words, [&](auto words) {
      constexpr int W = decltype(words)::value;
      with_relevance(relevance, [&](auto relevant) {
        rank_kernel<W><<<static_cast<unsigned>(divide_up(queries.count, kWarps)), kWarps * 32,
                         4 * kWarps * (W + 2 * bins), context.stream>>>(
            queries, items, query_layout, layout, bins, cutoff, relevant, counts, precision + j * queries.count,
            retrieved + j * queries.count, hit_counts + j * n, weights + 2 * j * n);
      });
      check(cudaGetLastError());
    });
    counts += 2 * bins * queries.count;
  }
  finish_kernel<<<4 * context.multiprocessors, kThreads, 0, context.stream>>>(m * n, hit_counts, weights, hits, recall);
  check(cudaGetLastError());
}

}  // namespace nhl::cuda
