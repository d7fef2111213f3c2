// Penalties of one output at a time.

namespace nhl::step {
namespace {

template <class F>
void penalty(const Layout& layout, const PenaltyArgs& p) {
  const int64_t bits = layout.bits(), wide = padded(bits);
  float *const slopes = p.scratch, *const sums = p.scratch + wide;
  for (int64_t c = 0; c < wide; ++c) sums[c] = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    const float weight = p.weights ? p.weights[r] : 1.0f;
    for (int64_t c = 0; c < bits; c += kLanes) {
      V value, slope;
      F::apply(load_first(p.u + r * bits + c, bits - c), value, slope);
      store(sums + c, load(sums + c) + weight * value);
      store(slopes + c, slope);
    }
    float* const out = p.deltas + r * layout.width();
    for (int64_t k = 0; k < layout.m; ++k) {
      const V scale = splat(p.scale[k] * weight);
      float* const d = out + layout.starts[k];
      const int64_t b = layout.lengths[k];
      for (int64_t c = 0; c < b; c += kLanes)
        store_first(d + c, load_first(d + c, b - c) + scale * load(slopes + c), b - c);
    }
  }
  double total = 0;
  int64_t c = 0;
  for (int64_t k = 0; k < layout.m; ++k) {
    for (; c < layout.lengths[k]; ++c) total += sums[c];
    p.values[k] += total;
  }
}

struct Absolute {  // | |u| - 1 |
  NHL_INLINE void apply(V u, V& value, V& slope) {
    const V x = abs(u) - 1.0f;
    value = abs(x);
    slope = sign(x) * sign(u);
  }
};

struct LogCosh {  // log cosh(|u| - 1)
  NHL_INLINE void apply(V u, V& value, V& slope) {
    const V x = abs(u) - 1.0f, y = abs(x), e = exp(-2.0f * y);
    value = y + log1p(e) - 0.6931471805599453f;
    slope = sign(x) * (1.0f - e) / (1.0f + e) * sign(u);
  }
};

struct Square {  // (|u| - 1)^2
  NHL_INLINE void apply(V u, V& value, V& slope) {
    const V x = abs(u) - 1.0f;
    value = x * x;
    slope = 2.0f * x * sign(u);
  }
};

struct SignGap {  // (u - sign u)^2
  NHL_INLINE void apply(V u, V& value, V& slope) {
    const V x = u - bit_sign(u);
    value = x * x;
    slope = 2.0f * x;
  }
};

struct Cube {  // | |u| - 1 |^3
  NHL_INLINE void apply(V u, V& value, V& slope) {
    const V x = abs(u) - 1.0f, y = abs(x);
    value = y * y * y;
    slope = 3.0f * x * y * sign(u);
  }
};

}  // namespace
}  // namespace nhl::step
