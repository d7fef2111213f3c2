// Losses within the batch whose slopes need whole rows: triplets, softmax over centres, the distillation's cascade.

namespace nhl::step {
namespace {

// As below, a row being positive and negative in part.
void weighed_triplets(const TripletArgs& a) {
  double total = 0;
  const V low = splat(-a.high), high = splat(-a.low);
  float *const products = a.scratch, *const slopes = a.scratch + a.np + kPad;
  for (int64_t i = a.begin; i < a.end; ++i) {
    const float *const theta = a.theta + i * a.np, *const negative = a.negative + i * a.n;
    float* const out = a.slope + i * a.np;
    for (int64_t j = 0; j < a.np; ++j) out[j] = slopes[j] = 0;
    if (a.scale[i] == 0) continue;
    for (int64_t j = 0; j < a.n; ++j) products[j] = a.ratio * theta[j];
    const float pull = a.ratio * a.scale[i];
    double anchor = 0;
    for (int64_t p = 0; p < a.n; ++p) {
      const float share = a.positive[i * a.n + p];
      if (share == 0) continue;
      const V base = splat(products[p] - a.margin);
      V values = {}, pulled = {};
      for (int64_t q = 0; q < a.n; q += kLanes) {
        const V raw = load_first(products + q, a.n - q) - base, x = min(max(raw, low), high);
        const V weight = share * load_first(negative + q, a.n - q);
        const Logistic l = logistic(x);
        const V slope = ((raw < low) | (raw > high)) ? V{} : weight * l.sigmoid;
        values += weight * (max(x, V{}) + log1p(l.e));
        pulled += slope;
        store(slopes + q, load(slopes + q) + slope);
      }
      anchor += sum(values);
      out[p] -= pull * sum(pulled);
    }
    total += a.scale[i] * anchor;
    for (int64_t q = 0; q < a.n; ++q) out[q] += pull * slopes[q];
  }
  *a.value += total;
}

// For anchor i: the mean over positives p and negatives q of softplus(-t), t = clamp(theta_ip - theta_iq - margin),
// theta being the products times `ratio`.
// The negatives' products lie side by side, so that a positive meets a vector of them at a time.
template <bool weighed>
void triplets(const TripletArgs& a) {
  if constexpr (weighed) return weighed_triplets(a);
  float *const gathered = a.scratch, *const slopes = a.scratch + a.np + kPad;
  auto* const places = reinterpret_cast<int32_t*>(slopes + a.np + kPad);
  double total = 0;
  const V low = splat(-a.high), high = splat(-a.low);
  for (int64_t i = a.begin; i < a.end; ++i) {
    const float* const theta = a.theta + i * a.np;
    float* const out = a.slope + i * a.np;
    for (int64_t j = 0; j < a.np; ++j) out[j] = 0;
    if (a.scale[i] == 0) continue;
    const uint8_t* const similar = a.similar + i * a.n;
    int64_t negatives = 0;
    for (int64_t j = 0; j < a.n; ++j) {
      gathered[negatives] = a.ratio * theta[j];
      places[negatives] = static_cast<int32_t>(j);
      negatives += similar[j] == 0;
    }
    for (int64_t q = 0; q < negatives; q += kLanes) store(slopes + q, V{});
    const float pull = a.ratio * a.scale[i];
    double anchor = 0;
    for (int64_t p = 0; p < a.n; ++p) {
      if (!similar[p]) continue;
      const V base = splat(a.ratio * theta[p] - a.margin);
      V values = {}, pulled = {};
      for (int64_t q = 0; q < negatives;) {
        LogSum logs;
        for (int64_t end = q + 64 * kLanes; q < end && q < negatives; q += kLanes) {
          const V raw = load(gathered + q) - base, x = min(max(raw, low), high);
          Logistic l = logistic(x);
          V linear = max(x, V{}), slope = ((raw < low) | (raw > high)) ? V{} : l.sigmoid;
          if (negatives - q < kLanes) {
            const I real = first_lanes(negatives - q);
            l.e = only(real, l.e), linear = only(real, linear), slope = only(real, slope);
          }
          add(logs, l.e);
          values += linear;
          pulled += slope;
          store(slopes + q, load(slopes + q) + slope);
        }
        values += value(logs);
      }
      anchor += sum(values);
      out[p] = -pull * sum(pulled);
    }
    total += a.scale[i] * anchor;
    for (int64_t q = 0; q < negatives; ++q) out[places[q]] = pull * slopes[q];
  }
  *a.value += total;
}

NHL_INLINE I has_class(const SoftmaxArgs& a, int64_t c, int64_t i) {
  if (a.ids) return load(a.ids + i) == splat(static_cast<int32_t>(c));
  const I word = load(reinterpret_cast<const int32_t*>(a.words) + c / 32 * a.np + i);
  return (word & splat(static_cast<int32_t>(1u << (c % 32)))) != 0;
}

// Sums over rows and classes of -[y log p + w (1 - y) log(1 - p)], a batch row a lane. Finite where p rounds to 0 or 1:
// only the largest p can come near 1, and for it 1 - p is taken as the sum of the other classes' p.
template <bool soft>
void softmax(const SoftmaxArgs& a) {
  double total = 0;
  const V one = splat(1.0f);
  for (int64_t i = 0; i < a.np; i += kLanes) {
    float *const logits = a.logits + i, *const shares = a.scratch + i, *const relative = shares + a.classes * a.np;
    V highest = load(logits), second = splat(-__builtin_inff());
    I top = {};
    for (int64_t c = 1; c < a.classes; ++c) {
      const V x = load(logits + c * a.np);
      const I higher = x > highest;
      second = higher ? highest : max(x, second);
      highest = higher ? x : highest;
      top = higher ? splat(static_cast<int32_t>(c)) : top;
    }
    // `relative` is exp(logit - origin): of the second logit where, seen from the first, the others may underflow.
    const V origin = a.wide ? second : highest;
    V others = {}, beside = {};
    for (int64_t c = 0; c < a.classes; ++c) {
      const V x = load(logits + c * a.np), e = exp(x - highest);
      const I other = top != splat(static_cast<int32_t>(c));
      const V near = a.wide ? exp(min(x - origin, V{})) : e;
      store(shares + c * a.np, e);
      store(relative + c * a.np, near);
      others += only(other, e);
      beside += only(other, near);
    }
    const V log_all = log1p(others), p_top = 1.0f / (1.0f + others);
    const V log_rest = log(beside) + (origin - highest) - log_all;  // log(1 - p) of the largest p
    V value = {}, slopes = {}, member_top = {}, absent_top = {};
    for (int64_t c = 0; c < a.classes; ++c) {
      const I other = top != splat(static_cast<int32_t>(c));
      V present, absent;
      if constexpr (soft) {
        present = load(a.soft + c * a.np + i);
        absent = a.negative_weight * (1.0f - present);
      } else {
        const I member = has_class(a, c, i);
        present = only(member, one);
        absent = only(~member, splat(a.negative_weight));
      }
      const V log_p = load(logits + c * a.np) - highest - log_all, p = only(other, load(shares + c * a.np) * p_top);
      value -= only(present > 0, present * log_p) + only(absent > 0, absent * (other ? log1p(-p) : log_rest));
      const V slope = absent * (p / (1.0f - p)) - present;
      slopes += only(other, slope);
      member_top += only(~other, present);
      absent_top += only(~other, absent);
      store(logits + c * a.np, slope);
      store(shares + c * a.np, p);
    }
    // slope - p (sum of all slopes), where the largest p's own slope is absent p / (1 - p) - present. For that p the
    // sum would cancel: its part is taken from 1 - p. For the others, p_c / (1 - p) is relative / beside.
    const V weight = a.weights ? load(a.weights + i) : one;
    const V pull = absent_top * p_top / beside, own = absent_top * p_top - member_top * exp(min(log_rest, V{}));
    for (int64_t c = 0; c < a.classes; ++c) {
      const I other = top != splat(static_cast<int32_t>(c));
      const V p = load(shares + c * a.np), rest = pull * load(relative + c * a.np) + p * (slopes - member_top);
      store(logits + c * a.np, weight * (other ? load(logits + c * a.np) - rest : own - p_top * slopes));
    }
    total += sum(only(first_lanes(a.n - i), weight * value));
  }
  *a.value += total;
}

// With unit_k the rows of G_k at norm 1 (a lane a row): sums of (unit_k - unit_(k+1))^2, and slopes in place of G_k.
void cascade(const CascadeArgs& a) {
  constexpr float least = 1e-24f;
  for (int64_t i = 0; i < a.columns; i += kLanes) {
    V inverse = {};
    for (int64_t k = 0; k < a.m; ++k) {
      float* const gram = a.grams + k * a.step + i;
      V squares = {};
      for (int64_t j = 0; j < a.n; ++j) squares += load(gram + j * a.stride) * load(gram + j * a.stride);
      V next = squares > least ? inverse_root(squares) : splat(1e12f);
      next = squares == __builtin_inff() ? V{} : (squares != squares ? squares : next);
      if (k > 0) {
        float* const shorter = gram - a.step;
        V value = {}, inner = {};
        for (int64_t j = 0; j < a.n; ++j) {
          const V unit = load(shorter + j * a.stride) * inverse, gap = unit - load(gram + j * a.stride) * next;
          value += gap * gap;
          inner += unit * gap;
        }
        // A row with a norm under 1e-12 has no direction: it gives no gradient.
        const V scale = inverse == splat(1e12f) ? V{} : a.scale * inverse;
        for (int64_t j = 0; j < a.n; ++j) {
          const V unit = load(shorter + j * a.stride) * inverse, gap = unit - load(gram + j * a.stride) * next;
          store(shorter + j * a.stride, (gap - unit * inner) * scale);
        }
        a.values[k - 1] += sum(only(first_lanes(a.columns - i), value));
      }
      inverse = next;
    }
  }
}

}  // namespace
}  // namespace nhl::step
