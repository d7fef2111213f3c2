// Top-k. Few neighbours: a limit from a sample, one scan for what is below it, and a block a query that orders what was
// found. Where the limit did not do, which the device alone knows, the exact counts of levels.cuh give another; those
// launches return at once for all other queries. Many neighbours: exact counts for all, and a library's sort afterwards.
#include "levels.cuh"
#include "plan.h"

namespace nhl::cuda {
namespace {

constexpr int kOrderThreads = 512;
constexpr int64_t kMostQueries = int64_t{65535} * 8;  // a grid's rows of tiles
constexpr int64_t kCandidateBytes = int64_t{128} << 20;

// Of `count` candidates, those no further than the k-th, to keys; returns how many. By a block.
__device__ __forceinline__ int nearest_of(const int64_t* __restrict__ candidates, int count, int64_t k, int64_t* keys) {
  __shared__ int at_distance[kMaxBits + 1];
  __shared__ int furthest, kept;
  for (int d = threadIdx.x; d <= kMaxBits; d += kOrderThreads) at_distance[d] = 0;
  if (threadIdx.x == 0) kept = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kOrderThreads) atomicAdd(at_distance + (candidates[i] >> kIdBits), 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    const Reached r = reached(kMaxBits + 1, k, [&](int64_t d) { return static_cast<int64_t>(at_distance[d]); });
    if (threadIdx.x == 0) furthest = static_cast<int>(r.at);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kOrderThreads) {
    const int64_t key = candidates[i];
    if (key >> kIdBits <= furthest) keys[atomicAdd(&kept, 1)] = key;
  }
  __syncthreads();
  return kept;
}

// One block a query: sorts its candidates and writes the first k. Floor: shared memory.
__global__ void __launch_bounds__(kOrderThreads)
    order_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int64_t k, int64_t base,
                 const uint8_t* __restrict__ allow, Doubt doubt, bool may_doubt, Levels exact,
                 const unsigned long long* __restrict__ counts, const unsigned long long* __restrict__ exact_counts,
                 const int64_t* __restrict__ candidates, int64_t room, int32_t* __restrict__ distances,
                 int64_t* __restrict__ ids) {
  extern __shared__ __align__(16) uint32_t shared[];
  auto* const keys = reinterpret_cast<int64_t*>(shared);
  const int64_t q = blockIdx.x;
  const bool doubted = may_doubt && doubt(q);
  int count = static_cast<int>(doubted ? exact_counts[q] : counts[q]);
  if (count > k) {
    count = nearest_of(candidates + q * room, count, k, keys);
  } else {
    for (int i = threadIdx.x; i < count; i += kOrderThreads) keys[i] = candidates[q * room + i];
  }
  if (doubted && exact.walks[q].take > 0) {
    const int64_t level = exact.levels[q].distance;
    walk<kOrderThreads>(queries, items, query_layout, layout, q, exact.chunk, allow, exact.walks[q],
                        static_cast<int>(level),
                        [&](int64_t slot, int64_t id) { keys[count + slot] = level << kIdBits | id; });
    count += static_cast<int>(exact.walks[q].take);
  }
  int size = 1;
  while (size < count) size *= 2;
  for (int i = count + threadIdx.x; i < size; i += kOrderThreads) keys[i] = kNoNeighbour;
  __syncthreads();
  for (int length = 2; length <= size; length *= 2)
    for (int step = length / 2; step > 0; step /= 2) {
      for (int t = threadIdx.x; t < size / 2; t += kOrderThreads) {
        const int i = 2 * t - (t & (step - 1)), j = i + step;
        const int64_t a = keys[i], b = keys[j];
        if ((a > b) == ((i & length) == 0)) keys[i] = b, keys[j] = a;
      }
      __syncthreads();
    }
  for (int i = threadIdx.x; i < k; i += kOrderThreads) {
    distances[q * k + i] = i < count ? static_cast<int32_t>(keys[i] >> kIdBits) : -1;
    ids[q * k + i] = i < count ? (keys[i] & kIdMask) + base : -1;
  }
}

