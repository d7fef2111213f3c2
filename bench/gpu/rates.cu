// How fast a card counts bits: POPC, the binary tensor cores (AND, population count) and those for 8-bit integers, read off
// the multiprocessors' own clocks. nvcc -O3 -std=c++17 -gencode=arch=compute_90,code=sm_90 -o rates bench/gpu/rates.cu
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/hamming/cuda/scan/products.cuh"

namespace {

constexpr int kThreads = 512, kRounds = 2000, kChains = 8;  // independent products that a warp has under way

enum class Unit { popc, binary, bytes };

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "rates: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <Unit unit>
__global__ void __launch_bounds__(kThreads) rate_kernel(int* out, long long* clocks, uint32_t seed) {
  uint32_t a[4];
  int d[kChains][4];
  for (int i = 0; i < 4; ++i) a[i] = seed * (threadIdx.x * 4 + i + 1);
  for (int j = 0; j < kChains; ++j)
    for (int i = 0; i < 4; ++i) d[j][i] = i + j + seed;
  const uint32_t b = seed * threadIdx.x;
  __syncthreads();
  const long long begin = clock64();
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) {
      if constexpr (unit == Unit::popc) {
#pragma unroll
        for (int i = 0; i < 4; ++i) d[j][i] = __popc(d[j][i] ^ a[i]);
      } else if constexpr (unit == Unit::binary) {
        nhl::cuda::mma_and_256(d[j], a, b, ~b, d[j]);
      } else {
        nhl::cuda::mma_s8_u8(d[j], a, b, ~b, d[j]);
      }
    }
  }
  __syncthreads();
  const long long end = clock64();
  int sum = 0;
  for (int j = 0; j < kChains; ++j)
    for (int i = 0; i < 4; ++i) sum += d[j][i];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;  // so that nothing is left out
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
}

// Instructions of a warp that a multiprocessor finishes in a clock.
template <Unit unit>
double rate(int multiprocessors, int* out, long long* clocks) {
  for (int run = 0; run < 2; ++run) rate_kernel<unit><<<multiprocessors, kThreads>>>(out, clocks, 3);
  check(cudaGetLastError());
  long long taken = 0;
  check(cudaMemcpy(&taken, clocks, sizeof taken, cudaMemcpyDeviceToHost));
  return kThreads / 32.0 * kRounds * kChains * (unit == Unit::popc ? 4 : 1) / static_cast<double>(taken);
}

}  // namespace

int main() {
  cudaDeviceProp card;
  check(cudaGetDeviceProperties(&card, 0));
  const int count = card.multiProcessorCount;
  int* out;
  long long* clocks;
  check(cudaMalloc(&out, sizeof(int) * kThreads * count));
  check(cudaMalloc(&clocks, sizeof(long long) * count));
  const double popc = rate<Unit::popc>(count, out, clocks), binary = rate<Unit::binary>(count, out, clocks),
               bytes = rate<Unit::bytes>(count, out, clocks);
  std::printf("%s, %d multiprocessors; a clock, a multiprocessor:\n", card.name, count);
  std::printf("POPC                %8.4f lanes         %7.1f pairs of 128 bits\n", 32 * popc, 32 * popc / 4);
  std::printf("binary, m16n8k256   %8.4f instructions  %7.1f pairs of 128 bits\n", binary, binary * 128);
  std::printf("8 bits, m16n8k32    %8.4f instructions  %7.1f pairs of 128 bits\n", bytes, bytes * 128 / 4);
}
