// Whole numbers.
#pragma once

#include <cstdint>

namespace nhl {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The multiple of `step` that is at least n.
inline int64_t round_up(int64_t n, int64_t step) { return divide_up(n, step) * step; }

// Eight bytes of 0 or 1 into eight bits, the first byte's lowest.
inline uint64_t gather_bits(uint64_t eight) { return eight * 0x0102040810204080ull >> 56; }

}  // namespace nhl