// The walks alone; they end the queries' rows. One block a query. Floor: latency.
__global__ void __launch_bounds__(kOrderThreads)
    walk_kernel(Rows queries, Rows items, Layout query_layout, Layout layout, int64_t k,
                const uint8_t* __restrict__ allow, Levels exact, int64_t* __restrict__ out) {
  const int64_t q = blockIdx.x;
  const Walk own = exact.walks[q];
  const int64_t level = exact.levels[q].distance;
  if (own.take == 0) return;
  walk<kOrderThreads>(queries, items, query_layout, layout, q, exact.chunk, allow, own, static_cast<int>(level),
                      [&](int64_t slot, int64_t id) { out[(q + 1) * k - own.take + slot] = level << kIdBits | id; });
}

// Floor: HBM.
__global__ void fill_kernel(int64_t* out, int64_t count, int64_t value) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) out[i] = value;
}

}  // namespace

void nearest(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow, int64_t base,
             int32_t* distances, int64_t* ids, const Context& context) {
  if (queries.count == 0 || k == 0) return;
  const int64_t everything = (bits + 1) << kIdBits;
  const Plan plan = plan_for(items.count, k, context);
  const bool sampled = plan.stride > 0;
  const int64_t room = plan.room, batch = std::clamp<int64_t>(kCandidateBytes / (8 * room), 1, kMostQueries);
  const int64_t most = std::min(batch, queries.count);
  auto* const candidates = static_cast<int64_t*>(context.scratch(8 * room * most));
  const Sample sample{plan.stride, plan.wanted, plan.most, static_cast<int64_t*>(context.scratch(8 * most))};
  const int shared_bytes = static_cast<int>(8 * room);
  if (shared_bytes > kSharedBytes)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(order_kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  for (int64_t first = 0; first < queries.count; first += batch) {
    const Rows some = slice(queries, first, std::min(batch, queries.count - first));
    auto* const counts = static_cast<unsigned long long*>(context.zeros(16 * some.count));
    Find find{sampled ? sample.limits : nullptr, everything, allow, counts, candidates, nullptr, room, 0, kIdBits};
    const Doubt doubt{counts, sample.limits, k, room, everything};
    Levels exact{};
    if (sampled) sample_limits(some, items, bits, allow, sample, context);
    scan(some, items, bits, find, context);
    if (sampled) {
      exact = find_levels(some, items, bits, k, allow, doubt, context);
      find.limits = exact.limits;
      find.counts = counts + some.count;
      find.sparse = true;
      scan(some, items, bits, find, context);
    }
    order_kernel<<<static_cast<unsigned>(some.count), kOrderThreads, shared_bytes, context.stream>>>(
        some, items, layout_of(some, bits), layout_of(items, bits), k, base, allow, doubt, sampled, exact, counts,
        counts + some.count, candidates, room, distances + first * k, ids + first * k);
    check(cudaGetLastError());
  }
}

void nearest_keys(const Rows& queries, const Rows& items, int64_t bits, int64_t k, const uint8_t* allow, int64_t* out,
                  const Context& context) {
  if (queries.count == 0 || k == 0) return;
  fill_kernel<<<4 * context.multiprocessors, kThreads, 0, context.stream>>>(out, queries.count * k, kNoNeighbour);
  check(cudaGetLastError());
  if (items.count == 0) return;
  for (int64_t first = 0; first < queries.count; first += kMostQueries) {
    const Rows some = slice(queries, first, std::min(kMostQueries, queries.count - first));
    const Levels exact = find_levels(some, items, bits, k, allow, {}, context);
    auto* const counts = static_cast<unsigned long long*>(context.zeros(8 * some.count));
    int64_t* const own = out + first * k;
    scan(some, items, bits, {exact.limits, 0, allow, counts, own, nullptr, k, 0, kIdBits}, context);
    walk_kernel<<<static_cast<unsigned>(some.count), kOrderThreads, 0, context.stream>>>(
        some, items, layout_of(some, bits), layout_of(items, bits), k, allow, exact, own);
    check(cudaGetLastError());
  }
}

}  // namespace nhl::cuda
