// AVX-512 bodies of the bit-sliced kernels: 512 items a block. Full adders are two vpternlogq; eight population
// counts become bytes, one vpermb puts each mask's eight words side by side, and vgf2p8affineqb transposes bits.
#include "../../common/target.h"
#include "slices.h"

#if defined(__x86_64__)
#include <immintrin.h>

NHL_TARGET(
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512vbmi,avx512vbmi2,avx512vnni,gfni,bmi,bmi2,popcnt")

#include "slices.inl"

namespace nhl::hamming {
namespace {

struct Avx512Slices {
  using V = __m512i;
  static constexpr int64_t words = 8;
  static V load(const uint64_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint64_t* p, V x) { _mm512_storeu_si512(p, x); }
  static V fill(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
  static V and_(V a, V b) { return _mm512_and_si512(a, b); }
  static V without(V a, V b) { return _mm512_andnot_si512(b, a); }
  static V or_(V a, V b) { return _mm512_or_si512(a, b); }
  static V xor_(V a, V b) { return _mm512_xor_si512(a, b); }
  static V add(V a, V b, V c, V& carry) {
    carry = _mm512_ternarylogic_epi64(a, b, c, 0xe8);
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
  }
  static bool any(V x) { return _mm512_test_epi64_mask(x, x) != 0; }

  // Byte 8 j + i of the result is byte 8 i + j.
  static V transpose_bytes(V x) {
    const V at = _mm512_setr_epi64(0x3830282018100800, 0x3931292119110901, 0x3a322a221a120a02, 0x3b332b231b130b03,
                                   0x3c342c241c140c04, 0x3d352d251d150d05, 0x3e362e261e160e06, 0x3f372f271f170f07);
    return _mm512_permutexvar_epi8(at, x);
  }
  static V or3(V a, V b, V c) { return _mm512_ternarylogic_epi64(a, b, c, 0xfe); }
  // Byte w of lane k: ones of word w of masks[k].
  static V counts(const V* masks) {
    const auto count = [&](int k) { return _mm512_slli_epi64(_mm512_popcnt_epi64(masks[k]), 8 * k); };
    V bytes = or3(_mm512_popcnt_epi64(masks[0]), count(1), count(2));
    bytes = or3(bytes, count(3), count(4));
    bytes = or3(bytes, count(5), count(6));
    return transpose_bytes(or_(bytes, count(7)));
  }
  static void tally(const V* masks, uint64_t* sums) {
    store(sums, _mm512_add_epi64(load(sums), _mm512_sad_epu8(counts(masks), _mm512_setzero_si512())));
  }
  // Items of each half a block, in the two halves of each lane, and what goes before either of them.
  static V halves(V bytes) { return _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes, _mm512_set1_epi8(1)); }
  static V after(V state, V halves) {
    return _mm512_add_epi32(state, _mm512_add_epi32(halves, _mm512_ror_epi64(halves, 32)));
  }
  static void pass(const V* masks, uint64_t* state) { store(state, after(load(state), halves(counts(masks)))); }
  static void turn(const V* masks, uint64_t* state, uint32_t* before, uint8_t* inside) {
    const V bytes = counts(masks), both = halves(bytes), old = load(state);
    V sum = _mm512_slli_epi32(bytes, 8);  // words before each word of its half
    sum = _mm512_add_epi32(sum, _mm512_slli_epi32(sum, 8));
    sum = _mm512_add_epi32(sum, _mm512_slli_epi32(sum, 16));
    _mm512_storeu_si512(inside, sum);
    _mm512_storeu_si512(before, _mm512_add_epi32(old, _mm512_slli_epi64(both, 32)));
    store(state, after(old, both));
  }

  static void unslice(const V* p, uint8_t* out) {
    // Lanes to words: word w of all planes into one vector.
    V even[4], odd[4];
    for (int k = 0; k < 4; ++k) {
      even[k] = _mm512_unpacklo_epi64(p[2 * k], p[2 * k + 1]);
      odd[k] = _mm512_unpackhi_epi64(p[2 * k], p[2 * k + 1]);
    }
    const auto spread = [&](const V* x, uint8_t* to) {
      const V a = _mm512_shuffle_i64x2(x[0], x[1], 0x44), b = _mm512_shuffle_i64x2(x[2], x[3], 0x44);
      const V c = _mm512_shuffle_i64x2(x[0], x[1], 0xee), d = _mm512_shuffle_i64x2(x[2], x[3], 0xee);
      _mm512_storeu_si512(to, bytes_of(_mm512_shuffle_i64x2(a, b, 0x88)));
      _mm512_storeu_si512(to + 128, bytes_of(_mm512_shuffle_i64x2(a, b, 0xdd)));
      _mm512_storeu_si512(to + 256, bytes_of(_mm512_shuffle_i64x2(c, d, 0x88)));
      _mm512_storeu_si512(to + 384, bytes_of(_mm512_shuffle_i64x2(c, d, 0xdd)));
    };
    spread(even, out);
    spread(odd, out + 64);
  }
  // Lane k holds 64 items' bit k: their numbers, a byte each.
  static V bytes_of(V lanes) {
    // As transpose_bytes, with the last plane first: the product takes rows from the highest byte on.
    const V at = _mm512_setr_epi64(0x0008101820283038, 0x0109111921293139, 0x020a121a222a323a, 0x030b131b232b333b,
                                   0x040c141c242c343c, 0x050d151d252d353d, 0x060e161e262e363e, 0x070f171f272f373f);
    const V unit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201ull));
    return _mm512_gf2p8affine_epi64_epi8(unit, _mm512_permutexvar_epi8(at, lanes), 0);
  }

  static uint64_t take(uint8_t* bytes) {
    const V x = _mm512_loadu_si512(bytes);
    _mm512_storeu_si512(bytes, _mm512_setzero_si512());
    return _mm512_test_epi8_mask(x, x);
  }
  static uint64_t meet(const uint64_t* sets, uint64_t wanted) {
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i)
      bits |= static_cast<uint64_t>(_mm512_test_epi64_mask(load(sets + 8 * i), fill(wanted))) << (8 * i);
    return bits;
  }

  static int64_t positions(const uint64_t* bits, uint16_t at, uint16_t* out) {
    const V iota = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11,
                                    10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    V place = _mm512_add_epi16(iota, _mm512_set1_epi16(static_cast<int16_t>(at)));
    uint16_t* to = out;
    for (int64_t w = 0; w < words; ++w) {
      // In a register first: vpcompressw to memory is microcoded on Zen.
      for (int h = 0; h < 2; ++h) {
        const auto half = static_cast<uint32_t>(bits[w] >> 32 * h);
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(half, place));
        to += __builtin_popcount(half);
        place = _mm512_add_epi16(place, _mm512_set1_epi16(32));
      }
    }
    return to - out;
  }
  // a / b, rounded as a division does, for integers up to 2^32, in half its time. The reciprocal y is good to a unit in
  // the last place, and so is q; the remainder a - b q is exact. What is left, 2^-52 of a unit, decides no rounding: a
  // quotient is at least 1 / 2b of a unit away from a number halfway between two (Markstein, IA-64 and Elementary
  // Functions, 2000, chapter 8).
  static __m512d quotient(__m512d a, __m512d b) {
    __m512d y = _mm512_rcp14_pd(b);
    const __m512d one = _mm512_set1_pd(1);
    y = _mm512_fmadd_pd(y, _mm512_fnmadd_pd(b, y, one), y);
    y = _mm512_fmadd_pd(y, _mm512_fnmadd_pd(b, y, one), y);
    const __m512d q = _mm512_mul_pd(a, y);
    return _mm512_fmadd_pd(_mm512_fnmadd_pd(b, q, a), y, q);
  }
  static void ratios(const uint16_t* places, int64_t count, int64_t number, int64_t at, double* parts) {
    __m512d up = _mm512_add_pd(_mm512_setr_pd(1, 2, 3, 4, 5, 6, 7, 8), _mm512_set1_pd(static_cast<double>(number)));
    __m512d sum = _mm512_loadu_pd(parts);
    const __m512d first = _mm512_set1_pd(static_cast<double>(at + 1));
    for (int64_t i = 0; i < count; i += 8) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(places + i));
      const __m512d rank = _mm512_add_pd(_mm512_cvtepi32_pd(_mm256_cvtepu16_epi32(eight)), first);
      const __mmask8 there = static_cast<__mmask8>(count - i < 8 ? (1 << (count - i)) - 1 : 0xff);
      sum = _mm512_mask_add_pd(sum, there, sum, quotient(up, rank));
      up = _mm512_add_pd(up, _mm512_set1_pd(8));
    }
    _mm512_storeu_pd(parts, sum);
  }
};

}  // namespace

const SliceKernels& avx512_slices() {
  static constexpr SliceKernels kernels = make_slices<Avx512Slices>();
  return kernels;
}

}  // namespace nhl::hamming

NHL_TARGET_END
#endif
