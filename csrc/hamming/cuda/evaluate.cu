// Rank sums of the relevant items; the method is that of ../cpu/evaluate.cpp.
//
// One warp ranks one query at one length: 32 items a turn in row order, their turns within a distance by matching
// lanes, the counters of all distances in shared memory.
#include <cmath>

#include "device.cuh"

namespace nhl::cuda {
namespace {

constexpr int kWarps = 4;  // a block
// 1 / (relevant items) as two integers in units of 2^-46 and 2^-92: their sums do not depend on the order.
constexpr int kFixedBits = 46;

// A length of a launch: grid.y counts them.
struct Length {
  Layout queries, items;
  int bins;
  int64_t counts;  // where its counts begin
};

constexpr int kMostLengths = 32;

struct Lengths {
  Length of[kMostLengths];
};

// The ranks that hold a relevant item, as far as gains are summed: a bit a rank, for the queries of a launch.
struct Noted {
  uint32_t* bits;  // [m][queries of the launch][words]
  int64_t words, last, first, queries;
  __device__ __forceinline__ uint32_t* of(int64_t q) const { return bits + (blockIdx.y * queries + q - first) * words; }
};

struct Ranks {
  const int64_t* counts;
  double* precision;            // [m][q]
  int64_t* retrieved;           // [m][q]
  uint32_t* hits;               // [m][n]
  unsigned long long* weights;  // [m][n][2]
  Noted noted;
};

// One query at one length. `shared`: the queries' words, then two counters a distance and warp.
template <int W, class Relevant>
__device__ __forceinline__ void rank(const Rows& queries, const Rows& items, const Length& length, int64_t cutoff,
                                     const Relevant& relevant, const Ranks& out, uint32_t* shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bins = length.bins;
  const int64_t first = out.noted.first + static_cast<int64_t>(blockIdx.x) * kWarps, q = first + warp;
  uint32_t* const query_words = shared;
  uint32_t* const next_item = shared + kWarps * W + warp * bins * 2;
  uint32_t* const next_relevant = next_item + bins;
  const int64_t* const counts = out.counts + length.counts;
  stage_queries<W>(queries, length.queries, first, min(queries.count, first + kWarps), query_words);
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

  const auto query = staged<W>(query_words, warp, length.queries);
  const auto label = relevant.query(q);
  uint32_t* const hits = out.hits + blockIdx.y * items.count;
  unsigned long long* const weights = out.weights + 2 * blockIdx.y * items.count;
  const unsigned lower = (1u << lane) - 1;
  double sum = 0;
  int64_t found = 0;
  int64_t inside = min(static_cast<int64_t>(lane), items.count - 1);
  Code<W> x = load_row<W>(items.data + inside * items.stride, length.items);
  auto item_label = relevant.item(inside);
  for (int64_t at = 0; at < items.count; at += 32) {
    const int64_t i = at + lane;
    const int d = i < items.count ? distance<W>(x, query) : bins;  // past the end: a distance of its own
    const bool mine = i < items.count && relevant.match(label, item_label);
    inside = min(i + 32, items.count - 1);
    x = load_row<W>(items.data + inside * items.stride, length.items);
    item_label = relevant.item(inside);
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
      if (rank < out.noted.last) atomicOr(out.noted.of(q) + rank / 32, 1u << rank % 32);
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
    out.precision[blockIdx.y * queries.count + q] = sum;
    out.retrieved[blockIdx.y * queries.count + q] = found;
  }
}

// The narrowest code that holds the length: W words at most.
template <int W, class Relevant>
__device__ __forceinline__ void rank_in(const Rows& queries, const Rows& items, const Length& length, int64_t cutoff,
                                        const Relevant& relevant, const Ranks& out, uint32_t* shared) {
  if constexpr (W > 1) {
    if (length.items.words <= W / 2)
      return rank_in<W / 2>(queries, items, length, cutoff, relevant, out, shared);
  }
  rank<W>(queries, items, length, cutoff, relevant, out, shared);
}

// Floor: latency of the warp-wide match (one turn of 32 items), then popc.
template <int W, class Relevant>
__global__ void __launch_bounds__(kWarps * 32, W <= 8 ? 6 : 4)
    rank_kernel(Rows queries, Rows items, const __grid_constant__ Lengths lengths, int64_t cutoff, Relevant relevant,
                Ranks out) {
  extern __shared__ __align__(16) uint32_t shared[];
  rank_in<W>(queries, items, lengths.of[blockIdx.y], cutoff, relevant, out, shared);
}

// gains[m][q][i] of ../hamming.h, by a warp a query and length, which leaves the bits cleared. Floor: latency.
__global__ void __launch_bounds__(kWarps * 32)
    gains_kernel(Noted noted, int64_t stop, int64_t all, const int64_t* __restrict__ ends, int count,
                 double* __restrict__ out) {
  const int lane = threadIdx.x % 32;
  const int64_t q = noted.first + static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (q >= stop) return;
  uint32_t* const words = noted.of(q);
  double* const own = out + (blockIdx.y * all + q) * count;
  double before = 0;
  int64_t begin = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t end = ends[i];
    double sum = 0;
    for (int64_t w = begin / 32 + lane; 32 * w < end; w += 32) {
      uint32_t bits = words[w];
      if (32 * w < begin) bits &= ~0u << begin % 32;
      if (32 * w + 32 > end) bits &= ~(~0u << end % 32);
      for (; bits; bits &= bits - 1) sum += 1.0 / log2(static_cast<double>(32 * w + __ffs(static_cast<int>(bits)) + 1));
    }
    for (int step = 16; step; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
    before += sum;
    if (lane == 0) own[i] = before;
    begin = end;
  }
  __syncwarp();  // all words have been read
  for (int64_t w = lane; w < noted.words; w += 32) words[w] = 0;
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
               int64_t* retrieved, double* hits, double* recall, const Gains& gains, const Context& context) {
  if (queries.count == 0 || items.count == 0) return;
  if (items.count >= (int64_t{1} << 32) || queries.count >= (int64_t{1} << 17))
    throw std::runtime_error("nhl_fast CUDA: evaluation takes less than 2^32 items and 2^17 queries at a time");
  const auto m = static_cast<int64_t>(lengths.size()), n = items.count;
  auto* const hit_counts = static_cast<uint32_t*>(context.zeros(4 * m * n));
  auto* const weights = static_cast<unsigned long long*>(context.zeros(16 * m * n));
  const int64_t words = divide_up(gains.last, 32), each = 4 * words * std::min<int64_t>(m, kMostLengths);
  const int64_t whole = divide_up(queries.count, kWarps) * kWarps;
  const int64_t batch = words ? std::clamp<int64_t>(context.noted / each / kWarps * kWarps, kWarps, whole) : whole;
  auto* const bits = words ? static_cast<uint32_t*>(context.zeros(each * batch)) : nullptr;
  int64_t offset = 0;
  for (int64_t from = 0; from < m; from += kMostLengths) {
    const int64_t some = std::min<int64_t>(m - from, kMostLengths), longest = lengths[from + some - 1];
    Lengths table{};
    for (int64_t j = 0; j < some; ++j) {
      const int64_t bits = lengths[from + j];
      table.of[j] = {layout_of(queries, bits), layout_of(items, bits), static_cast<int>(bits) + 1, offset};
      offset += 2 * (bits + 1) * queries.count;
    }
    for (int64_t first = 0; first < queries.count; first += batch) {
      const int64_t stop = std::min(queries.count, first + batch);
      const Ranks out{counts, precision + from * queries.count, retrieved + from * queries.count, hit_counts + from * n,
                      weights + 2 * from * n, {bits, words, gains.last, first, batch}};
      const dim3 grid(static_cast<unsigned>(divide_up(stop - first, kWarps)), static_cast<unsigned>(some));
      with_words(static_cast<int>(divide_up(longest, 32)), [&](auto code) {
        constexpr int W = decltype(code)::value;
        const int64_t bytes = 4 * kWarps * (W + 2 * (longest + 1));
        with_relevance(relevance, [&](auto relevant) {
          rank_kernel<W><<<grid, kWarps * 32, bytes, context.stream>>>(queries, items, table, cutoff, relevant, out);
        });
        check(cudaGetLastError());
      });
      if (!words) continue;
      gains_kernel<<<grid, kWarps * 32, 0, context.stream>>>(out.noted, stop, queries.count, gains.ends, gains.count,
                                                             gains.out + from * queries.count * gains.count);
      check(cudaGetLastError());
    }
  }
  finish_kernel<<<4 * context.multiprocessors, kThreads, 0, context.stream>>>(m * n, hit_counts, weights, hits, recall);
  check(cudaGetLastError());
}

}  // namespace nhl::cuda
