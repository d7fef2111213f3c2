// Pair functions of batch rows against bank rows (or the batch itself). The bank is walked in tiles that stay in cache;
// each length adds its new columns to the products, turns them into values and slopes, and the slopes times the tile
// are its gradient. Nothing of batch x bank is ever stored.

namespace nhl::step {
namespace {

// The values of up to 64 pairs, similar ones apart where they weigh differently.
template <bool kLogs, Counting kCounting>
struct PairSum {
  V near = {}, others = {};
  LogSum near_logs, other_logs;
};
template <bool kLogs, Counting kCounting>
NHL_INLINE void add(PairSum<kLogs, kCounting>& s, const Found& f, I similar) {
  if constexpr (kCounting == Counting::weighed) {
    s.others += f.loss;
  } else if constexpr (kCounting == Counting::all) {
    s.others += f.loss;
    if constexpr (kLogs) add(s.other_logs, f.inside);
  } else {
    s.near += only(similar, f.loss);
    if constexpr (kLogs) add(s.near_logs, only(similar, f.inside));
  }
  if constexpr (kCounting == Counting::kinds) {
    s.others += only(~similar, f.loss);
    if constexpr (kLogs) add(s.other_logs, only(~similar, f.inside));
  }
}
template <bool kLogs, Counting kCounting>
NHL_INLINE V value(const PairSum<kLogs, kCounting>& s, const PairArgs& p) {
  V near = s.near, others = s.others;
  if constexpr (kCounting == Counting::weighed) return others;
  if constexpr (kLogs && kCounting != Counting::all) near += value(s.near_logs);
  if constexpr (kLogs && kCounting != Counting::similar) others += value(s.other_logs);
  return kCounting == Counting::kinds ? p.near * near + p.far * others : near + others;
}

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
    grade = take(kTile * np);
    partial = take(kTile * kPad);
    turned = take(kPad * padded(kTile));
    theirs = take(layout.m * padded(kTile));
  }
  int64_t wide;
  float *tile, *signs, *product, *coded, *slope, *grade, *partial, *turned, *theirs;
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

// theirs[k * padded(kTile) + j]: half the squared norm of the first b_k columns of row j (distance), or its inverse norm.
void tile_norms(const Layout& layout, const float* tile, int64_t stride, int64_t count, Geometry geometry,
                float without, const PairScratch& s) {
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
  for (int64_t i = 0; i < layout.m * padded(kTile); i += kLanes) {
    const V squares = load(s.theirs + i);
    store(s.theirs + i, geometry == Geometry::distance ? 0.5f * squares
                        : squares > 1e-24f            ? inverse_root(squares)
                                                      : splat(without));
  }
}

// How similar the pairs of a tile are, from 0 to 1: cosines of rows of weights, or whether they are at all.
void grades(const PairArgs& p, int64_t begin, int64_t count, const PairScratch& s) {
  const Similar& labels = p.similar;
  if (labels.rows)
    product({labels.rows + begin * labels.classes, labels.classes, 1, labels.columns, p.np, s.grade, p.np, count, p.np,
             labels.classes, false});
  for (int64_t i = 0; i < count * p.np; i += kLanes) {
    const V one = splat(1.0f), x = load(s.grade + i);
    store(s.grade + i, labels.rows ? (x > splat(kNearlyOne) ? one : x) : only(load(s.similar + i), one));
  }
}

// A pair that is similar in part: so much of either kind.
template <class F>
NHL_INLINE Found between(Pair pair, const Constants& constants, V near, V far) {
  if constexpr (F::graded) {
    const Found found = F::at(pair, constants);
    const V amount = near + far;
    return {amount * (found.loss + (F::logs ? log1p(found.inside) : V{})), V{}, amount * found.slope};
  }
  pair.similar = splat(-1);
  Found yes = F::at(pair, constants);
  pair.similar = splat(0);
  Found no = F::at(pair, constants);
  if constexpr (F::logs) {
    yes.loss += log1p(yes.inside);
    no.loss += log1p(no.inside);
  }
  return {near * yes.loss + far * no.loss, V{}, near * yes.slope + far * no.slope};
}

// Values, and slopes in the products, of a tile at length k.
template <class F, Counting kCounting>
void tile_values(const Layout& layout, const PairArgs& p, int64_t k, int64_t begin, int64_t count,
                 const PairScratch& s) {
  constexpr bool apart = F::geometry == Geometry::distance, unit = F::geometry == Geometry::cosine;
  Constants constants{static_cast<float>(layout.lengths[k]) / 2, {}};
  const float* const given = p.constants + (F::by_length ? k * F::constants : 0);
  for (int i = 0; i < F::constants; ++i) constants.given[i] = given[i];
  const float factor = p.factors[k];
  const V near = splat(p.near), far = splat(p.far);
  double total = 0;
  for (int64_t i = 0; i < p.np; i += kLanes) {
    PairSum<F::logs, kCounting> sums;
    V own = {}, slopes = {};
    Pair pair{};
    if constexpr (apart || unit) own = load(p.own + k * p.np + i);
    V weights = {};
    if constexpr (kCounting == Counting::weighed) weights = load(p.row_weights + i);
    for (int64_t j = 0; j < count; ++j) {
      float* const to = s.slope + j * p.np + i;
      if (p.written && !p.written[begin + j]) {
        store(to, V{});
        continue;
      }
      const V product = load(s.product + j * p.np + i);
      const float theirs = apart || unit ? s.theirs[k * padded(kTile) + j] : 0;
      pair.x = apart ? own + theirs - product : unit ? product * own * theirs : factor * product;
      if constexpr (F::signs) pair.coded = factor * load(s.coded + j * p.np + i);
      pair.similar = load(s.similar + j * p.np + i);
      Found found;
      if constexpr (kCounting == Counting::weighed) {
        const V grade = pair.grade = load(s.grade + j * p.np + i), weight = p.column_weights[begin + j] * weights;
        found = between<F>(pair, constants, weight * near * grade, weight * far * (1.0f - grade));
      } else {
        if constexpr (F::graded) pair.grade = only(pair.similar, splat(1.0f));
        found = F::at(pair, constants);
      }
      add(sums, found, pair.similar);
      V slope = found.slope;
      if constexpr (kCounting == Counting::kinds) slope *= pair.similar ? near : far;
      if constexpr (kCounting == Counting::similar) slope = only(pair.similar, slope);
      if constexpr (apart) slopes += slope;
      store(to, unit ? slope * theirs : slope);
    }
    total += sum(only(first_lanes(p.n - i), value(sums, p)));
    if constexpr (apart) store(p.row_sums + k * p.np + i, load(p.row_sums + k * p.np + i) + slopes);
  }
  p.values[k] += total;
}

void count_similar(const PairArgs& p, int64_t begin, int64_t count, const int32_t* similar, float* out) {
  for (int64_t j = 0; j < count; ++j) {
    if (p.written && !p.written[begin + j]) continue;
    for (int64_t i = 0; i < p.np; i += kLanes)
      store(out + i, load(out + i) + only(load(similar + j * p.np + i), splat(1.0f)));
  }
}

// How tiles are prepared for a pair function.
struct Tiles {
  Geometry geometry;
  bool signs, counted, weighed;
  float without;
  void (*values)(const Layout&, const PairArgs&, int64_t, int64_t, int64_t, const PairScratch&);
};

void walk(const Layout& layout, const PairArgs& p, const Tiles& tiles) {
  const PairScratch s(layout, p.np, p.scratch);
  const int64_t bits = layout.bits();
  // A tile that needs no change is read where it is; its rows are then read up to a full vector.
  const bool copied = tiles.signs || p.chosen || p.limit < __builtin_inff() || bits % kPad;
  for (int64_t begin = p.begin; begin < p.end; begin += kTile) {
    const int64_t count = p.end - begin < kTile ? p.end - begin : kTile;
    const float* tile = p.rows + begin * bits;
    int64_t stride = bits;
    if (copied) {
      copy_tile(layout, p, begin, count, s.tile, s.wide);
      tile = s.tile;
      stride = s.wide;
    }
    if (tiles.geometry != Geometry::product)
      tile_norms(layout, tile, stride, count, tiles.geometry, tiles.without, s);
    if (tiles.signs)
      for (int64_t i = 0; i < count * s.wide; i += kLanes) store(s.signs + i, bit_sign(load(s.tile + i)));
    mark_similar(p, p.chosen, begin, count, s.similar);
    if (tiles.weighed) grades(p, begin, count, s);
    if (tiles.counted) count_similar(p, begin, count, s.similar, p.row_sums + layout.m * p.np);
    for (int64_t k = 0; k < layout.m; ++k) {
      const int64_t first = layout.first(k), fresh = layout.lengths[k] - first;
      product({tile + first, stride, 1, p.columns + first * p.np, p.np, s.product, p.np, count, p.np, fresh, k > 0});
      if (tiles.signs)
        product({s.signs + first, stride, 1, p.sign_columns + first * p.np, p.np, s.coded, p.np, count, p.np, fresh,
                 k > 0});
      tiles.values(layout, p, k, begin, count, s);
      product({s.slope, 1, p.np, tile, stride, p.deltas + layout.padded_starts[k], layout.padded_width(), p.n,
               (layout.lengths[k] + kLanes - 1) / kLanes * kLanes, count, true});
    }
  }
}

template <class F>
constexpr float without() {
  if constexpr (F::geometry == Geometry::cosine) return F::without;
  return 0;
}

template <class F, Counting kCounting>
void pairs(const Layout& layout, const PairArgs& p) {
  walk(layout, p, {F::geometry, F::signs, kCounting == Counting::similar, kCounting == Counting::weighed, without<F>(),
                   tile_values<F, kCounting>});
}

template <class F>
constexpr PairKernel pair_kernel() {
  static_assert(F::constants <= kMostConstants, "kMostConstants");
  return {F::geometry, F::signs, without<F>(), F::constants, F::by_length,
          {pairs<F, Counting::all>, pairs<F, Counting::kinds>, pairs<F, Counting::similar>,
           pairs<F, Counting::weighed>}};
}

}  // namespace
}  // namespace nhl::step
