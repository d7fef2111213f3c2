// What each loss makes of a pair: pure functions of its geometry. Clamping, weights, sums, and the way back to the
// outputs are those of pairs.inl and pairs.cpp.

namespace nhl::step {
namespace {

struct Pair {
  V x, coded;  // coded: the same of the rows' signs
  I similar;
  V grade;  // how similar, from 0 to 1, where a function is `graded`
};

struct Constants {
  float half;  // b / 2
  float given[kMostConstants];
  float operator[](int i) const { return given[i]; }
};

// A pair's loss is loss + log(1 + inside), where a function has `logs` (inside is then of [0, 1]); slope in x.
struct Found {
  V loss, inside, slope;
};

// -x where a pair is similar.
NHL_INLINE V turned(V x, I similar) { return from_bits(bits_of(x) ^ (similar & splat(INT32_MIN))); }

struct Contrastive {  // constants: margin a bit
  static constexpr Geometry geometry = Geometry::distance;
  static constexpr bool signs = false, logs = false, graded = false, by_length = false;
  static constexpr int constants = 1;
  NHL_INLINE Found at(const Pair& p, const Constants& c) {
    const V gap = c[0] * c.half - p.x, shortfall = gap < 0 ? V{} : gap, one = splat(1.0f);
    return {p.similar ? p.x : shortfall, V{}, p.similar ? one : -only(shortfall > 0, one)};
  }
};

struct Likelihood {
  static constexpr Geometry geometry = Geometry::product;
  static constexpr bool signs = false, logs = true, graded = false, by_length = false;
  static constexpr int constants = 0;
  NHL_INLINE Found at(const Pair& p, const Constants&) {
    // softplus(-x) for a similar pair, softplus(x) for another: nothing cancels.
    const V x = turned(p.x, p.similar);
    const Logistic l = logistic(x);
    return {max(x, V{}), l.e, turned(l.sigmoid, p.similar)};
  }
};

struct Locality {  // constants: eta, bound on x
  static constexpr Geometry geometry = Geometry::product;
  static constexpr bool signs = true, logs = true, graded = false, by_length = false;
  static constexpr int constants = 2;
  NHL_INLINE Found at(const Pair& p, const Constants& c) {
    const V theta = min(max(p.x, splat(-c[1])), splat(c[1])), x = turned(theta, p.similar);
    const Logistic l = logistic(x);
    const V gap = (p.similar ? l.complement : l.sigmoid) - logistic(p.coded).sigmoid;
    const V slope = 2.0f * c[0] * gap * (l.sigmoid * l.complement) + turned(l.sigmoid, p.similar);
    return {max(x, V{}) + c[0] * gap * gap, l.e, abs(p.x) > c[1] ? V{} : slope};
  }
};

struct Cauchy {  // constants: gamma, cap on the cosine
  static constexpr Geometry geometry = Geometry::cosine;
  static constexpr bool signs = false, logs = false, graded = false, by_length = false;
  static constexpr float without = 0.0f;  // the inverse norm of a row that has no direction
  static constexpr int constants = 2;
  NHL_INLINE Found at(const Pair& p, const Constants& c) {
    const V free = c.half * (1.0f - min(p.x, splat(c[1]))), ratio = max(free, splat(1e-6f)) / c[0];
    const V nearness = 1.0f / (1.0f + ratio);
    const V slope = (p.similar ? nearness : -nearness / ratio) * (-c.half / c[0]);
    return {log1p(p.similar ? ratio : 1.0f / ratio), V{}, ((p.x > c[1]) | (free < 1e-6f)) ? V{} : slope};
  }
};

struct Attraction {  // of similar pairs
  static constexpr Geometry geometry = Geometry::cosine;
  static constexpr bool signs = false, logs = true, graded = false, by_length = false;
  static constexpr float without = 1e12f;  // as torch.nn.functional.normalize has it
  static constexpr int constants = 0;
  NHL_INLINE Found at(const Pair& p, const Constants&) {
    const V x = 0.5f - 0.5f * p.x;
    const Logistic l = logistic(x);
    return {only(p.similar, max(x, V{})), only(p.similar, l.e), only(p.similar, -0.5f * l.sigmoid)};
  }
};

struct Graded {  // constants: sharpness, weight of the squared error of pairs that are similar in part
  static constexpr Geometry geometry = Geometry::product;
  static constexpr bool signs = false, logs = true, graded = true, by_length = false;
  static constexpr int constants = 2;
  NHL_INLINE Found at(const Pair& p, const Constants& c) {
    const V s = p.grade, mean = p.x / c.half, x = c[0] * mean, gap = 0.5f * mean + 0.5f - s;
    const Logistic l = logistic(x);
    // 1 - s and the complement of sigma where s is near 1: nothing cancels.
    const V slope = (c[0] / c.half) * (s > 0.5f ? (1.0f - s) - l.complement : l.sigmoid - s);
    const V loss = s > 0.5f ? (1.0f - s) * x + max(-x, V{}) : max(x, V{}) - s * x;
    const I whole = (s < 0.01f) | (s > 0.99f);
    const float weight = 2.0f * c.half * c[1];
    return {whole ? loss : weight * gap * gap, only(whole, l.e), whole ? slope : (weight / c.half) * gap};
  }
};

struct Margin {  // constants: a threshold for every length
  static constexpr Geometry geometry = Geometry::cosine;
  static constexpr bool signs = false, logs = false, graded = false, by_length = true;
  static constexpr float without = 0.0f;
  static constexpr int constants = 1;
  NHL_INLINE Found at(const Pair& p, const Constants& c) {
    const V over = p.x - c[0], above = over < 0 ? V{} : over, one = splat(1.0f);
    return {p.similar ? one - p.x : above, V{}, p.similar ? -one : only(above > 0, one)};
  }
};

}  // namespace
}  // namespace nhl::step
