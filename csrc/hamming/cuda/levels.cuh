// At which distance a query's k-th neighbour lies, counted exactly, and how many of the items there it takes: those of
// the first chunks of items, and the first few by row in the chunk where they end.
#pragma once

#include "scan/find.cuh"

namespace nhl::cuda {

// The queries for which a scan below `limits` did not do: more was found than there is room for, or less than asked for
// although the limit kept items out. Without counts, all.
struct Doubt {
  const unsigned long long* counts;
  const int64_t* limits;
  int64_t k, room, everything;
  __device__ __forceinline__ bool operator()(int64_t q) const {
    if (counts == nullptr) return true;
    const auto found = static_cast<int64_t>(counts[q]);
    return found > room || (found < k && limits[q] < everything);
  }
};

// The items at `distance` (past the longest where there are fewer than k in all) of which a query takes `left`.
struct Level {
  int64_t left;
  int distance;
};

// The last `take` of a query's neighbours: the first ones at its level's distance in this chunk.
struct Walk {
  int64_t take;
  int chunk;
};

struct Levels {
  Level* levels;
  Walk* walks;
  int64_t* limits;  // what is below comes before the walk; 0 for the other queries
  int64_t chunk;    // items
};

// The item that a sample takes of the i-th `stride` items. Not the same of each: `allow` may have a period.
__host__ __device__ __forceinline__ int64_t sampled(int64_t i, int64_t stride, int64_t items) {
  if (stride == 1) return i;
  const uint64_t part = static_cast<uint32_t>(i) * 2654435769u;  // of 2^32: the golden ratio's multiples lie evenly
  const int64_t row = i * stride + static_cast<int64_t>(part * static_cast<uint64_t>(stride) >> 32);
  return row < items ? row : items - 1;
}

// A sample's outcome: an item of each `stride`; a limit below which about wanted * stride of all items lie.
struct Sample {
  int64_t stride, wanted, most;
  int64_t* limits;
};

void sample_limits(const Rows& queries, const Rows& items, int64_t bits, const uint8_t* allow, const Sample& sample,
                   const Context& context);
Levels find_levels(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow,
                   const Doubt& doubt, const Context& context);

struct Reached {
  int64_t at, before;
};

// Where number(0) + number(1) + ... comes to `wanted` (`count` where it does not) and what lies before. By a warp, 256
// numbers a turn, since a turn takes as long as the memory's answer.
template <class Number>
__device__ __forceinline__ Reached reached(int64_t count, int64_t wanted, const Number& number) {
  constexpr int kEach = 8;
  const int lane = threadIdx.x % 32;
  int64_t before = 0;
  for (int64_t base = 0; base < count; base += 32 * kEach) {
    const int64_t first = base + lane * kEach;
    int64_t own[kEach], sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) own[i] = first + i < count ? number(first + i) : 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum += own[i];
    int64_t up_to = sum;
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(~0u, up_to, step);
      if (lane >= step) up_to += other;
    }
    const unsigned hit = __ballot_sync(~0u, before + up_to >= wanted);
    if (hit) {
      Reached result{first, before + up_to - sum};
#pragma unroll
      for (int i = 0; i + 1 < kEach; ++i)
        if (result.at == first + i && result.before + own[i] < wanted) result = {first + i + 1, result.before + own[i]};
      const int at = __ffs(hit) - 1;
      return {__shfl_sync(~0u, result.at, at), __shfl_sync(~0u, result.before, at)};
    }
    before += __shfl_sync(~0u, up_to, 31);
  }
  return {count, before};
}

// The walk in order by a block of THREADS: put(slot, id) for the first `take` of the chunk's items at `distance`.
template <int THREADS, class Put>
__device__ __forceinline__ void walk(const Rows& queries, const Rows& items, const Layout& query_layout,
                                     const Layout& layout, int64_t q, int64_t chunk_items, const uint8_t* allow,
                                     const Walk& own, int distance, const Put& put) {
  constexpr int kWarps = THREADS / 32;
  __shared__ int in_warp[2][kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Code<0> query{queries.data + q * queries.stride, query_layout};
  const int64_t begin = own.chunk * chunk_items, end = min(items.count, begin + chunk_items);
  int64_t taken = 0;
  for (int64_t at = begin; at < end && taken < own.take; at += THREADS) {
    const int64_t i = at + threadIdx.x, inside = min(i, end - 1);
    const Code<0> x{items.data + inside * items.stride, layout};
    int d = 0;
    for (int w = 0; w < layout.words; ++w) d += __popc(x(w) ^ query(w));
    const bool mine = i < end && (allow == nullptr || allow[inside]) && d == distance;
    const unsigned same = __ballot_sync(~0u, mine);
    int* const counts = in_warp[(at - begin) / THREADS % 2];  // two sets: one barrier a turn
    if (lane == 0) counts[warp] = __popc(same);
    __syncthreads();
    int64_t slot = taken + __popc(same & ((1u << lane) - 1));
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) slot += counts[w];
      taken += counts[w];
    }
    if (mine && slot < own.take) put(slot, i);
  }
}

}  // namespace nhl::cuda
