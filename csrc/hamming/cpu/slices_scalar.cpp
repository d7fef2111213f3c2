// Scalar bodies of the bit-sliced kernels: 256 items a block, in four words.
#include "../../common/numbers.h"
#include "../../common/target.h"
#include "slices.h"

#if defined(__x86_64__)
NHL_TARGET("popcnt")
#endif

#include "slices.inl"

namespace nhl::hamming {
namespace {

struct ScalarSlices {
  static constexpr int64_t words = 4;
  struct V {
    uint64_t word[words];
  };
  template <class F>
  static V each(F f) {
    V out;
    for (int64_t w = 0; w < words; ++w) out.word[w] = f(w);
    return out;
  }
  static V load(const uint64_t* p) {
    return each([=](int64_t w) { return p[w]; });
  }
  static void store(uint64_t* p, const V& x) {
    for (int64_t w = 0; w < words; ++w) p[w] = x.word[w];
  }
  static V fill(uint64_t x) {
    return each([=](int64_t) { return x; });
  }
  static V and_(const V& a, const V& b) {
    return each([&](int64_t w) { return a.word[w] & b.word[w]; });
  }
  static V without(const V& a, const V& b) {
    return each([&](int64_t w) { return a.word[w] & ~b.word[w]; });
  }
  static V or_(const V& a, const V& b) {
    return each([&](int64_t w) { return a.word[w] | b.word[w]; });
  }
  static V xor_(const V& a, const V& b) {
    return each([&](int64_t w) { return a.word[w] ^ b.word[w]; });
  }
  static V add(const V& a, const V& b, const V& c, V& carry) {
    const V half = xor_(a, b);
    carry = or_(and_(a, b), and_(half, c));
    return xor_(half, c);
  }
  static bool any(const V& x) { return (x.word[0] | x.word[1] | x.word[2] | x.word[3]) != 0; }

  static uint32_t ones(uint64_t x) { return static_cast<uint32_t>(__builtin_popcountll(x)); }
  static void tally(const V* masks, uint64_t* sums) {
    for (int k = 0; k < 8; ++k)
      for (int64_t w = 0; w < words; ++w) sums[k] += ones(masks[k].word[w]);
  }
  static void pass(const V* masks, uint64_t* state) {
    for (int k = 0; k < 8; ++k)
      for (int64_t w = 0; w < words; ++w) state[k] += ones(masks[k].word[w]);
  }
  static void turn(const V* masks, uint64_t* state, uint32_t* before, uint8_t* inside) {
    for (int k = 0; k < 8; ++k) {
      before[k] = static_cast<uint32_t>(state[k]);
      uint32_t sum = 0;
      for (int64_t w = 0; w < words; ++w) {
        inside[k * words + w] = static_cast<uint8_t>(sum);
        sum += ones(masks[k].word[w]);
      }
      state[k] += sum;
    }
  }

  static void unslice(const V* planes, uint8_t* out) {
    for (int64_t w = 0; w < words; ++w)
      for (int byte = 0; byte < 8; ++byte) {
        uint64_t eight = 0;
        for (int p = 0; p < 8; ++p) eight |= (planes[p].word[w] >> (8 * byte) & 0xff) << (8 * p);
        eight = transpose8(eight);
        for (int i = 0; i < 8; ++i) out[64 * w + 8 * byte + i] = static_cast<uint8_t>(eight >> (8 * i));
      }
  }

  static uint64_t take(uint8_t* bytes) {
    uint64_t bits = 0;
    for (int byte = 0; byte < 8; ++byte) {
      uint64_t eight;
      __builtin_memcpy(&eight, bytes + 8 * byte, 8);
      bits |= gather_bits(eight) << (8 * byte);
    }
    __builtin_memset(bytes, 0, 64);
    return bits;
  }
  static uint64_t meet(const uint64_t* sets, uint64_t wanted) {
    uint64_t bits = 0;
    for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>((sets[i] & wanted) != 0) << i;
    return bits;
  }

  static int64_t positions(const uint64_t* bits, uint16_t at, uint16_t* out) {
    return scalar_positions<words>(bits, at, out);
  }
  static void ratios(const uint16_t* places, int64_t count, int64_t number, int64_t at, double* parts) {
    for (int64_t i = 0; i < count; ++i)
      parts[i % 8] += static_cast<double>(number + i + 1) / static_cast<double>(at + places[i] + 1);
  }
};

}  // namespace

const SliceKernels& scalar_slices() {
  static constexpr SliceKernels kernels = make_slices<ScalarSlices>();
  return kernels;
}

}  // namespace nhl::hamming

#if defined(__x86_64__)
NHL_TARGET_END
#endif
