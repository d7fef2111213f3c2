// AVX2 bodies: nibble look-up population count (2 vpshufb, 1 clock each on 1 to 2 ports) over bytes, widened to
// 32-bit lanes once a code (vpmaddubsw, vpmaddwd: 5 clocks latency, 1 a clock).
#include "../../common/target.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

NHL_TARGET("avx2,popcnt")

#include "body.inl"

namespace nhl::hamming {
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
  // Rows from words: byte counts, folded until a row has 64 bits of them, summed, and two vectors merged.
  template <int S>
  static V repeat(const uint32_t* row) {
    if constexpr (S == 4) return set1(row[0]);
    if constexpr (S == 8) return _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row)));
    if constexpr (S == 16)
      return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
    if constexpr (S == 32) return load(row);
  }
  static V count8(const uint8_t* p, V q, V mask) {
    const V x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return count(_mm256_and_si256(_mm256_xor_si256(x, q), mask));
  }
  static V fold16(const uint8_t* p, V q, V mask) {  // rows 0 2 1 3
    const V a = count8(p, q, mask), b = count8(p + 32, q, mask);
    return _mm256_add_epi8(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  }
  static V fold32(const uint8_t* p, V q, V mask) {
    const V a = fold16(p, q, mask), b = fold16(p + 64, q, mask);
    return _mm256_add_epi8(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  }
  static V merge(V a, V b) {
    const V zero = _mm256_setzero_si256();
    return _mm256_or_si256(_mm256_sad_epu8(a, zero), _mm256_slli_epi64(_mm256_sad_epu8(b, zero), 32));
  }
  template <int S>
  static V rows(const uint8_t* p, V q, V mask) {
    if constexpr (S == 4) return finish(count8(p, q, mask));
    if constexpr (S == 8) return merge(count8(p, q, mask), count8(p + 32, q, mask));
    if constexpr (S == 16) return merge(fold16(p, q, mask), fold16(p + 64, q, mask));
    if constexpr (S == 32) return merge(fold32(p, q, mask), fold32(p + 128, q, mask));
  }
  template <int S>
  static V in_order(V d) {
    if constexpr (S == 4) return d;
    V at = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    if constexpr (S == 16) at = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
    return _mm256_permutevar8x32_epi32(d, at);
  }
  static uint64_t nonzero64(const uint8_t* p) {
    const V zero = _mm256_setzero_si256();
    const V a = _mm256_cmpeq_epi8(load(reinterpret_cast<const uint32_t*>(p)), zero);
    const V b = _mm256_cmpeq_epi8(load(reinterpret_cast<const uint32_t*>(p + 32)), zero);
    const uint64_t low = static_cast<uint32_t>(_mm256_movemask_epi8(a));
    return ~(static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(b))) << 32 | low);
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

}  // namespace nhl::hamming

NHL_TARGET_END
#endif
