// How a batch meets a bank: in blocks of batch rows, each walking pieces of the bank; and the loss that comes of it.
#include "pairs.h"

namespace nhl::step {

PairSums::PairSums(const Layout& layout, const PairTask& task, const Executor& executor)
    : deltas(task.batch.n * layout.padded_width()), row_sums((layout.m + 1) * task.batch.n), values(layout.m, 0.0),
      layout_(layout), task_(task), kernels_(active_kernels()) {
  make_blocks();
  std::vector<Unit> units;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    // At most 16 pieces, whatever the number of threads: the sums are added up in one order.
    const int64_t piece = std::max<int64_t>(17 * kTile, divide_up(divide_up(blocks_[b].count, 16), kTile) * kTile);
    for (int64_t begin = 0; begin < blocks_[b].count; begin += piece)
      units.push_back({b, begin, std::min(blocks_[b].count, begin + piece)});
  }
  std::vector<Buffer> partial;
  for (const Unit& unit : units) partial.emplace_back(part_size(blocks_[unit.block]));
  std::vector<double> parts(units.size() * layout.m, 0.0);
  const double work = 3.0 * task.batch.n * static_cast<double>(task.bank.count) * layout.bits();
  run_units(share(executor, work), static_cast<int64_t>(units.size()), no_scratch, [&](int64_t i, NoScratch&) {
    walk(units[i], partial[i], parts.data() + i * layout.m);
  });
  values = total(parts, layout.m);
  gather(units, partial);
}

int64_t PairSums::part_size(const Block& block) const {
  const auto rows = static_cast<int64_t>(block.rows.size());
  return rows * layout_.padded_width() + (layout_.m + 1) * padded(rows);
}

void PairSums::make_blocks() {
  const int64_t n = task_.batch.n;
  if (task_.counting == Counting::similar && task_.labels.ids && task_.bank.labels.ids && group_by_class()) return;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    Block block{{}, nullptr, task_.bank.count};
    for (int64_t i = begin; i < std::min(n, begin + kBlock); ++i) block.rows.push_back(static_cast<int32_t>(i));
    blocks_.push_back(std::move(block));
  }
}

// Rows of one class meet the written bank rows of that class; false where the ids are too far apart for a table.
bool PairSums::group_by_class() {
  const Bank& bank = task_.bank;
  const int64_t n = task_.batch.n;
  std::vector<int32_t> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = static_cast<int32_t>(i);
  const int64_t* const ids = task_.labels.ids;
  // No std::stable_sort: in libstdc++ it calls what C++17 deprecates, of which clang warns.
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; });
  const int64_t lowest = ids[order.front()], highest = ids[order.back()];
  if (highest - lowest > bank.count + (1 << 20)) return false;
  std::vector<int64_t> starts(highest - lowest + 2, 0);
  const auto wanted = [&](int64_t j) {
    return (bank.written == nullptr || bank.written[j]) && bank.labels.ids[j] >= lowest &&
           bank.labels.ids[j] <= highest;
  };
  for (int64_t j = 0; j < bank.count; ++j)
    if (wanted(j)) ++starts[bank.labels.ids[j] - lowest + 1];
  for (size_t c = 1; c < starts.size(); ++c) starts[c] += starts[c - 1];
  members_.resize(starts.back());
  std::vector<int64_t> next = starts;
  for (int64_t j = 0; j < bank.count; ++j)
    if (wanted(j)) members_[next[bank.labels.ids[j] - lowest]++] = static_cast<int32_t>(j);
  for (int64_t i = 0; i < n;) {
    const int64_t id = ids[order[i]];
    const int64_t begin = starts[id - lowest], count = starts[id - lowest + 1] - begin;
    Block block{{}, members_.data() + begin, count};
    for (; i < n && ids[order[i]] == id && block.rows.size() < kBlock; ++i) block.rows.push_back(order[i]);
    blocks_.push_back(std::move(block));
  }
  return true;
}

