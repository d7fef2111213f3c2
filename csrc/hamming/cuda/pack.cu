// Sign + pack: x > 0 is decided on the bits of x, as in ../cpu/pack.cpp.
#include "device.cuh"

namespace nhl::cuda {
namespace {

// Floor: HBM (reads the numbers once; a thread's 8 numbers are adjacent, so whole sectors are used).
template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const T* __restrict__ x, T infinity, int64_t rows, int64_t bits, int64_t row_stride,
                int64_t column_stride, uint8_t* __restrict__ out) {
  const int64_t bytes = (bits + 7) / 8;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < rows * bytes; at += step) {
    const int64_t row = at / bytes, first = at % bytes * 8;
    const T* source = x + row * row_stride + first * column_stride;
    uint32_t byte = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (first + j < bits)
        byte |= static_cast<uint32_t>(static_cast<T>(source[j * column_stride] - 1) < infinity) << (7 - j);
    out[at] = static_cast<uint8_t>(byte);
  }
}

template <class T>
void launch(const void* x, uint64_t infinity, int64_t rows, int64_t bits, int64_t row_stride, int64_t column_stride,
            uint8_t* out, const Context& context) {
  const int64_t blocks = std::min<int64_t>(divide_up(rows * ((bits + 7) / 8), kThreads), 32 * context.multiprocessors);
  pack_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, context.stream>>>(
      static_cast<const T*>(x), static_cast<T>(infinity), rows, bits, row_stride, column_stride, out);
  check(cudaGetLastError());
}

}  // namespace

void pack(const void* x, int bytes, uint64_t infinity, int64_t rows, int64_t bits, int64_t row_stride,
          int64_t column_stride, uint8_t* out, const Context& context) {
  if (rows == 0 || bits == 0) return;
  const auto run = bytes == 2 ? launch<uint16_t> : bytes == 4 ? launch<uint32_t> : launch<uint64_t>;
  run(x, infinity, rows, bits, row_stride, column_stride, out, context);
}

}  // namespace nhl::cuda
