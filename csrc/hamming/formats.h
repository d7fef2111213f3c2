// Numbers of the formats that vectors come in, as float32; on the CPU and in CUDA's kernels.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define NHL_ANYWHERE __host__ __device__
#else
#define NHL_ANYWHERE
#endif

namespace nhl::hamming {

enum class Number : int { f16, bf16, f32, i8 };

NHL_ANYWHERE inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

NHL_ANYWHERE inline float number(float x) { return x; }
NHL_ANYWHERE inline float number(int8_t x) { return x; }

struct Half {
  uint16_t bits;
};
NHL_ANYWHERE inline float number(Half x) {
  // The exponent moves by 112; multiplying does that for numbers under the smallest normal one, too.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const float scaled = from_bits(magnitude) * 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  const uint32_t above = magnitude >= 0x7c00u << 13 ? 0x7f800000u : 0u;  // infinity or NaN
  return from_bits(bits | above | sign);
}

struct Brain {
  uint16_t bits;
};
NHL_ANYWHERE inline float number(Brain x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

}  // namespace nhl::hamming
