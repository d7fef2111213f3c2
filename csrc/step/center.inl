// Losses of one output and its centre at a time.

namespace nhl::step {
namespace {

// between: a centre's bit c of [-1, 1] is (1 + c) / 2 of +1 and (1 - c) / 2 of -1.
template <class F, bool between>
NHL_INLINE void at_center(const float* row, int64_t step, V c, float constant, V& value, V& slope) {
  if constexpr (!between) return F::pair(row, step, c, constant, value, slope);
  V far_value, far_slope;
  F::pair(row, step, splat(1.0f), constant, value, slope);
  F::pair(row, step, splat(-1.0f), constant, far_value, far_slope);
  const V near = 0.5f + 0.5f * c, far = 0.5f - 0.5f * c;
  value = near * value + far * far_value;
  slope = near * slope + far * far_slope;
}

template <class F, bool between>
void center(const Layout& layout, const CenterArgs& p) {
  const int64_t bits = layout.bits(), wide = padded(bits);
  float* const row = p.scratch;
  float* const sums = p.scratch + 4 * wide;
  for (int64_t i = 0; i < layout.m * kPad; ++i) sums[i] = 0;
  const int64_t together = rows_together(bits);
  int64_t gathered = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    const bool flush = ++gathered == together || r + 1 == p.rows;
    if (flush) gathered = 0;
    const float* const u = p.u + r * bits;
    for (int64_t c = 0; c < bits; c += kLanes) F::once(load_first(u + c, bits - c), p.constant, row + c, wide);
    const float* const center = p.centers + (p.ids ? p.ids[r] : r) * layout.width();
    float* const out = p.deltas + r * layout.width();
    const float weight = p.weights ? p.weights[r] : 1.0f;
    for (int64_t k = 0; k < layout.m; ++k) {
      const int64_t b = layout.lengths[k], start = layout.starts[k];
      V total = load(sums + k * kPad);
      const V scale = splat(p.scale[k] * weight);
      for (int64_t c = 0; c < b; c += kLanes) {
        V value, slope;
        at_center<F, between>(row + c, wide, load_first(center + start + c, b - c), p.constant, value, slope);
        value *= weight;
        total += b - c >= kLanes ? value : only(first_lanes(b - c), value);
        store_first(out + start + c, slope * scale, b - c);
      }
      store(sums + k * kPad, flush ? V{} : total);
      if (flush) p.values[k] += sum(total);
    }
  }
}

// softplus(-2 u c) + quantization (|tanh u| - 1)^2 of a centre c of +-1. What does not depend on the centre is computed
// once for all lengths: both cross-entropies, the slope of the first and that of the quantization.
struct CentralSimilarity {
  NHL_INLINE void once(V u, float quantization, float* row, int64_t step) {
    const V twice = 2.0f * abs(u), e = exp(-twice), r = 1.0f / (1.0f + e), s = e * r;
    const V penalty = quantization * 4.0f * s * s;
    const V agree = log1p(e) + penalty;
    store(row, u);
    store(row + step, agree);
    store(row + 2 * step, s);
    store(row + 3 * step, -16.0f * quantization * s * s * r * sign(u));
  }
  NHL_INLINE void pair(const float* row, int64_t step, V c, float, V& value, V& slope) {
    const V u = load(row), agree = load(row + step), s = load(row + 2 * step);
    const I against = u * c < 0;
    value = agree + only(against, 2.0f * abs(u));
    slope = load(row + 3 * step) - 2.0f * c * (against ? 1.0f - s : s);
  }
};

// max(margin - u c, 0); ternary: of u rounded to -1, 0 or 1, with the gradient passed straight through.
template <bool ternary>
struct Polarization {
  NHL_INLINE void once(V u, float margin, float* row, int64_t) {
    store(row, ternary ? (abs(u) > margin ? sign(u) : u - u) : u);
  }
  NHL_INLINE void pair(const float* row, int64_t, V c, float margin, V& value, V& slope) {
    const V h = margin - load(row) * c;
    value = h < 0 ? V{} : h;
    slope = only(h > 0, -c);
  }
};

}  // namespace
}  // namespace nhl::step
