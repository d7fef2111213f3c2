// Scalar bodies: popcnt, one 32-bit word a clock or more (1 popcnt a clock on Intel since Nehalem, 4 on Zen).
// Also what runs on other architectures, where the compiler turns these loops into its own vector counts.
#include <type_traits>

#include "../../common/numbers.h"
#include "../../common/target.h"
#include "kernels.h"

#if defined(__x86_64__)
NHL_TARGET("popcnt")
#endif

#include "body.inl"

namespace nhl::hamming {
namespace {

struct Scalar {
  static constexpr int lanes = 8, flush = 1 << 30;
  static constexpr uint32_t all = 0xff;
  struct V {
    uint32_t lane[8];
  };
  template <class F>
  static V each(F f) {
    V out;
    for (int i = 0; i < lanes; ++i) out.lane[i] = f(i);
    return out;
  }
  static V load(const uint32_t* p) {
    return each([=](int i) { return p[i]; });
  }
  static V set1(uint32_t x) {
    return each([=](int) { return x; });
  }
  static V xor_(const V& a, const V& b) {
    return each([&](int i) { return a.lane[i] ^ b.lane[i]; });
  }
  static V and_(const V& a, uint32_t mask) {
    return each([&](int i) { return a.lane[i] & mask; });
  }
  static V add(const V& a, const V& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static V count(const V& a) {
    return each([&](int i) { return static_cast<uint32_t>(__builtin_popcount(a.lane[i])); });
  }
  static V finish(const V& a) { return a; }
  static uint32_t below(const V& d, const V& limit) {
    uint32_t mask = 0;
    for (int i = 0; i < lanes; ++i) mask |= static_cast<uint32_t>(d.lane[i] < limit.lane[i]) << i;
    return mask;
  }
  static int64_t compress(uint32_t mask, const V& d, uint32_t at, uint32_t* out_d, uint32_t* out_p) {
    int64_t n = 0;
    for (; mask; mask &= mask - 1, ++n) {
      const uint32_t i = static_cast<uint32_t>(__builtin_ctz(mask));
      out_d[n] = d.lane[i];
      out_p[n] = at + i;
    }
    return n;
  }
  static void store16(uint16_t* p, const V& d) {
    for (int i = 0; i < lanes; ++i) p[i] = static_cast<uint16_t>(d.lane[i]);
  }
  static void transpose4(const uint8_t* rows, int64_t stride, uint32_t* out, int64_t pitch) {
    for (int i = 0; i < lanes; ++i)
      for (int j = 0; j < 4; ++j) __builtin_memcpy(out + j * pitch + i, rows + i * stride + 4 * j, 4);
  }
  static void transpose2(const uint8_t* rows, uint32_t* out, int64_t pitch) {
    for (int i = 0; i < lanes; ++i)
      for (int j = 0; j < 2; ++j) __builtin_memcpy(out + j * pitch + i, rows + 8 * i + 4 * j, 4);
  }
  // Here rows are in order, and a query is read where it lies.
  template <int S>
  static V repeat(const uint32_t* row) {
    V out{};
    __builtin_memcpy(out.lane, row, S);
    return out;
  }
  template <int S>
  static V rows(const uint8_t* p, const V& q, const V& mask) {
    return each([&](int i) {
      using Word = std::conditional_t<S % 8 == 0, uint64_t, uint32_t>;
      uint32_t d = 0;
      for (int at = 0; at < S; at += sizeof(Word)) {
        Word row, query, bits;
        __builtin_memcpy(&row, p + i * S + at, sizeof(Word));
        __builtin_memcpy(&query, q.lane + at / 4, sizeof(Word));
        __builtin_memcpy(&bits, mask.lane + at / 4, sizeof(Word));
        d += static_cast<uint32_t>(__builtin_popcountll((row ^ query) & bits));
      }
      return d;
    });
  }
  template <int S>
  static V in_order(const V& d) {
    return d;
  }
  static uint64_t nonzero64(const uint8_t* p) {
    uint8_t set[64];
    for (int i = 0; i < 64; ++i) set[i] = p[i] != 0;
    uint64_t bits = 0;
    for (int byte = 0; byte < 8; ++byte) {
      uint64_t eight;
      __builtin_memcpy(&eight, set + 8 * byte, 8);
      bits |= gather_bits(eight) << (8 * byte);
    }
    return bits;
  }
  template <class T>
  static uint32_t positive(const T* x, T infinity) {
    uint32_t mask = 0;
    for (int i = 0; i < lanes; ++i)
      mask |= static_cast<uint32_t>(static_cast<T>(x[i] - 1) < infinity) << i;
    return mask;
  }
  static uint32_t positive16(const uint16_t* x, uint16_t infinity) { return positive(x, infinity); }
  static uint32_t positive32(const uint32_t* x, uint32_t infinity) { return positive(x, infinity); }
};

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = make_kernels<Scalar>();
  return kernels;
}

}  // namespace nhl::hamming

#if defined(__x86_64__)
NHL_TARGET_END
#endif
