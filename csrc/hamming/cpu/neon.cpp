// NEON bodies, a baseline of 64-bit ARM: byte counts by cnt (1 clock on 2 ports or more), widened to 32-bit lanes once
// a code (uaddlp twice). A vector here is two registers, so that packing has whole bytes.
#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "body.inl"

namespace nhl::hamming {
namespace {

struct Neon {
  using V = uint32x4x2_t;
  static constexpr int lanes = 8;
  static constexpr int flush = 31;  // byte counters: 31 * 8 < 256
  static constexpr uint32_t all = 0xff;
  static V load(const uint32_t* p) { return {{vld1q_u32(p), vld1q_u32(p + 4)}}; }
  static V set1(uint32_t x) { return {{vdupq_n_u32(x), vdupq_n_u32(x)}}; }
  static V xor_(V a, V b) { return {{veorq_u32(a.val[0], b.val[0]), veorq_u32(a.val[1], b.val[1])}}; }
  static V and_(V a, uint32_t mask) {
    return {{vandq_u32(a.val[0], vdupq_n_u32(mask)), vandq_u32(a.val[1], vdupq_n_u32(mask))}};
  }
  static V add(V a, V b) {  // no carry leaves a byte before `flush`
    return {{vaddq_u32(a.val[0], b.val[0]), vaddq_u32(a.val[1], b.val[1])}};
  }
  static uint32x4_t count4(uint32x4_t x) { return vreinterpretq_u32_u8(vcntq_u8(vreinterpretq_u8_u32(x))); }
  static uint32x4_t sum_bytes(uint8x16_t bytes) { return vpaddlq_u16(vpaddlq_u8(bytes)); }
  static V count(V x) { return {{count4(x.val[0]), count4(x.val[1])}}; }
  static V finish(V x) {
    return {{sum_bytes(vreinterpretq_u8_u32(x.val[0])), sum_bytes(vreinterpretq_u8_u32(x.val[1]))}};
  }
  // One bit a lane of two comparisons' results.
  static uint32_t mask(uint32x4_t low, uint32x4_t high) {
    const uint32x4_t first = {1, 2, 4, 8}, second = {16, 32, 64, 128};
    return vaddvq_u32(vorrq_u32(vandq_u32(low, first), vandq_u32(high, second)));
  }
  static uint32_t below(V d, V limit) {
    return mask(vcltq_u32(d.val[0], limit.val[0]), vcltq_u32(d.val[1], limit.val[1]));
  }
  static int64_t compress(uint32_t mask, V d, uint32_t at, uint32_t* out_d, uint32_t* out_p) {
    uint32_t lane[lanes];
    store(lane, d);
    int64_t n = 0;
    for (; mask; mask &= mask - 1, ++n) {
      const uint32_t i = static_cast<uint32_t>(__builtin_ctz(mask));
      out_d[n] = lane[i];
      out_p[n] = at + i;
    }
    return n;
  }
  static void store(uint32_t* p, V x) {
    vst1q_u32(p, x.val[0]);
    vst1q_u32(p + 4, x.val[1]);
  }
  static void store16(uint16_t* p, V d) { vst1q_u16(p, vcombine_u16(vmovn_u32(d.val[0]), vmovn_u32(d.val[1]))); }
  static uint32x4_t row(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
  static uint32x4_t low(uint32x4_t a, uint32x4_t b) {
    return vreinterpretq_u32_u64(vtrn1q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)));
  }
  static uint32x4_t high(uint32x4_t a, uint32x4_t b) {
    return vreinterpretq_u32_u64(vtrn2q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)));
  }
  static void transpose4(const uint8_t* r, int64_t s, uint32_t* out, int64_t pitch) {
    for (int64_t i = 0; i < lanes; i += 4, r += 4 * s, out += 4) {
      const uint32x4_t a = row(r), b = row(r + s), c = row(r + 2 * s), d = row(r + 3 * s);
      const uint32x4_t ab0 = vtrn1q_u32(a, b), ab1 = vtrn2q_u32(a, b), cd0 = vtrn1q_u32(c, d), cd1 = vtrn2q_u32(c, d);
      vst1q_u32(out, low(ab0, cd0));
      vst1q_u32(out + pitch, low(ab1, cd1));
      vst1q_u32(out + 2 * pitch, high(ab0, cd0));
      vst1q_u32(out + 3 * pitch, high(ab1, cd1));
    }
  }
  static void transpose2(const uint8_t* r, uint32_t* out, int64_t pitch) {
    for (int64_t i = 0; i < lanes; i += 4) {
      const uint32x4_t a = row(r + 8 * i), b = row(r + 8 * i + 16);
      vst1q_u32(out + i, vuzp1q_u32(a, b));
      vst1q_u32(out + pitch + i, vuzp2q_u32(a, b));
    }
  }
  // Rows from words: byte counts of neighbours are added until a row has 32 bits of them.
  template <int S>
  static V repeat(const uint32_t* r) {
    if constexpr (S == 4) return set1(r[0]);
    if constexpr (S == 8) {
      const uint32x2_t two = vld1_u32(r);
      return {{vcombine_u32(two, two), vcombine_u32(two, two)}};
    }
    if constexpr (S == 16) return {{vld1q_u32(r), vld1q_u32(r)}};
    if constexpr (S == 32) return load(r);
  }
  static uint8x16_t count16(const uint8_t* p, uint32x4_t q, uint32x4_t mask) {
    return vcntq_u8(vreinterpretq_u8_u32(vandq_u32(veorq_u32(row(p), q), mask)));
  }
  // Byte counts of four rows, four bytes each.
  template <int S>
  static uint8x16_t four(const uint8_t* p, V q, V m) {
    if constexpr (S == 4) return count16(p, q.val[0], m.val[0]);
    if constexpr (S == 8)
      return vpaddq_u8(count16(p, q.val[0], m.val[0]), count16(p + 16, q.val[0], m.val[0]));
    if constexpr (S >= 16) {
      uint8x16_t rows[4];
      for (int i = 0; i < 4; ++i) {
        rows[i] = count16(p + i * S, q.val[0], m.val[0]);
        if constexpr (S == 32) rows[i] = vaddq_u8(rows[i], count16(p + i * S + 16, q.val[1], m.val[1]));
      }
      return vpaddq_u8(vpaddq_u8(rows[0], rows[1]), vpaddq_u8(rows[2], rows[3]));
    }
  }
  template <int S>
  static V rows(const uint8_t* p, V q, V m) {
    return {{sum_bytes(four<S>(p, q, m)), sum_bytes(four<S>(p + 4 * S, q, m))}};
  }
  template <int S>
  static V in_order(V d) {
    return d;
  }
  static uint64_t nonzero64(const uint8_t* p) {
    const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t set[4];
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t x = vld1q_u8(p + 16 * i);
      set[i] = vandq_u8(vtstq_u8(x, x), bits);
    }
    const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(set[0], set[1]), vpaddq_u8(set[2], set[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
  }
  static uint32x4_t positive4(int32x4_t x, int32x4_t infinity) {
    return vandq_u32(vcgtq_s32(x, vdupq_n_s32(0)), vcleq_s32(x, infinity));
  }
  static uint32_t positive16(const uint16_t* x, uint16_t infinity) {
    const int16x8_t value = vreinterpretq_s16_u16(vld1q_u16(x));
    const int32x4_t most = vdupq_n_s32(infinity);
    return mask(positive4(vmovl_s16(vget_low_s16(value)), most), positive4(vmovl_s16(vget_high_s16(value)), most));
  }
  static uint32_t positive32(const uint32_t* x, uint32_t infinity) {
    const V value = load(x);
    const int32x4_t most = vdupq_n_s32(static_cast<int32_t>(infinity));
    return mask(positive4(vreinterpretq_s32_u32(value.val[0]), most),
                positive4(vreinterpretq_s32_u32(value.val[1]), most));
  }
};

}  // namespace

const Kernels& neon_kernels() {
  static constexpr Kernels kernels = make_kernels<Neon>();
  return kernels;
}

}  // namespace nhl::hamming
#endif