void PairSums::walk(const Unit& unit, float* part, double* sums) const {
  const Block& block = blocks_[unit.block];
  const auto n = static_cast<int64_t>(block.rows.size());
  const int64_t np = padded(n), bits = layout_.bits(), m = layout_.m;
  const Buffer rows(n * bits), columns(bits * np), signs(task_.kernel.signs ? bits * np : 0), own(m * np),
      scratch(pair_scratch(layout_, np));
  std::fill_n(static_cast<float*>(own), m * np, 0.0f);
  std::vector<double> squares(m);
  for (int64_t i = 0; i < n; ++i) {
    float* const row = rows + i * bits;
    std::memcpy(row, task_.batch.u + block.rows[i] * bits, bits * sizeof(float));
    if (task_.kernel.geometry == Geometry::product) continue;
    prefix_dots(kernels_, layout_, row, row, squares.data());
    for (int64_t k = 0; k < m; ++k)
      own[k * np + i] = task_.kernel.geometry == Geometry::distance ? static_cast<float>(0.5 * squares[k])
                                                                    : Norm(squares[k], task_.kernel.without).inverse;
  }
  kernels_.transpose(rows, bits, n, bits, columns, np, np);
  if (task_.kernel.signs)
    for (int64_t i = 0; i < bits * np; ++i) signs[i] = columns[i] > 0 ? 1.0f : -1.0f;
  std::fill_n(part, part_size(block), 0.0f);
  const Bank& bank = task_.bank;
  Similar similar{nullptr, nullptr, nullptr, nullptr, 0};
  const bool weighed = task_.counting == Counting::weighed, soft = weighed && task_.labels.soft;
  const int64_t classes = task_.labels.classes;
  const Buffer weights(weighed ? np : 0), own_labels(soft ? classes * np : 0);
  if (weighed) std::fill_n(static_cast<float*>(weights), np, 0.0f);
  for (int64_t i = 0; weighed && i < n; ++i) weights[i] = task_.batch.weights[block.rows[i]];
  if (soft) {
    kernels_.transpose(task_.labels.soft + block.rows[0] * classes, classes, n, classes, own_labels, np, np);
    similar.columns = own_labels;
    similar.rows = bank.labels.soft;
    similar.classes = classes;
  }
  std::vector<int32_t> ids;
  std::vector<uint32_t> words;
  if (block.chosen == nullptr && bank.labels.ids) {
    ids = label_ids(task_.labels, block.rows.data(), 0, n, np);
    similar.ids = ids.data();
    similar.other_ids = bank.labels.ids;
  } else if (block.chosen == nullptr && !soft) {
    words = label_words(task_.labels, block.rows.data(), 0, n, np);
    similar.words = words.data();
    similar.flags = bank.labels.flags;
    similar.classes = bank.labels.classes;
  }
  PairArgs arguments{columns, signs, n, np, own, bank.u, block.chosen, unit.begin, unit.end,
                     block.chosen ? nullptr : bank.written, similar, task_.limit, task_.constants.data(),
                     task_.factors.data(), task_.near,
                     task_.far, weights, bank.weights, sums, part, part + n * layout_.padded_width(), scratch};
  task_.kernel.run[static_cast<int>(task_.counting)](layout_, arguments);
}

void PairSums::gather(const std::vector<Unit>& units, const std::vector<Buffer>& partial) {
  const int64_t width = layout_.padded_width(), m = layout_.m, total_rows = task_.batch.n;
  std::fill_n(static_cast<float*>(deltas), total_rows * width, 0.0f);
  std::fill_n(static_cast<float*>(row_sums), (m + 1) * total_rows, 0.0f);
  for (size_t u = 0; u < units.size(); ++u) {
    const Block& block = blocks_[units[u].block];
    const auto n = static_cast<int64_t>(block.rows.size());
    const float* const part = partial[u];
    for (int64_t i = 0; i < n; ++i) {
      kernels_.add_scaled(part + i * width, 1.0f, width, deltas + block.rows[i] * width);
      for (int64_t k = 0; k <= m; ++k)
        row_sums[k * total_rows + block.rows[i]] += part[n * width + k * padded(n) + i];
    }
  }
}

int64_t pair_scratch(const Layout& layout, int64_t np) {
  return 2 * kTile * padded(layout.bits()) + 5 * kTile * np + kPad * (kTile + padded(kTile)) + layout.m * padded(kTile);
}

