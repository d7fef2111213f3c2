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

// The columns of a row that are there, but for one: all ones there.
NHL_INLINE I others(int64_t j, int64_t own, int64_t n) {
  I lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const I column = lane + splat(static_cast<int32_t>(j));
  return (column < splat(static_cast<int32_t>(n))) & (column != splat(static_cast<int32_t>(own)));
}

// A row's softmax over the others of factor * x: exponentials exp(factor * x - highest), 0 elsewhere, and what turns
// them into shares and their logarithms.
struct Exponentials {
  V highest, inverse_sum, log_sum;
};
NHL_INLINE Exponentials exponentials(const float* x, float factor, int64_t own, int64_t n, int64_t np, float* out) {
  V top = splat(kLowest);
  for (int64_t j = 0; j < np; j += kLanes) {
    const V scaled = factor * load(x + j);
    top = max(others(j, own, n) ? scaled : splat(kLowest), top);
  }
  float lane[kLanes];
  store(lane, top);
  float highest = lane[0];
  for (int i = 1; i < kLanes; ++i) highest = lane[i] > highest || lane[i] != lane[i] ? lane[i] : highest;
  V sums = {};
  for (int64_t j = 0; j < np; j += kLanes) {
    const V e = only(others(j, own, n), exp(min(factor * load(x + j) - highest, V{})));
    store(out + j, e);
    sums += e;
  }
  const V total = splat(sum(sums));
  return {splat(highest), 1.0f / total, log(total)};
}

void listwise_targets(const ListwiseTargets& a) {
  for (int64_t i = a.begin; i < a.end; ++i) {
    const float* const x = a.products + i * a.np;
    float *const logs = a.logs + i * a.np, *const shares = a.shares + i * a.np;
    const Exponentials all = exponentials(x, a.factor, i, a.n, a.np, shares);
    for (int64_t j = 0; j < a.np; j += kLanes) {
      store(shares + j, all.inverse_sum * load(shares + j));
      store(logs + j, (a.factor * load(x + j) - all.highest) - all.log_sum);
    }
  }
}

void listwise(const ListwiseArgs& a) {
  double value = 0, along = 0;
  for (int64_t i = a.begin; i < a.end; ++i) {
    const float *const products = a.products + i * a.np, *const shares = a.shares + i * a.np;
    const float* const logs = a.logs ? a.logs + i * a.np : nullptr;
    float* const slopes = a.slopes + i * a.np;
    const V weight = splat(a.weights[i]);
    if (a.weights[i] == 0) {
      for (int64_t j = 0; j < a.np; j += kLanes) store(slopes + j, V{});
      continue;
    }
    const Exponentials all = exponentials(products, a.factor, i, a.n, a.np, slopes);
    V divergence = {}, pull = {};
    for (int64_t j = 0; j < a.np; j += kLanes) {
      const V x = load(products + j), share = load(shares + j);
      const V log_p = (a.factor * x - all.highest) - all.log_sum;
      const V gap = (logs ? load(logs + j) : V{}) - log_p;
      divergence += share > 0 ? share * gap : V{};
      const V slope = weight * (all.inverse_sum * load(slopes + j) - share);
      pull += slope * x;
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
