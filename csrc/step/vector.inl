// Vectors of kLanes floats and the few functions of them that the losses need, on GCC's vector extension: the same
// text is one instruction an operation at every level. Included by one file per instruction set, inside that file's
// target pragma, after kLanes and kFused (x * y + z rounds once) are defined: no standard header in here.
//
// NaN goes through every function; arithmetic of its bits is unsigned, which may wrap. exp, log and log1p are within a
// few units in the last place.

#define NHL_INLINE static inline __attribute__((always_inline))

namespace nhl::step {
namespace {

typedef float V __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));

NHL_INLINE V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
NHL_INLINE I load(const int32_t* p) {
  I v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
NHL_INLINE void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
NHL_INLINE void store(int32_t* p, I v) { __builtin_memcpy(p, &v, sizeof v); }
NHL_INLINE V splat(float x) { return x - V{}; }
NHL_INLINE I splat(int32_t x) { return x - I{}; }

NHL_INLINE I bits_of(V v) {
  I i;
  __builtin_memcpy(&i, &v, sizeof i);
  return i;
}
NHL_INLINE V from_bits(I i) {
  V v;
  __builtin_memcpy(&v, &i, sizeof v);
  return v;
}

// The first n lanes (all for n >= kLanes); the others are zero, or are left alone.
NHL_INLINE V load_first(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  float lane[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lane[i] = p[i];
  return load(lane);
}
NHL_INLINE void store_first(float* p, V v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  float lane[kLanes];
  store(lane, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lane[i];
}
NHL_INLINE I first_lanes(int64_t n) {
  I lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < splat(static_cast<int32_t>(n < kLanes ? n : kLanes));
}
NHL_INLINE V only(I mask, V v) { return from_bits(bits_of(v) & mask); }

NHL_INLINE float sum(V v) {
  float lane[kLanes];
  store(lane, v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// How many rows of b numbers one vector sums up before its lanes go into a double: some 64 additions a lane, whatever
// the number of lanes.
NHL_INLINE int64_t rows_together(int64_t b) {
  const int64_t vectors = (b + kLanes - 1) / kLanes;
  return vectors < 64 ? 64 / vectors : 1;
}

NHL_INLINE V abs(V x) { return from_bits(bits_of(x) & 0x7fffffff); }
// The larger and the smaller, x where it is NaN.
#ifdef NHL_MAX
NHL_INLINE V max(V x, V y) { return NHL_MAX(y, x); }
NHL_INLINE V min(V x, V y) { return NHL_MIN(y, x); }
#else
NHL_INLINE V max(V x, V y) { return x < y ? y : x; }
NHL_INLINE V min(V x, V y) { return x > y ? y : x; }
#endif
// -1, 0 or 1.
NHL_INLINE V sign(V x) { return only(x > 0, splat(1.0f)) - only(x < 0, splat(1.0f)); }
// +-1 by the bit rule: 1 where x > 0.
NHL_INLINE V bit_sign(V x) { return x > 0 ? splat(1.0f) : splat(-1.0f); }

// x is at most 88; under -87.3, where the result would no longer be a normal number, it is exp(-87.3).
NHL_INLINE V exp(V x) {
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = max(x, splat(-87.3f));
  const V shifted = x * 1.442695041f + magic, n = shifted - magic;
  // Without fused operations n log 2 takes two numbers.
  V r = kFused ? x - n * 0.6931471806f : (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = splat(1.3814466449e-3f);
  p = p * r + 8.3687804625e-3f;
  p = p * r + 4.1668394224e-2f;
  p = p * r + 1.6666520107e-1f;
  p = p * r + 4.9999993412e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * from_bits((I)(((U)bits_of(shifted) - (U)bits_of(magic) + 127) << 23));
}

// Of a positive normal number.
NHL_INLINE V log(V x) {
  const I raw = bits_of(x);
  // The mantissa goes to [sqrt(1/2), sqrt(2)).
  const I e = (I)((U)raw - 0x3f3504f3) >> 23;
  const V m = from_bits((I)((U)raw - ((U)e << 23))) - 1.0f, n = __builtin_convertvector(e, V), z = m * m;
  V p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  V y = p * m * z + n * -2.12194440e-4f - z * 0.5f;
  y = m + y + n * 0.693359375f;
  return x != x ? x : y;
}

// Of x > -1, up to 1e38.
NHL_INLINE V log1p(V x) {
  const V u = 1.0f + x;
  return log(u) - ((u - 1.0f) - x) / u;
}

// 1 / sqrt(x) of a positive normal number: three Newton steps from an integer estimate.
NHL_INLINE V inverse_root(V x) {
  V r = from_bits((I)(0x5f3759df - (U)(bits_of(x) >> 1)));
  const V half = 0.5f * x;
  for (int i = 0; i < 3; ++i) r = r * (1.5f - half * r * r);
  return r;
}

// exp(-|x|), from which sigmoid and softplus follow without overflow.
struct Logistic {
  V e, sigmoid, complement;  // complement: sigmoid(-x)
};
NHL_INLINE Logistic logistic(V x) {
  const V e = exp(-abs(x)), r = 1.0f / (1.0f + e), s = e * r;
  return {e, x < 0 ? s : r, x < 0 ? r : s};
}

// A sum of log(1 + x) over up to 64 numbers x of [0, 1]: the product is gathered as q = prod(1 + x) - 1, which keeps
// small x, and one logarithm is taken at the end.
struct LogSum {
  V q = {};
};
NHL_INLINE void add(LogSum& s, V x) { s.q = s.q * (1.0f + x) + x; }
NHL_INLINE V value(const LogSum& s) { return log1p(s.q); }

}  // namespace
}  // namespace nhl::step
