// Losses of pairs: batch rows against bank rows (or the batch itself). The bank is walked in tiles that stay in
// cache; each length adds its new columns to the products, turns them into values and slopes, and the slopes times
// the tile are its gradient. Nothing of batch x bank is ever stored.

namespace nhl::train {
namespace {

// What a loss sees of a pair: the product of the rows, whether they are similar, their own numbers.
struct Pair {
  V product, coded;  // coded: of the signs
  I similar;
  V own;
  float theirs;
};

// A pair loss gathers its values in members and returns the slope in the product.
struct Contrastive {  // options: threshold, weight of similar and of other pairs
  static constexpr bool norms = true, inverse = false, signs = false, row_sums = true;
  V total = {}, sum = {};
  NHL_INLINE V add(Contrastive& s, const Pair& p, const float* option) {
    const V d = p.own + p.theirs - 2.0f * p.product, gap = option[0] - d, shortfall = gap < 0 ? V{} : gap;
    const V weight = p.similar ? splat(option[1]) : splat(option[2]);
    const V slope = p.similar ? weight : -only(shortfall > 0, weight);
    s.total += weight * (p.similar ? d : shortfall);
    s.sum += slope;
    return slope;
  }
  NHL_INLINE V value(const Contrastive& s) { return s.total; }
};

template <bool kWeighed>
struct Likelihood {  // options: theta over the product, weight of similar and of other pairs
  static constexpr bool norms = false, inverse = false, signs = false, row_sums = false;
  V total = {}, near_total = {};
  LogSum logs, near_logs;
  float near = 1, far = 1;
  NHL_INLINE V add(Likelihood& s, const Pair& p, const float* option) {
    // softplus(x) with x = -theta for a similar pair, theta for another: nothing cancels.
    const V x = from_bits(bits_of(option[0] * p.product) ^ (p.similar & splat(INT32_MIN)));
    const Logistic l = logistic(x);
    const V linear = max(x, V{}), slope = from_bits(bits_of(l.sigmoid) ^ (p.similar & splat(INT32_MIN)));
    if (!kWeighed) {
      s.total += linear;
      nhl::train::add(s.logs, l.e);
      return slope;
    }
    s.near = option[1], s.far = option[2];
    s.near_total += only(p.similar, linear);
    s.total += only(~p.similar, linear);
    nhl::train::add(s.near_logs, only(p.similar, l.e));
    nhl::train::add(s.logs, only(~p.similar, l.e));
    return slope * (p.similar ? splat(s.near) : splat(s.far));
  }
  NHL_INLINE V value(const Likelihood& s) {
    const V others = s.total + nhl::train::value(s.logs);
    return kWeighed ? s.near * (s.near_total + nhl::train::value(s.near_logs)) + s.far * others : others;
  }
};

struct Attraction {
  static constexpr bool norms = true, inverse = true, signs = false, row_sums = true;
  V total = {}, sum = {};
  LogSum logs;
  NHL_INLINE V add(Attraction& s, const Pair& p, const float*) {
    const V x = 0.5f - 0.5f * (p.product * p.own * p.theirs);
    const Logistic l = logistic(x);
    s.total += only(p.similar, max(x, V{}));
    s.sum += only(p.similar, splat(1.0f));
    nhl::train::add(s.logs, only(p.similar, l.e));
    return only(p.similar, -0.5f * p.theirs * l.sigmoid);
  }
  NHL_INLINE V value(const Attraction& s) { return s.total + nhl::train::value(s.logs); }
};

struct Locality {  // options: eta, bound on theta, theta over the product
  static constexpr bool norms = false, inverse = false, signs = true, row_sums = false;
  V total = {};
  LogSum logs;
  NHL_INLINE V add(Locality& s, const Pair& p, const float* option) {
    const V raw = option[2] * p.product, theta = min(max(raw, splat(-option[1])), splat(option[1]));
    const V x = from_bits(bits_of(theta) ^ (p.similar & splat(INT32_MIN)));
    const Logistic l = logistic(x);
    const V probability = p.similar ? l.complement : l.sigmoid;
    const V gap = probability - logistic(option[2] * p.coded).sigmoid;
    s.total += max(x, V{}) + option[0] * gap * gap;
    nhl::train::add(s.logs, l.e);
    const V likelihood = from_bits(bits_of(l.sigmoid) ^ (p.similar & splat(INT32_MIN)));
    const V slope = 2.0f * option[0] * gap * (l.sigmoid * l.complement) + likelihood;
    return abs(raw) > option[1] ? V{} : slope;
  }
  NHL_INLINE V value(const Locality& s) { return s.total + nhl::train::value(s.logs); }
};

struct Cauchy {  // options: b / 2, gamma, cap on the cosine, least distance, weight of similar and of other pairs
  static constexpr bool norms = true, inverse = true, signs = false, row_sums = false;
  V total = {};
  NHL_INLINE V add(Cauchy& s, const Pair& p, const float* option) {
    const V cosine = p.product * p.own * p.theirs;
    const V free = option[0] * (1.0f - min(cosine, splat(option[2]))), d = max(free, splat(option[3]));
    const V ratio = d / option[1], weight = p.similar ? splat(option[4]) : splat(option[5]);
    const V nearness = 1.0f / (1.0f + ratio);
    s.total += weight * log1p(p.similar ? ratio : 1.0f / ratio);
    const V slope = weight * (p.similar ? nearness : -nearness / ratio) * (-option[0] / option[1] * p.theirs);
    const I capped = (cosine > option[2]) | (free < option[3]);
    return capped ? V{} : slope;
  }
  NHL_INLINE V value(const Cauchy& s) { return s.total; }
};

// similar[j * np + i] is all ones where bank row j is similar to batch row i.
void mark_similar(const PairArgs& p, const int32_t* chosen, int64_t begin, int64_t count, int32_t* out) {
  const Similar& s = p.similar;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t row = chosen ? chosen[begin + j] : begin + j;
    int32_t* const to = out + j * p.np;
    if (s.other_ids) {
      const I id = splat(static_cast<int32_t>(s.other_ids[row]));
      for (int64_t i = 0; i < p.np; i += kLanes) store(to + i, load(s.ids + i) == id);
    } else if (s.flags) {
      for (int64_t i = 0; i < p.np; i += kLanes) store(to + i, I{});
      const uint8_t* const flags = s.flags + row * s.classes;
      for (int64_t c = 0; c < s.classes; c += 32) {
        const int64_t last = s.classes - c < 32 ? s.classes - c : 32;
        uint32_t word = 0;
        for (int64_t bit = 0; bit < last; ++bit) word |= static_cast<uint32_t>(flags[c + bit] != 0) << bit;
        if (word == 0) continue;
        const I wanted = splat(static_cast<int32_t>(word));
        const auto* const words = reinterpret_cast<const int32_t*>(s.words) + c / 32 * p.np;
        for (int64_t i = 0; i < p.np; i += kLanes) store(to + i, load(to + i) | ((load(words + i) & wanted) != 0));
      }
    } else {
      for (int64_t i = 0; i < p.np; i += kLanes) store(to + i, splat(-1));
    }
  }
}

struct PairScratch {
  PairScratch(const Layout& layout, int64_t np, float* base) : wide(padded(layout.bits())) {
    const auto take = [&](int64_t n) {
      float* const piece = base;
      base += n;
      return piece;
    };
    tile = take(kTile * wide);
    signs = take(kTile * wide);
    product = take(kTile * np);
    coded = take(kTile * np);
    slope = take(kTile * np);
    similar = reinterpret_cast<int32_t*>(take(kTile * np));
    partial = take(kTile * kPad);
    turned = take(kPad * padded(kTile));
    theirs = take(layout.m * padded(kTile));
  }
  int64_t wide;
  float *tile, *signs, *product, *coded, *slope, *partial, *turned, *theirs;
  int32_t* similar;
};

// Copies bank rows into a tile, clamped, with zeros up to a full vector.
void copy_tile(const Layout& layout, const PairArgs& p, int64_t begin, int64_t count, float* tile, int64_t wide) {
  const V low = splat(-p.limit), high = splat(p.limit);
  const int64_t bits = layout.bits();
  for (int64_t j = 0; j < count; ++j) {
    const float* const row = p.rows + (p.chosen ? p.chosen[begin + j] : begin + j) * bits;
    for (int64_t c = 0; c < bits; c += kLanes)
      store(tile + j * wide + c, min(max(load_first(row + c, bits - c), low), high));
  }
}

// theirs[k * padded(kTile) + j]: the squared norm of the first b_k columns of row j, or its inverse norm.
void tile_norms(const Layout& layout, const PairArgs& p, const float* tile, int64_t stride, int64_t count,
                bool inverse, const PairScratch& s) {
  for (int64_t k = 0; k < layout.m; ++k) {
    const int64_t first = layout.first(k), last = layout.lengths[k];
    for (int64_t j = 0; j < count; ++j) {
      V squares = {};
      for (int64_t c = first; c < last; c += kLanes) {
        V x = load_first(tile + j * stride + c, stride - c);
        if (last - c < kLanes) x = only(first_lanes(last - c), x);
        squares += x * x;
      }
      store(s.partial + j * kLanes, squares);
    }
    transpose(s.partial, kLanes, count, kLanes, s.turned, padded(kTile), padded(kTile));
    float* const out = s.theirs + k * padded(kTile);
    for (int64_t j = 0; j < count; j += kLanes) {
      V total = k ? load(out - padded(kTile) + j) : V{};
      for (int lane = 0; lane < kLanes; ++lane) total += load(s.turned + lane * padded(kTile) + j);
      store(out + j, total);
    }
  }
  if (!inverse) return;
  for (int64_t i = 0; i < layout.m * padded(kTile); i += kLanes) {
    const V squares = load(s.theirs + i);
    store(s.theirs + i, squares > 1e-24f ? inverse_root(squares) : splat(p.without));
  }
}

template <class Loss>
void pair_values(const Layout& layout, const PairArgs& p, int64_t k, int64_t begin, int64_t count,
                 const PairScratch& s) {
  const float* const option = p.options + k * kPad;
  double total = 0;
  for (int64_t i = 0; i < p.np; i += kLanes) {
    Loss loss;
    Pair pair{};
    if (Loss::norms) pair.own = load(p.own + k * p.np + i);
    for (int64_t j = 0; j < count; ++j) {
      float* const slope = s.slope + j * p.np + i;
      if (p.written && !p.written[begin + j]) {
        store(slope, V{});
        continue;
      }
      pair.product = load(s.product + j * p.np + i);
      pair.similar = load(s.similar + j * p.np + i);
      if (Loss::signs) pair.coded = load(s.coded + j * p.np + i);
      if (Loss::norms) pair.theirs = s.theirs[k * padded(kTile) + j];
      store(slope, Loss::add(loss, pair, option));
    }
    total += sum(only(first_lanes(p.n - i), Loss::value(loss)));
    if constexpr (Loss::row_sums) store(p.row_sums + k * p.np + i, load(p.row_sums + k * p.np + i) + loss.sum);
  }
  p.values[k] += total;
}

template <class Loss>
void pairs(const Layout& layout, const PairArgs& p) {
  const PairScratch s(layout, p.np, p.scratch);
  const int64_t bits = layout.bits();
  // A tile that needs no change is read where it is; its rows are then read up to a full vector.
  const bool copied = Loss::signs || p.chosen || p.limit < __builtin_inff() || bits % kPad;
  for (int64_t begin = p.begin; begin < p.end; begin += kTile) {
    const int64_t count = p.end - begin < kTile ? p.end - begin : kTile;
    const float* tile = p.rows + begin * bits;
    int64_t stride = bits;
    if (copied) {
      copy_tile(layout, p, begin, count, s.tile, s.wide);
      tile = s.tile;
      stride = s.wide;
    }
    if (Loss::norms) tile_norms(layout, p, tile, stride, count, Loss::inverse, s);
    if (Loss::signs)
      for (int64_t i = 0; i < count * s.wide; i += kLanes) store(s.signs + i, bit_sign(load(s.tile + i)));
    mark_similar(p, p.chosen, begin, count, s.similar);
    for (int64_t k = 0; k < layout.m; ++k) {
      const int64_t first = layout.first(k), fresh = layout.lengths[k] - first;
      product({tile + first, stride, 1, p.columns + first * p.np, p.np, s.product, p.np, count, p.np, fresh, k > 0});
      if (Loss::signs)
        product({s.signs + first, stride, 1, p.sign_columns + first * p.np, p.np, s.coded, p.np, count, p.np, fresh,
                 k > 0});
      pair_values<Loss>(layout, p, k, begin, count, s);
      product({s.slope, 1, p.np, tile, stride, p.deltas + layout.padded_starts[k], layout.padded_width(), p.n,
               (layout.lengths[k] + kLanes - 1) / kLanes * kLanes, count, true});
    }
  }
}

}  // namespace
}  // namespace nhl::train
