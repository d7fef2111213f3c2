// Every row's softmax over the other rows of its batch, against a given distribution over them.

namespace nhl::step {
namespace {

constexpr float kLowest = -1e30f;  // a logit that counts for nothing: finite, so that 0 times it is 0

// +-1 by the bit rule and the slope of tanh, 1 - tanh^2 = 4 sigmoid(2 u) sigmoid(-2 u).
void straight(const float* u, int64_t count, float* signs, float* slopes) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const V x = load_first(u + i, count - i);
    const Logistic l = logistic(2.0f * x);
    store_first(signs + i, x != x ? x : bit_sign(x), count - i);
    store_first(slopes + i, 4.0f * l.sigmoid * l.complement, count - i);
  }
}

// logits[j] = factor * x[j], less the largest, over the n columns but `own`; the logarithm of the sum of exp.
NHL_INLINE float log_sum(const float* x, float factor, int64_t own, int64_t n, int64_t np, float* logits) {
  for (int64_t j = 0; j < np; j += kLanes) {
    const V scaled = factor * load(x + j);
    store(logits + j, first_lanes(n - j) ? scaled : splat(kLowest));
  }
  logits[own] = kLowest;
  V top = splat(kLowest);
  for (int64_t j = 0; j < np; j += kLanes) top = max(load(logits + j), top);
  float lane[kLanes];
  store(lane, top);
  float highest = lane[0];
  for (int i = 1; i < kLanes; ++i) highest = lane[i] > highest || lane[i] != lane[i] ? lane[i] : highest;
  V total = {};
  for (int64_t j = 0; j < np; j += kLanes) {
    const V shifted = max(load(logits + j) - highest, splat(kLowest));
    store(logits + j, shifted);
    total += shifted < -87.0f ? V{} : exp(shifted);
  }
  store(lane, log(splat(sum(total))));
  return lane[0];
}

void listwise_targets(const ListwiseTargets& a) {
  for (int64_t i = a.begin; i < a.end; ++i) {
    float *const logs = a.logs + i * a.np, *const shares = a.shares + i * a.np;
    const float whole = log_sum(a.products + i * a.np, a.factor, i, a.n, a.np, logs);
    for (int64_t j = 0; j < a.np; j += kLanes) {
      const V x = load(logs + j) - whole;
      store(logs + j, x);
      store(shares + j, x < -87.0f ? V{} : exp(x));
    }
    logs[i] = shares[i] = 0;
  }
}

void listwise(const ListwiseArgs& a) {
  double value = 0, along = 0;
  for (int64_t i = a.begin; i < a.end; ++i) {
    const float *const products = a.products + i * a.np, *const shares = a.shares + i * a.np;
    const float* const logs = a.logs ? a.logs + i * a.np : nullptr;
    float* const slopes = a.slopes + i * a.np;
    if (a.weights[i] == 0) {
      for (int64_t j = 0; j < a.np; ++j) slopes[j] = 0;
      continue;
    }
    const float whole = log_sum(products, a.factor, i, a.n, a.np, a.scratch);
    V divergence = {}, pull = {};
    for (int64_t j = 0; j < a.np; j += kLanes) {
      const V x = load(a.scratch + j) - whole, share = load(shares + j);
      const V gap = logs ? load(logs + j) - x : -x;
      divergence += share > 0 ? share * gap : V{};
      const V slope = (x < -87.0f ? V{} : exp(x)) - share;
      store(slopes + j, slope);
    }
    slopes[i] = 0;
    for (int64_t j = a.n; j < a.np; ++j) slopes[j] = 0;
    const V weight = splat(a.weights[i]);
    for (int64_t j = 0; j < a.np; j += kLanes) {
      const V slope = weight * load(slopes + j);
      pull += slope * load(products + j);
      store(slopes + j, a.factor * slope);
    }
    value += static_cast<double>(a.weights[i]) * sum(divergence);
    along += sum(pull);
  }
  *a.value += value;
  *a.along += along;
}

// KL(Bernoulli(sigmoid u) || Bernoulli(sigmoid v)) = sigmoid(u) (u - v) - softplus(u) + softplus(v), bit by bit.
void view_gap(const float* u, const float* v, int64_t begin, int64_t end, float scale, double* value, float* delta) {
  V total = {};
  for (int64_t c = begin; c < end; c += kLanes) {
    const V x = load_first(u + c, end - c), y = load_first(v + c, end - c), gap = x - y;
    const Logistic l = logistic(x), other = logistic(y);
    const V rise = (max(y, V{}) - max(x, V{})) + (log1p(other.e) - log1p(l.e));
    total += only(first_lanes(end - c), l.sigmoid * gap + rise);
    store_first(delta + c, load_first(delta + c, end - c) + scale * (l.sigmoid * l.complement * gap), end - c);
  }
  *value += sum(total);
}

}  // namespace
}  // namespace nhl::step
