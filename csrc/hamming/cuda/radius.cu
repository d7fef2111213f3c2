// Radius search by the scan of scan/find.cuh, and what makes a result of sorted keys.
#include "scan/find.cuh"

namespace nhl::cuda {
namespace {

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

void scan_within(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, const uint8_t* allow,
                 const int64_t* offsets, int id_bits, unsigned long long* counts, int64_t* out, const Context& context) {
  const int64_t limit = (std::min(radius, bits) + 1) << kIdBits;
  scan(queries, items, bits, {nullptr, limit, allow, counts, out, offsets, items.count, bits + 1, id_bits}, context);
}

}  // namespace

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
