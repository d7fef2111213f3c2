// A second look at candidates: their vectors, or queries' raw outputs against their codes. A warp takes a query and one
// of its candidates. Floor: HBM (a candidate's row, read whole sectors at a time; the queries stay in L1 and L2).
#include <cmath>

#include "device.cuh"

namespace nhl::cuda {
namespace {

// The sum over a warp, in an order that is always the same.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// score(query, candidate's row), of all lanes of a warp, for every pair whose candidate is an item; NaN for others.
template <class Score>
__device__ __forceinline__ void score_pairs(const Chosen& chosen, int64_t items, float* __restrict__ out,
                                            const Score& score) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x / 32;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  for (int64_t at = first; at < chosen.queries * chosen.each; at += step) {
    const int64_t id = __ldg(chosen.ids + at);
    const float found = id >= 0 && id < items ? score(at / chosen.each, id) : nanf("");
    if (threadIdx.x % 32 == 0) out[at] = found;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    vectors_kernel(Chosen chosen, const float* __restrict__ queries, Vectors vectors, bool unit, float* __restrict__ out) {
  score_pairs(chosen, vectors.count, out, [&](int64_t q, int64_t id) {
    const T* const row = static_cast<const T*>(vectors.data) + id * vectors.stride;
    float product = 0, squares = 0, ends = 0;
    for (int64_t i = threadIdx.x % 32; i < vectors.width; i += 32) {
      const float x = hamming::number(row[i]);
      product += x * queries[q * vectors.width + i];
      squares += x * x;
      ends += x * 0.0f;  // NaN for a number that is not finite
    }
    const double whole = warp_sum(static_cast<double>(product));
    const double square = warp_sum(static_cast<double>(squares));
    return static_cast<float>(whole / (unit && square > 0 ? sqrt(square) : 1.0)) + warp_sum(ends);
  });
}

__global__ void __launch_bounds__(kThreads)
    codes_kernel(Chosen chosen, const float* __restrict__ outputs, int64_t stride, Rows codes, int64_t length,
                 float* __restrict__ out) {
  score_pairs(chosen, codes.count, out, [&](int64_t q, int64_t id) {
    const uint8_t* const code = codes.data + id * codes.stride;
    float sum = 0;
    for (int64_t c = threadIdx.x % 32; c < length; c += 32) {
      const float u = outputs[q * stride + c];
      sum += code[c / 8] >> (7 - c % 8) & 1 ? u : -u;
    }
    return static_cast<float>(warp_sum(static_cast<double>(sum)));
  });
}

unsigned blocks_of(const Chosen& chosen, const Context& context) {
  const int64_t pairs = chosen.queries * chosen.each;
  return static_cast<unsigned>(std::min<int64_t>(divide_up(pairs, kThreads / 32), 32 * context.multiprocessors));
}

template <class T>
void launch(const Chosen& chosen, const float* queries, const Vectors& vectors, bool unit, float* out,
            const Context& context) {
  vectors_kernel<T><<<blocks_of(chosen, context), kThreads, 0, context.stream>>>(chosen, queries, vectors, unit, out);
  check(cudaGetLastError());
}

}  // namespace

void score_vectors(const Chosen& chosen, const float* queries, const Vectors& vectors, bool unit, float* out,
                   const Context& context) {
  if (chosen.queries * chosen.each == 0) return;
  switch (vectors.type) {
    case hamming::Number::f16: return launch<hamming::Half>(chosen, queries, vectors, unit, out, context);
    case hamming::Number::bf16: return launch<hamming::Brain>(chosen, queries, vectors, unit, out, context);
    case hamming::Number::i8: return launch<int8_t>(chosen, queries, vectors, unit, out, context);
    default: return launch<float>(chosen, queries, vectors, unit, out, context);
  }
}

void score_codes(const Chosen& chosen, const float* outputs, int64_t stride, const Rows& codes, int64_t length,
                 float* out, const Context& context) {
  if (chosen.queries * chosen.each == 0) return;
  codes_kernel<<<blocks_of(chosen, context), kThreads, 0, context.stream>>>(chosen, outputs, stride, codes, length, out);
  check(cudaGetLastError());
}

}  // namespace nhl::cuda
