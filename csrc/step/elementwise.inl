// Losses and penalties of one output at a time.

namespace nhl::train {
namespace {

// A row of L numbers in padded(L) floats.
NHL_INLINE void copy_row(const float* from, int64_t n, float* to) {
  for (int64_t c = 0; c < n; c += kLanes) store(to + c, load_first(from + c, n - c));
}

// Every length's columns of one row: body(k, column, remaining, offset in the expanded row).
template <class Loss>
void pointwise(const Layout& layout, const PointwiseArgs& p) {
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
    for (int64_t c = 0; c < bits; c += kLanes) Loss::once(load_first(u + c, bits - c), p.option, row + c, wide);
    const float* const center = p.centers + (p.ids ? p.ids[r] : r) * layout.width();
    float* const out = p.deltas + r * layout.width();
    for (int64_t k = 0; k < layout.m; ++k) {
      const int64_t b = layout.lengths[k], start = layout.starts[k];
      V total = load(sums + k * kPad);
      const V scale = splat(p.scale[k]);
      for (int64_t c = 0; c < b; c += kLanes) {
        V value, slope;
        Loss::pair(row + c, wide, load_first(center + start + c, b - c), p.option, value, slope);
        total += b - c >= kLanes ? value : only(first_lanes(b - c), value);
        store_first(out + start + c, slope * scale, b - c);
      }
      store(sums + k * kPad, flush ? V{} : total);
      if (flush) p.values[k] += sum(total);
    }
  }
}

// softplus(-2 u c) + option (|tanh u| - 1)^2 of a centre c of +-1. What does not depend on the centre is computed once
// for all lengths: both cross-entropies, the slope of the first and that of the quantization.
struct CentralSimilarity {
  NHL_INLINE void once(V u, float option, float* row, int64_t step) {
    const V twice = 2.0f * abs(u), e = exp(-twice), r = 1.0f / (1.0f + e), s = e * r;
    const V quantization = option * 4.0f * s * s;
    const V agree = log1p(e) + quantization;
    store(row, u);
    store(row + step, agree);
    store(row + 2 * step, s);
    store(row + 3 * step, -16.0f * option * s * s * r * sign(u));
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

template <class F>
void penalty(const Layout& layout, const PenaltyArgs& p) {
  const int64_t bits = layout.bits(), wide = padded(bits);
  float *const slopes = p.scratch, *const sums = p.scratch + wide;
  for (int64_t c = 0; c < wide; ++c) sums[c] = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t c = 0; c < bits; c += kLanes) {
      V value, slope;
      F::apply(load_first(p.u + r * bits + c, bits - c), value, slope);
      store(sums + c, load(sums + c) + value);
      store(slopes + c, slope);
    }
    float* const out = p.deltas + r * layout.width();
    for (int64_t k = 0; k < layout.m; ++k) {
      const V scale = splat(p.scale[k]);
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

struct Sign {  // (u - sign u)^2
  NHL_INLINE void apply(V u, V& value, V& slope) {
    const V x = u - bit_sign(u);
    value = x * x;
    slope = 2.0f * x;
  }
};

double dot(const float* a, const float* b, int64_t n) {
  // Partial sums of one vector's lanes stay short.
  double total = 0;
  for (int64_t i = 0; i < n; i += 64 * kLanes) {
    const int64_t end = n - i < 64 * kLanes ? n : i + 64 * kLanes;
    V s[2] = {};
    int64_t j = i;
    for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
      s[0] += load(a + j) * load(b + j);
      s[1] += load(a + j + kLanes) * load(b + j + kLanes);
    }
    for (; j < end; j += kLanes) s[0] += load_first(a + j, end - j) * load_first(b + j, end - j);
    total += sum(s[0] + s[1]);
  }
  return total;
}

void add_scaled(const float* x, float scale, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(out + i) + scale * load(x + i));
  for (; i < n; ++i) out[i] += scale * x[i];
}

bool finite(const float* x, int64_t n) {
  I bad = {};
  for (int64_t i = 0; i < n; i += kLanes) bad |= (bits_of(load_first(x + i, n - i)) & 0x7f800000) == 0x7f800000;
  V ones = only(bad, splat(1.0f));
  return sum(ones) == 0;
}

}  // namespace
}  // namespace nhl::train
