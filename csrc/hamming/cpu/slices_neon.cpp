// NEON bodies of the bit-sliced kernels: 256 items a block, in two registers. A full adder is four operations, its carry
// a bit select; population counts are of bytes (cnt), added pairwise.
#include "../../common/target.h"
#include "slices.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "slices.inl"

namespace nhl::hamming {
namespace {

struct NeonSlices {
  using V = uint64x2x2_t;
  static constexpr int64_t words = 4;
  static V load(const uint64_t* p) { return {{vld1q_u64(p), vld1q_u64(p + 2)}}; }
  static void store(uint64_t* p, V x) {
    vst1q_u64(p, x.val[0]);
    vst1q_u64(p + 2, x.val[1]);
  }
  static V fill(uint64_t x) { return {{vdupq_n_u64(x), vdupq_n_u64(x)}}; }
  static V and_(V a, V b) { return {{vandq_u64(a.val[0], b.val[0]), vandq_u64(a.val[1], b.val[1])}}; }
  static V without(V a, V b) { return {{vbicq_u64(a.val[0], b.val[0]), vbicq_u64(a.val[1], b.val[1])}}; }
  static V or_(V a, V b) { return {{vorrq_u64(a.val[0], b.val[0]), vorrq_u64(a.val[1], b.val[1])}}; }
  static V xor_(V a, V b) { return {{veorq_u64(a.val[0], b.val[0]), veorq_u64(a.val[1], b.val[1])}}; }
  static V add(V a, V b, V c, V& carry) {
    const V half = xor_(a, b);
    for (int r = 0; r < 2; ++r) carry.val[r] = vbslq_u64(half.val[r], c.val[r], a.val[r]);
    return xor_(half, c);
  }
  static bool any(V x) { return vmaxvq_u32(vreinterpretq_u32_u64(vorrq_u64(x.val[0], x.val[1]))) != 0; }

  static uint8x16_t ones(uint64x2_t x) { return vcntq_u8(vreinterpretq_u8_u64(x)); }
  // Byte w of 32-bit lane k: ones of word w of masks[k], for four masks.
  static uint8x16_t counts(const V* masks) {
    uint8x16_t parts[4];
    for (int k = 0; k < 4; ++k) parts[k] = vpaddq_u8(ones(masks[k].val[0]), ones(masks[k].val[1]));
    return vpaddq_u8(vpaddq_u8(parts[0], parts[1]), vpaddq_u8(parts[2], parts[3]));
  }
  static uint32x4_t sums(uint8x16_t bytes) { return vpaddlq_u16(vpaddlq_u8(bytes)); }
  static void tally(const V* masks, uint64_t* out) {
    for (int k = 0; k < 8; k += 4) {
      const uint32x4_t found = sums(counts(masks + k));
      vst1q_u64(out + k, vaddw_u32(vld1q_u64(out + k), vget_low_u32(found)));
      vst1q_u64(out + k + 2, vaddw_high_u32(vld1q_u64(out + k + 2), found));
    }
  }
  // No carry goes from the low half into the high one.
  static void add_twice(uint64_t* state, uint32x4_t found) {
    auto* const halves = reinterpret_cast<uint32_t*>(state);
    vst1q_u32(halves, vaddq_u32(vld1q_u32(halves), vzip1q_u32(found, found)));
    vst1q_u32(halves + 4, vaddq_u32(vld1q_u32(halves + 4), vzip2q_u32(found, found)));
  }
  static void pass(const V* masks, uint64_t* state) {
    for (int k = 0; k < 8; k += 4) add_twice(state + k, sums(counts(masks + k)));
  }
  static void turn(const V* masks, uint64_t* state, uint32_t* before, uint8_t* inside) {
    for (int k = 0; k < 8; k += 4) {
      const uint8x16_t bytes = counts(masks + k);
      uint32x4_t sum = vshlq_n_u32(vreinterpretq_u32_u8(bytes), 8);  // words before each word
      sum = vaddq_u32(sum, vshlq_n_u32(sum, 8));
      sum = vaddq_u32(sum, vshlq_n_u32(sum, 16));
      vst1q_u8(inside + k * words, vreinterpretq_u8_u32(sum));
      const auto* const halves = reinterpret_cast<const uint32_t*>(state + k);
      vst1q_u32(before + k, vuzp1q_u32(vld1q_u32(halves), vld1q_u32(halves + 4)));
      add_twice(state + k, sums(bytes));
    }
  }

