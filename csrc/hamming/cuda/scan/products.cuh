// The tensor cores' products on a warp's fragments, as the PTX ISA lays them out under mma.sync: lane l holds row l / 4
// (and l / 4 + 8) of A, column l / 4 of B, and of C and D columns 2 (l % 4) and + 1 of those rows.
#pragma once

#ifndef __CUDACC__
#include <emulated_mma.h>  // tests/cuda_emulation
#else
#include <cstdint>

namespace nhl::cuda {

// d = c + the number of ones of (row of A and column of B), 256 bits; BMMA.168256.AND.POPC on sm_80 and sm_90.
// a: words l % 4 of both rows, then words 4 + l % 4; b: words l % 4 and 4 + l % 4.
__device__ __forceinline__ void mma_and_256(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                            const int (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// The same over 128 bits: words l % 4 alone.
__device__ __forceinline__ void mma_and_128(int (&d)[4], const uint32_t (&a)[2], uint32_t b, const int (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// d = c + row of A times column of B: 32 signed numbers by unsigned ones of 8 bits. a: numbers 4 (l % 4) to + 3 of both
// rows, then 16 further; b: the same of the column.
__device__ __forceinline__ void mma_s8_u8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                          const int (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

}  // namespace nhl::cuda
#endif
