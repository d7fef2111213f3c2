// csrc/hamming/cuda/scan/products.cuh on the CPU: matrices put together from all lanes' fragments by the tables of the PTX
// ISA. Written from those tables, not from the kernels' use of them.
#pragma once

#include "cuda_runtime.h"

namespace emulation {

struct Fragments {
  uint32_t a[4], b[2];
};

// PTX ISA, "Matrix Fragments for mma.m16n8k128" and "... m16n8k256" (.b1): register i of A holds row groupID, + 8 for odd
// i, and 32 columns from 32 * threadID_in_group, + 128 for i >= 2. Register i of B holds column groupID and 32 rows from
// 32 * threadID_in_group, + 128 for i = 1. Register i of C is row groupID, + 8 for i >= 2, and column
// 2 * threadID_in_group + i % 2. groupID is lane / 4, threadID_in_group lane % 4.
inline void binary_product(int (&d)[4], const Fragments& own, const int (&c)[4], int bits) {
  const auto all = exchange_all(own);
  const auto a = [&](int row, int k) { return all[row % 8 * 4 + k % 128 / 32].a[row / 8 + 2 * (k / 128)]; };
  const auto b = [&](int k, int column) { return all[column * 4 + k % 128 / 32].b[k / 128]; };
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    d[i] = c[i];
    for (int k = 0; k < bits; k += 32) d[i] += __builtin_popcount(a(row, k) & b(k, column));
  }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k32" (8 bits): byte j of register i of A holds row groupID, + 8 for odd i, and
// column 4 * threadID_in_group + j, + 16 for i >= 2; of B row 4 * threadID_in_group + j, + 16 for i = 1, and column
// groupID. C as above.
inline void integer_product(int (&d)[4], const Fragments& own, const int (&c)[4]) {
  const auto all = exchange_all(own);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    d[i] = c[i];
    for (int k = 0; k < 32; ++k) {
      const uint32_t a = all[row % 8 * 4 + k % 16 / 4].a[row / 8 + 2 * (k / 16)] >> 8 * (k % 4);
      const uint32_t b = all[column * 4 + k % 16 / 4].b[k / 16] >> 8 * (k % 4);
      d[i] += static_cast<int8_t>(a & 0xff) * static_cast<int>(b & 0xff);
    }
  }
}

}  // namespace emulation

namespace nhl::cuda {

inline void mma_and_256(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
  emulation::binary_product(d, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, c, 256);
}

inline void mma_and_128(int (&d)[4], const uint32_t (&a)[2], uint32_t b, const int (&c)[4]) {
  emulation::binary_product(d, {{a[0], a[1], 0, 0}, {b, 0}}, c, 128);
}

inline void mma_s8_u8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
  emulation::integer_product(d, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, c);
}

}  // namespace nhl::cuda