  template <int shift>
  static uint64x2_t swap(uint64x2_t x, uint64_t chosen) {
    const uint64x2_t t = vandq_u64(veorq_u64(x, vshrq_n_u64(x, shift)), vdupq_n_u64(chosen));
    return veorq_u64(x, veorq_u64(t, vshlq_n_u64(t, shift)));
  }
  static void put(uint32x4_t x, uint8_t* out) {
    uint64x2_t bits = swap<7>(vreinterpretq_u64_u32(x), 0x00aa00aa00aa00aaull);
    bits = swap<28>(swap<14>(bits, 0x0000cccc0000ccccull), 0x00000000f0f0f0f0ull);
    vst1q_u8(out, vreinterpretq_u8_u64(bits));
  }
  static void unslice(const V* p, uint8_t* out) {
    for (int r = 0; r < 2; ++r) {
      uint16x8_t two[4][2];  // bytes of two planes side by side, then of four, of eight
      for (int k = 0; k < 4; ++k) {
        const uint8x16_t a = vreinterpretq_u8_u64(p[2 * k].val[r]), b = vreinterpretq_u8_u64(p[2 * k + 1].val[r]);
        two[k][0] = vreinterpretq_u16_u8(vzip1q_u8(a, b));
        two[k][1] = vreinterpretq_u16_u8(vzip2q_u8(a, b));
      }
      for (int h = 0; h < 2; ++h) {
        const uint32x4_t a = vreinterpretq_u32_u16(vzip1q_u16(two[0][h], two[1][h]));
        const uint32x4_t b = vreinterpretq_u32_u16(vzip1q_u16(two[2][h], two[3][h]));
        const uint32x4_t c = vreinterpretq_u32_u16(vzip2q_u16(two[0][h], two[1][h]));
        const uint32x4_t d = vreinterpretq_u32_u16(vzip2q_u16(two[2][h], two[3][h]));
        uint8_t* const to = out + 128 * r + 64 * h;
        put(vzip1q_u32(a, b), to);
        put(vzip2q_u32(a, b), to + 16);
        put(vzip1q_u32(c, d), to + 32);
        put(vzip2q_u32(c, d), to + 48);
      }
    }
  }

  // One bit for each of 64 bytes, all ones or all zeros.
  static uint64_t gather(const uint8x16_t* set) {
    const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(vandq_u8(set[0], bits), vandq_u8(set[1], bits)),
                                       vpaddq_u8(vandq_u8(set[2], bits), vandq_u8(set[3], bits)));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
  }
  static uint64_t take(uint8_t* bytes) {
    uint8x16_t set[4];
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t x = vld1q_u8(bytes + 16 * i);
      set[i] = vtstq_u8(x, x);
      vst1q_u8(bytes + 16 * i, vdupq_n_u8(0));
    }
    return gather(set);
  }
  static uint64_t meet(const uint64_t* sets, uint64_t wanted) {
    const uint64x2_t some = vdupq_n_u64(wanted);
    const auto two = [&](int i) { return vreinterpretq_u32_u64(vtstq_u64(vld1q_u64(sets + i), some)); };
    uint8x16_t set[4];
    for (int i = 0; i < 4; ++i) {
      uint16x8_t eight[2];
      for (int h = 0; h < 2; ++h) {
        const int at = 16 * i + 8 * h;
        const uint32x4_t a = vuzp1q_u32(two(at), two(at + 2)), b = vuzp1q_u32(two(at + 4), two(at + 6));
        eight[h] = vuzp1q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
      }
      set[i] = vuzp1q_u8(vreinterpretq_u8_u16(eight[0]), vreinterpretq_u8_u16(eight[1]));
    }
    return gather(set);
  }

  static int64_t positions(const uint64_t* bits, uint16_t at, uint16_t* out) {
    return scalar_positions<words>(bits, at, out);
  }
  static void ratios(const uint16_t* places, int64_t count, int64_t number, int64_t at, double* parts) {
    const double first[2] = {static_cast<double>(number + 1), static_cast<double>(number + 2)};
    const float64x2_t base = vdupq_n_f64(static_cast<double>(at + 1)), eight = vdupq_n_f64(8);
    float64x2_t up[4], sum[4];
    for (int h = 0; h < 4; ++h) {
      up[h] = vaddq_f64(vld1q_f64(first), vdupq_n_f64(2 * h));
      sum[h] = vld1q_f64(parts + 2 * h);
    }
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const uint16x8_t here = vld1q_u16(places + i);
      const uint32x4_t half[2] = {vmovl_u16(vget_low_u16(here)), vmovl_high_u16(here)};
      for (int h = 0; h < 4; ++h) {
        const uint32x4_t four = half[h / 2];
        const float64x2_t rank = vcvtq_f64_u64(h % 2 ? vmovl_high_u32(four) : vmovl_u32(vget_low_u32(four)));
        sum[h] = vaddq_f64(sum[h], vdivq_f64(up[h], vaddq_f64(rank, base)));
        up[h] = vaddq_f64(up[h], eight);
      }
    }
    for (int h = 0; h < 4; ++h) vst1q_f64(parts + 2 * h, sum[h]);
    for (; i < count; ++i)
      parts[i % 8] += static_cast<double>(number + i + 1) / static_cast<double>(at + places[i] + 1);
  }
};

}  // namespace

const SliceKernels& neon_slices() {
  static constexpr SliceKernels kernels = make_slices<NeonSlices>();
  return kernels;
}

}  // namespace nhl::hamming
#endif
