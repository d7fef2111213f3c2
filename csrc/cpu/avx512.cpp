// AVX-512 bodies on VPOPCNTDQ: vpopcntd has latency 3 on Ice Lake (1 a clock) and 2 on Zen 4 and 5 (2 a clock).
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,popcnt")

#include "body.inl"

namespace nhl {
namespace {

struct Avx512 {
  using V = __m512i;
  static constexpr int lanes = 16, flush = 1 << 30;
  static constexpr uint32_t all = 0xffff;
  static V load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static V set1(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static V xor_(V a, V b) { return _mm512_xor_si512(a, b); }
  static V and_(V a, uint32_t mask) { return _mm512_and_si512(a, set1(mask)); }
  static V add(V a, V b) { return _mm512_add_epi32(a, b); }
  static V count(V x) { return _mm512_popcnt_epi32(x); }
  static V finish(V x) { return x; }
  static uint32_t below(V d, V limit) { return _mm512_cmplt_epu32_mask(d, limit); }
  // Compressed in a register first: vpcompressd to memory is microcoded on Zen.
  static int64_t compress(uint32_t mask, V d, uint32_t at, uint32_t* out_d, uint32_t* out_p) {
    const V iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 m = static_cast<__mmask16>(mask);
    _mm512_storeu_si512(out_d, _mm512_maskz_compress_epi32(m, d));
    _mm512_storeu_si512(out_p, _mm512_maskz_compress_epi32(m, add(iota, set1(at))));
    return __builtin_popcount(mask);
  }
  static void store16(uint16_t* p, V d) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(d));
  }
  static V rows4(const uint8_t* r, int64_t s) {
    const auto row = [=](int64_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(r + i * s)); };
    V x = _mm512_castsi128_si512(row(0));
    x = _mm512_inserti32x4(x, row(4), 1);
    x = _mm512_inserti32x4(x, row(8), 2);
    return _mm512_inserti32x4(x, row(12), 3);
  }
  // Quarter loads never cross a cache line where rows are 16-byte aligned; whole vectors would, and are slower.
  static void transpose4(const uint8_t* r, int64_t s, uint32_t* out, int64_t pitch) {
    const V a = rows4(r, s), b = rows4(r + s, s), c = rows4(r + 2 * s, s), d = rows4(r + 3 * s, s);
    const V ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
    const V cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(ab0, cd0));
    _mm512_storeu_si512(out + pitch, _mm512_unpackhi_epi64(ab0, cd0));
    _mm512_storeu_si512(out + 2 * pitch, _mm512_unpacklo_epi64(ab1, cd1));
    _mm512_storeu_si512(out + 3 * pitch, _mm512_unpackhi_epi64(ab1, cd1));
  }
  static void transpose2(const uint8_t* r, uint32_t* out, int64_t pitch) {
    const V even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const V odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const V a = _mm512_loadu_si512(r), b = _mm512_loadu_si512(r + 64);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi32(a, even, b));
    _mm512_storeu_si512(out + pitch, _mm512_permutex2var_epi32(a, odd, b));
  }
  static uint32_t positive(V x, uint32_t infinity) {
    return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(x, set1(1)), set1(infinity));
  }
  static uint32_t positive16(const uint16_t* x, uint16_t infinity) {
    const V wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    return positive(wide, infinity);
  }
  static uint32_t positive32(const uint32_t* x, uint32_t infinity) { return positive(load(x), infinity); }
};

}  // namespace

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = make_kernels<Avx512>();
  return kernels;
}

}  // namespace nhl

#pragma GCC pop_options
#endif
