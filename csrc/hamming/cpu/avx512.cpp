// AVX-512 bodies on VPOPCNTDQ: vpopcntd has latency 3 on Ice Lake (1 a clock) and 2 on Zen 4 and 5 (2 a clock).
#include "../../common/target.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

NHL_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,popcnt")

#include "body.inl"

namespace nhl::hamming {
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
  // Rows from words: sums of 64-bit lanes, folded until a row has one, and two vectors of those merged.
  template <int S>
  static V repeat(const uint32_t* row) {
    if constexpr (S == 4) return set1(row[0]);
    if constexpr (S == 8) return _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row)));
    if constexpr (S == 16) return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
    if constexpr (S == 32) return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
  }
  static V differences(const uint8_t* p, V q, V mask) {  // (row ^ q) & mask
    return _mm512_ternarylogic_epi64(_mm512_loadu_si512(p), q, mask, 0x28);
  }
  static V count64(const uint8_t* p, V q, V mask) { return _mm512_popcnt_epi64(differences(p, q, mask)); }
  static V fold16(const uint8_t* p, V q, V mask) {  // rows 0 to 3 in the even lanes, 4 to 7 in the odd ones
    const V a = count64(p, q, mask), b = count64(p + 64, q, mask);
    return _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
  static V fold32(const uint8_t* p, V q, V mask) {  // rows 0 2 1 3 4 6 5 7
    const V a = fold16(p, q, mask), b = fold16(p + 128, q, mask);
    return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
  }
  static V merge(V a, V b) { return _mm512_or_si512(a, _mm512_slli_epi64(b, 32)); }
  template <int S>
  static V rows(const uint8_t* p, V q, V mask) {
    if constexpr (S == 4) return count(differences(p, q, mask));
    if constexpr (S == 8) return merge(count64(p, q, mask), count64(p + 64, q, mask));
    if constexpr (S == 16) return merge(fold16(p, q, mask), fold16(p + 128, q, mask));
    if constexpr (S == 32) return merge(fold32(p, q, mask), fold32(p + 256, q, mask));
  }
  template <int S>
  static V in_order(V d) {
    if constexpr (S == 4) return d;
    V at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    if constexpr (S == 16) at = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
    if constexpr (S == 32) at = _mm512_setr_epi32(0, 4, 2, 6, 8, 12, 10, 14, 1, 5, 3, 7, 9, 13, 11, 15);
    return _mm512_permutexvar_epi32(at, d);
  }
  static uint64_t nonzero64(const uint8_t* p) {
    const V x = _mm512_loadu_si512(p);
    return _mm512_test_epi8_mask(x, x);
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

}  // namespace nhl::hamming

NHL_TARGET_END
#endif
