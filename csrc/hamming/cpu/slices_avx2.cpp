// AVX2 bodies of the bit-sliced kernels: 256 items a block. A full adder is five operations; population counts look up
// nibbles, and vpsadbw sums the bytes of a word.
#include "../../common/target.h"
#include "slices.h"

#if defined(__x86_64__)
#include <immintrin.h>

NHL_TARGET("avx2,popcnt")

#include "slices.inl"

namespace nhl::hamming {
namespace {

struct Avx2Slices {
  using V = __m256i;
  static constexpr int64_t words = 4;
  static V load(const void* p) { return _mm256_loadu_si256(static_cast<const V*>(p)); }
  static void store(void* p, V x) { _mm256_storeu_si256(static_cast<V*>(p), x); }
  static V fill(uint64_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
  static V and_(V a, V b) { return _mm256_and_si256(a, b); }
  static V without(V a, V b) { return _mm256_andnot_si256(b, a); }
  static V or_(V a, V b) { return _mm256_or_si256(a, b); }
  static V xor_(V a, V b) { return _mm256_xor_si256(a, b); }
  static V add(V a, V b, V c, V& carry) {
    const V half = xor_(a, b);
    carry = or_(and_(a, b), and_(half, c));
    return xor_(half, c);
  }
  static bool any(V x) { return _mm256_testz_si256(x, x) == 0; }

  // Lane w: ones of word w.
  static V ones(V x) {
    const V low = _mm256_set1_epi8(15);
    const V table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                     2, 3, 2, 3, 3, 4);
    const V bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, and_(x, low)),
                                    _mm256_shuffle_epi8(table, and_(_mm256_srli_epi16(x, 4), low)));
    return _mm256_sad_epu8(bytes, _mm256_setzero_si256());
  }
  // Byte w of 32-bit lane k: ones of word w of masks[k].
  static V counts(const V* masks) {
    V bytes = ones(masks[0]);  // byte k of lane w
#pragma GCC unroll 8
    for (int k = 1; k < 8; ++k) bytes = or_(bytes, _mm256_slli_epi64(ones(masks[k]), 8 * k));
    const V pairs = _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 0, 8, 1, 9, 2, 10, 3, 11, 4,
                                     12, 5, 13, 6, 14, 7, 15);
    bytes = _mm256_shuffle_epi8(bytes, pairs);
    const __m128i front = _mm256_castsi256_si128(bytes), back = _mm256_extracti128_si256(bytes, 1);
    return _mm256_set_m128i(_mm_unpackhi_epi16(front, back), _mm_unpacklo_epi16(front, back));
  }
  // Eight sums of four bytes.
  static V sums(V bytes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
  }
  static V low4(V x) { return _mm256_cvtepu32_epi64(_mm256_castsi256_si128(x)); }
  static V high4(V x) { return _mm256_cvtepu32_epi64(_mm256_extracti128_si256(x, 1)); }
  static void tally(const V* masks, uint64_t* out) {
    const V found = sums(counts(masks));
    store(out, _mm256_add_epi64(load(out), low4(found)));
    store(out + 4, _mm256_add_epi64(load(out + 4), high4(found)));
  }
  static void add_twice(uint64_t* state, V found) {
    const V a = low4(found), b = high4(found);
    store(state, _mm256_add_epi32(load(state), or_(a, _mm256_slli_epi64(a, 32))));
    store(state + 4, _mm256_add_epi32(load(state + 4), or_(b, _mm256_slli_epi64(b, 32))));
  }
  static void pass(const V* masks, uint64_t* state) { add_twice(state, sums(counts(masks))); }
  static void turn(const V* masks, uint64_t* state, uint32_t* before, uint8_t* inside) {
    const V bytes = counts(masks);
    V sum = _mm256_slli_epi32(bytes, 8);  // words before each word
    sum = _mm256_add_epi32(sum, _mm256_slli_epi32(sum, 8));
    sum = _mm256_add_epi32(sum, _mm256_slli_epi32(sum, 16));
    store(inside, sum);
    const __m256 halves = _mm256_shuffle_ps(_mm256_castsi256_ps(load(state)), _mm256_castsi256_ps(load(state + 4)), 0x88);
    store(before, _mm256_permute4x64_epi64(_mm256_castps_si256(halves), 0xd8));
    add_twice(state, sums(bytes));
  }

  static V transpose_bits(V x) {
    V t = and_(xor_(x, _mm256_srli_epi64(x, 7)), fill(0x00aa00aa00aa00aaull));
    x = xor_(x, xor_(t, _mm256_slli_epi64(t, 7)));
    t = and_(xor_(x, _mm256_srli_epi64(x, 14)), fill(0x0000cccc0000ccccull));
    x = xor_(x, xor_(t, _mm256_slli_epi64(t, 14)));
    t = and_(xor_(x, _mm256_srli_epi64(x, 28)), fill(0x00000000f0f0f0f0ull));
    return xor_(x, xor_(t, _mm256_slli_epi64(t, 28)));
  }
  static void unslice(const V* p, uint8_t* out) {
    V two[8], four[8];  // bytes of two planes side by side, then of four, of eight
    for (int k = 0; k < 4; ++k) {
      two[2 * k] = _mm256_unpacklo_epi8(p[2 * k], p[2 * k + 1]);
      two[2 * k + 1] = _mm256_unpackhi_epi8(p[2 * k], p[2 * k + 1]);
    }
    for (int k = 0; k < 2; ++k)
      for (int h = 0; h < 2; ++h) {
        four[4 * k + 2 * h] = _mm256_unpacklo_epi16(two[4 * k + h], two[4 * k + 2 + h]);
        four[4 * k + 2 * h + 1] = _mm256_unpackhi_epi16(two[4 * k + h], two[4 * k + 2 + h]);
      }
    for (int v = 0; v < 4; ++v) {
      put(_mm256_unpacklo_epi32(four[v], four[4 + v]), out + 32 * v);
      put(_mm256_unpackhi_epi32(four[v], four[4 + v]), out + 32 * v + 16);
    }
  }
  static void put(V x, uint8_t* out) {
    const V bytes = transpose_bits(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 128), _mm256_extracti128_si256(bytes, 1));
  }

  static uint32_t take32(uint8_t* bytes) {
    const V x = load(bytes);
    store(bytes, _mm256_setzero_si256());
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(x, 7)));
  }
  static uint64_t take(uint8_t* bytes) { return take32(bytes) | static_cast<uint64_t>(take32(bytes + 32)) << 32; }
  static uint64_t meet(const uint64_t* sets, uint64_t wanted) {
    uint64_t apart = 0;
    for (int i = 0; i < 16; ++i) {
      const V none = _mm256_cmpeq_epi64(and_(load(sets + 4 * i), fill(wanted)), _mm256_setzero_si256());
      apart |= static_cast<uint64_t>(_mm256_movemask_pd(_mm256_castsi256_pd(none))) << (4 * i);
    }
    return ~apart;
  }

  static int64_t positions(const uint64_t* bits, uint16_t at, uint16_t* out) {
    return scalar_positions<words>(bits, at, out);
  }
  static __m256d ranks(const uint16_t* places, __m256d first) {
    const __m128i four = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places)));
    return _mm256_add_pd(_mm256_cvtepi32_pd(four), first);
  }
  static void ratios(const uint16_t* places, int64_t count, int64_t number, int64_t at, double* parts) {
    const __m256d first = _mm256_set1_pd(static_cast<double>(at + 1)), eight = _mm256_set1_pd(8);
    __m256d up[2] = {_mm256_setr_pd(1, 2, 3, 4), _mm256_setr_pd(5, 6, 7, 8)}, sum[2], left[2];
    for (int h = 0; h < 2; ++h) {
      left[h] = _mm256_sub_pd(_mm256_set1_pd(static_cast<double>(count)), up[h]);  // negative where there is none
      up[h] = _mm256_add_pd(up[h], _mm256_set1_pd(static_cast<double>(number)));
      sum[h] = _mm256_loadu_pd(parts + 4 * h);
    }
    for (int64_t i = 0; i < count; i += 8)
      for (int h = 0; h < 2; ++h) {
        const __m256d ratio = _mm256_div_pd(up[h], ranks(places + i + 4 * h, first));
        sum[h] = _mm256_add_pd(sum[h], _mm256_blendv_pd(ratio, _mm256_setzero_pd(), left[h]));
        up[h] = _mm256_add_pd(up[h], eight);
        left[h] = _mm256_sub_pd(left[h], eight);
      }
    for (int h = 0; h < 2; ++h) _mm256_storeu_pd(parts + 4 * h, sum[h]);
  }
};

}  // namespace

const SliceKernels& avx2_slices() {
  static constexpr SliceKernels kernels = make_slices<Avx2Slices>();
  return kernels;
}

}  // namespace nhl::hamming

NHL_TARGET_END
#endif