namespace {

// Weights of similar and of other pairs.
struct Shares {
  float near = 1, far = 1;
};

Shares shares_of(Weigh weigh, double pairs, double near) {
  if (near == 0 || near == pairs) return {};
  const double kinds = weigh == Weigh::halves ? 2 : 1;
  return {static_cast<float>(pairs / (kinds * near)), static_cast<float>(pairs / (kinds * (pairs - near)))};
}

// Deltas from the sums of slopes: `scale` times the gradient of the pair function's x in the batch's rows.
void come_back(const Layout& layout, const PairTask& task, const PairSums& sums, double scale, float* deltas) {
  const Kernels& kernels = active_kernels();
  std::vector<double> squares(layout.m);
  const auto s = static_cast<float>(scale);
  for (int64_t i = 0; i < task.batch.n; ++i) {
    const float* const u = task.batch.u + i * layout.bits();
    if (task.kernel.geometry == Geometry::cosine) prefix_dots(kernels, layout, u, u, squares.data());
    for (int64_t k = 0; k < layout.m; ++k) {
      const int64_t b = layout.lengths[k];
      const float* const from = sums.deltas + i * layout.padded_width() + layout.padded_starts[k];
      float* const to = deltas + i * layout.width() + layout.starts[k];
      switch (task.kernel.geometry) {
        case Geometry::product: {
          const auto factor = static_cast<float>(0.5 * task.batch.ratio(b) * scale);
          for (int64_t c = 0; c < b; ++c) to[c] = factor * from[c];
          break;
        }
        case Geometry::distance: {
          const float slopes = sums.row_sums[k * task.batch.n + i];
          for (int64_t c = 0; c < b; ++c) to[c] = s * (slopes * u[c] - from[c]);
          break;
        }
        case Geometry::cosine: unit_back(kernels, u, from, b, Norm(squares[k], task.kernel.without), s, to);
      }
    }
  }
}

}  // namespace

size_t constants_of(PairFunction function, size_t lengths) {
  const PairKernel& kernel = scalar_kernels().pairs[static_cast<int>(function)];
  return static_cast<size_t>(kernel.constants) * (kernel.by_length ? lengths : 1);
}

Geometry geometry_of(PairFunction function) { return scalar_kernels().pairs[static_cast<int>(function)].geometry; }

void pairs(const Batch& batch, const Labels& labels, const Bank* bank, const PairTerm& term,
           const PenaltyTerm& penalty, const Loss& out, const Executor& executor) {
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, count = n * layout.bits();
  const bool clamps = term.clamp < std::numeric_limits<float>::infinity();
  Batch rows = batch;
  const Buffer clamped(clamps ? count : 0);
  for (int64_t i = 0; clamps && i < count; ++i) {
    const float x = batch.u[i];
    clamped[i] = x > term.clamp ? term.clamp : x < -term.clamp ? -term.clamp : x;
  }
  if (clamps) rows.u = clamped;
  const Bank self{rows.u, nullptr, n, labels, batch.weights};
  const Bank& others = bank ? *bank : self;

  const int64_t unwritten = others.written ? std::count(others.written, others.written + others.count, 0) : 0;
  const double all = static_cast<double>(n) * std::max<double>(1.0, static_cast<double>(others.count - unwritten));
  const bool weighed = batch.weights != nullptr;
  const Shares shares =
      weighed                 ? Shares{term.near, term.far}
      : term.weigh == Weigh::no ? Shares{} : shares_of(term.weigh, all, similar_pairs(rows, labels, others));
  const Counting counting = weighed                   ? Counting::weighed
                            : term.over == Over::similar  ? Counting::similar
                            : term.weigh == Weigh::no ? Counting::all
                                                      : Counting::kinds;
  PairTask task{active_kernels().pairs[static_cast<int>(term.function)], counting, rows, labels, others,
                term.constants, {}, shares.near, shares.far, term.clamp};
  for (int64_t k = 0; k < layout.m; ++k)
    task.factors.push_back(static_cast<float>(0.5 * batch.ratio(layout.lengths[k])));
  const PairSums sums(layout, task, executor);

  double scale = 1 / all;
  if (counting == Counting::similar) {
    double near = 0;
    for (int64_t i = 0; i < n; ++i) near += sums.row_sums[layout.m * n + i];
    scale = shares.near / std::max(near, 1.0);
  }
  // Within a batch a pair is there in both orders, and x and its slope are the same in both.
  come_back(layout, task, sums, bank ? scale : 2 * scale, out.deltas);
  for (int64_t k = 0; k < layout.m; ++k) out.values[k] = static_cast<float>(scale * sums.values[k]);
  add_penalty(penalty, term.constants, layout, rows, out, executor);
  for (int64_t i = 0; clamps && i < n; ++i)
    for (int64_t k = 0; k < layout.m; ++k)
      for (int64_t c = 0; c < layout.lengths[k]; ++c)
        if (std::fabs(batch.u[i * layout.bits() + c]) > term.clamp) out.deltas[i * layout.width() + layout.starts[k] + c] = 0;
}

}  // namespace nhl::step
