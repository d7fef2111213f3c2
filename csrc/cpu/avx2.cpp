// AVX2 bodies: nibble look-up population count (2 vpshufb, 1 clock each on 1 to 2 ports) over bytes, widened to
// 32-bit lanes once a code (vpmaddubsw, vpmaddwd: 5 clocks latency, 1 a clock).
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,popcnt")

#include "body.inl"

namespace nhl {
namespace {

struct Avx2 {
  using V = __m256i;
  static constexpr int lanes = 8;
  static constexpr int flush = 31;  // byte counters: 31 * 8 < 256
  static constexpr uint32_t all = 0xff;
  static V load(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static V set1(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static V xor_(V a, V b) { return _mm256_xor_si256(a, b); }
  static V and_(V a, uint32_t mask) { return _mm256_and_si256(a, set1(mask)); }
  static V add(V a, V b) { return _mm256_add_epi32(a, b); }  // no carry leaves a byte before `flush`
  static V count(V x) {
    const V low = _mm256_set1_epi8(15);
    const V table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                     2, 3, 2, 3, 3, 4);
    return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
                           _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
  }
  static V finish(V bytes) {
    const V pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static uint32_t below(V d, V limit) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, d))));
  }
  static int64_t compress(uint32_t mask, V d, uint32_t at, uint32_t* out_d, uint32_t* out_p) {
    alignas(32) uint32_t lane[lanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), d);
    int64_t n = 0;
    for (; mask; mask &= mask - 1, ++n) {
      const uint32_t i = static_cast<uint32_t>(__builtin_ctz(mask));
      out_d[n] = lane[i];
      out_p[n] = at + i;
    }
    return n;
  }
  static void store16(uint16_t* p, V d) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(d, d), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static V rows2(const uint8_t* a, const uint8_t* b) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1);
  }
  static void transpose4(const uint8_t* r, int64_t s, uint32_t* out, int64_t pitch) {
    const V a = rows2(r, r + 4 * s), b = rows2(r + s, r + 5 * s), c = rows2(r + 2 * s, r + 6 * s),
            d = rows2(r + 3 * s, r + 7 * s);
    const V ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b);
    const V cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);
    store(out, _mm256_unpacklo_epi64(ab0, cd0));
    store(out + pitch, _mm256_unpackhi_epi64(ab0, cd0));
    store(out + 2 * pitch, _mm256_unpacklo_epi64(ab1, cd1));
    store(out + 3 * pitch, _mm256_unpackhi_epi64(ab1, cd1));
  }
  static void transpose2(const uint8_t* r, uint32_t* out, int64_t pitch) {
    const __m256 a = _mm256_castsi256_ps(load(reinterpret_cast<const uint32_t*>(r)));
    const __m256 b = _mm256_castsi256_ps(load(reinterpret_cast<const uint32_t*>(r + 32)));
    store(out, _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
    store(out + pitch, _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
  }
  static void store(uint32_t* p, V x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static uint32_t positive(V x, uint32_t infinity) {
    const V above = _mm256_cmpgt_epi32(x, _mm256_setzero_si256());
    return static_cast<uint32_t>(_mm256_movemask_ps(
        _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpgt_epi32(x, set1(infinity)), above))));
  }
  static uint32_t positive16(const uint16_t* x, uint16_t infinity) {
    const V wide = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return positive(wide, infinity);
  }
  static uint32_t positive32(const uint32_t* x, uint32_t infinity) { return positive(load(x), infinity); }
};

}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = make_kernels<Avx2>();
  return kernels;
}

}  // namespace nhl

#pragma GCC pop_options
#endif
