// The losses of pairs: what each makes of the sums over a bank, or over the batch itself.
#include <cmath>

#include "pairs.h"

namespace nhl::train {
namespace {

std::vector<float> options_of(const Layout& layout, const std::vector<float>& values) {
  std::vector<float> out(layout.m * kPad, 0.0f);
  for (int64_t k = 0; k < layout.m; ++k) std::copy(values.begin(), values.end(), out.begin() + k * kPad);
  return out;
}

double written_rows(const Bank& bank) {
  return std::max<double>(1.0, static_cast<double>(bank.count - std::count(bank.written, bank.written + bank.count, 0)));
}

// Weights of similar and of other pairs.
struct Shares {
  float near = 1, far = 1;
};

// Both kinds weigh half; 1 where one kind is missing.
Shares halves(const Batch& batch, const Labels& labels, const Bank& bank) {
  const double pairs = static_cast<double>(batch.n) * written_rows(bank), near = similar_pairs(batch, labels, bank);
  if (near == 0 || near == pairs) return {};
  return {static_cast<float>(pairs / (2 * near)), static_cast<float>(pairs / (2 * (pairs - near)))};
}

// deltas and values of theta = ratio <u, U> / 2 against the bank, as the likelihood's mean over the pairs.
void likelihood(const Layout& layout, const Batch& batch, const Labels& labels, const Bank& bank, float clamp,
                bool balance, const Loss& out, const Executor& executor) {
  const Shares shares = balance ? halves(batch, labels, bank) : Shares{};
  const Pairs kind = balance ? Pairs::weighed_likelihood : Pairs::likelihood;
  PairTask task{kind, batch, labels, bank, options_of(layout, {0, shares.near, shares.far})};
  for (int64_t k = 0; k < layout.m; ++k)
    task.options[k * kPad] = static_cast<float>(0.5 * batch.ratio(layout.lengths[k]));
  task.limit = clamp;
  const PairSums sums(layout, task, executor);
  const double scale = 1 / (static_cast<double>(batch.n) * written_rows(bank));
  for (int64_t i = 0; i < batch.n; ++i)
    for (int64_t k = 0; k < layout.m; ++k) {
      const auto half = static_cast<float>(0.5 * batch.ratio(layout.lengths[k]) * scale);
      float* const to = out.deltas + i * layout.width() + layout.starts[k];
      const float* const from = sums.deltas + i * layout.padded_width() + layout.padded_starts[k];
      for (int64_t c = 0; c < layout.lengths[k]; ++c) to[c] = half * from[c];
    }
  for (int64_t k = 0; k < layout.m; ++k) out.values[k] = static_cast<float>(scale * sums.values[k]);
}

}  // namespace

void dsh(const Batch& batch, const Labels& labels, const Bank& bank, float alpha, float margin, bool balance,
         const Loss& out, const Executor& executor) {
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const Shares shares = balance ? halves(batch, labels, bank) : Shares{};
  PairTask task{Pairs::contrastive, batch, labels, bank, options_of(layout, {0, shares.near, shares.far})};
  for (int64_t k = 0; k < layout.m; ++k)
    task.options[k * kPad] = static_cast<float>(static_cast<double>(margin) * static_cast<double>(layout.lengths[k]));
  task.own = Own::square;
  const PairSums sums(layout, task, executor);
  const double scale = 1 / (static_cast<double>(batch.n) * written_rows(bank));
  const auto s = static_cast<float>(scale);
  for (int64_t i = 0; i < batch.n; ++i)
    for (int64_t k = 0; k < layout.m; ++k) {
      float* const to = out.deltas + i * layout.width() + layout.starts[k];
      const float* const from = sums.deltas + i * layout.padded_width() + layout.padded_starts[k];
      const float slopes = sums.row_sums[k * batch.n + i];
      for (int64_t c = 0; c < layout.lengths[k]; ++c)
        to[c] = s * (slopes * batch.u[i * layout.bits() + c] - from[c]);
    }
  for (int64_t k = 0; k < layout.m; ++k) out.values[k] = static_cast<float>(0.5 * scale * sums.values[k]);
  add_penalty(Penalty::absolute, layout, batch, alpha, out, executor);
}

void dhn(const Batch& batch, const Labels& labels, const Bank& bank, float alpha, bool balance, const Loss& out,
         const Executor& executor) {
  const Plan plan(batch.lengths);
  likelihood(plan.layout, batch, labels, bank, std::numeric_limits<float>::infinity(), balance, out, executor);
  add_penalty(Penalty::log_cosh, plan.layout, batch, alpha, out, executor);
}

void dbdh(const Batch& batch, const Labels& labels, const Bank& bank, float alpha, float clamp, bool balance,
          const Loss& out, const Executor& executor) {
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  likelihood(layout, batch, labels, bank, clamp, balance, out, executor);
  const Kernels& kernels = active_kernels();
  std::vector<double> squares(layout.m, 0.0), sums(layout.m);
  const Buffer clamped(layout.bits()), ones(layout.bits());
  std::fill_n(static_cast<float*>(ones), layout.bits(), 1.0f);
  for (int64_t i = 0; i < batch.n; ++i) {
    const float* const u = batch.u + i * layout.bits();
    for (int64_t c = 0; c < layout.bits(); ++c) clamped[c] = u[c] > clamp ? clamp : u[c] < -clamp ? -clamp : u[c];
    prefix_dots(kernels, layout, clamped, ones, sums.data());
    for (int64_t k = 0; k < layout.m; ++k) {
      const auto b = static_cast<double>(layout.lengths[k]);
      squares[k] += (sums[k] / b) * (sums[k] / b);
      const auto slope = static_cast<float>(2.0 * alpha * sums[k] / (b * b * static_cast<double>(batch.n)));
      float* const to = out.deltas + i * layout.width() + layout.starts[k];
      for (int64_t j = 0; j < layout.lengths[k]; ++j) to[j] = std::fabs(u[j]) > clamp ? 0.0f : to[j] + slope;
    }
  }
  for (int64_t k = 0; k < layout.m; ++k)
    out.values[k] += static_cast<float>(alpha * squares[k] / static_cast<double>(batch.n));
}

void attraction(const Batch& batch, const Labels& labels, const Bank& bank, const Loss& out,
                const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, bits = layout.bits();
  PairTask task{Pairs::attraction, batch, labels, bank, options_of(layout, {})};
  task.own = Own::inverse;
  task.without = 1e12f;
  task.similar_only = true;
  const PairSums sums(layout, task, executor);
  double pairs = 0;
  for (int64_t i = 0; i < n; ++i) pairs += sums.row_sums[i];
  const auto scale = static_cast<float>(1 / std::max(pairs, 1.0));
  std::vector<double> squares(layout.m);
  const Buffer back(bits);
  for (int64_t i = 0; i < n; ++i) {
    const float* const u = batch.u + i * bits;
    prefix_dots(kernels, layout, u, u, squares.data());
    for (int64_t k = 0; k < layout.m; ++k) {
      unit_back(kernels, u, sums.deltas + i * layout.padded_width() + layout.padded_starts[k], layout.lengths[k],
                Norm(squares[k], 1e12f), scale, back);
      kernels.add_scaled(back, 1.0f, layout.lengths[k], out.deltas + i * layout.width() + layout.starts[k]);
    }
  }
  for (int64_t k = 0; k < layout.m; ++k) out.values[k] += static_cast<float>(scale * sums.values[k]);
}

void lcdsh(const Batch& batch, const Labels& labels, float eta, float clamp, const Loss& out,
           const Executor& executor) {
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const Bank self{batch.u, nullptr, batch.n, labels};
  PairTask task{Pairs::locality, batch, labels, self, options_of(layout, {eta, clamp, 0})};
  for (int64_t k = 0; k < layout.m; ++k)
    task.options[k * kPad + 2] = static_cast<float>(0.5 * batch.ratio(layout.lengths[k]));
  task.signs = true;
  const PairSums sums(layout, task, executor);
  const double scale = 1 / (static_cast<double>(batch.n) * static_cast<double>(batch.n));
  for (int64_t i = 0; i < batch.n; ++i)
    for (int64_t k = 0; k < layout.m; ++k) {
      float* const to = out.deltas + i * layout.width() + layout.starts[k];
      const float* const from = sums.deltas + i * layout.padded_width() + layout.padded_starts[k];
      // theta is symmetric, and so is its slope: both of its sides give the same.
      const auto both = static_cast<float>(batch.ratio(layout.lengths[k]) * scale);
      for (int64_t c = 0; c < layout.lengths[k]; ++c) to[c] = both * from[c];
    }
  for (int64_t k = 0; k < layout.m; ++k) out.values[k] = static_cast<float>(scale * sums.values[k]);
}

void dch(const Batch& batch, const Labels& labels, float gamma, float quantization, float max_cosine,
         const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits();
  const std::vector<uint8_t> similar = similarity(labels, n);
  const auto pairs = static_cast<double>(n) * static_cast<double>(n);
  const auto positives = static_cast<double>(std::count(similar.begin(), similar.end(), 1));
  const bool one_sided = positives == 0 || positives == pairs;
  const auto near = static_cast<float>(one_sided ? 1 : pairs / positives);
  const auto far = static_cast<float>(one_sided ? 1 : pairs / (pairs - positives));
  const bool capped = max_cosine < std::numeric_limits<float>::infinity();
  const float least = capped ? -std::numeric_limits<float>::infinity() : 1e-6f;
  const Bank self{batch.u, nullptr, n, labels};
  PairTask task{Pairs::cauchy, batch, labels, self, options_of(layout, {0, gamma, max_cosine, least, near, far})};
  for (int64_t k = 0; k < m; ++k) task.options[k * kPad] = static_cast<float>(layout.lengths[k]) / 2;
  task.own = Own::inverse;
  const PairSums sums(layout, task, executor);

  std::vector<double> penalty(m, 0.0), squares(m), absolute(m);
  const Buffer g(bits), magnitudes(bits), ones(bits);
  std::fill_n(static_cast<float*>(ones), bits, 1.0f);
  for (int64_t i = 0; i < n; ++i) {
    const float* const u = batch.u + i * bits;
    for (int64_t c = 0; c < bits; ++c) magnitudes[c] = std::fabs(u[c]);
    prefix_dots(kernels, layout, u, u, squares.data());
    prefix_dots(kernels, layout, magnitudes, ones, absolute.data());
    for (int64_t k = 0; k < m; ++k) {
      const auto b = static_cast<double>(layout.lengths[k]);
      const Norm norm(squares[k], 0.0f);
      const double cosine = norm.some ? absolute[k] / std::sqrt(squares[k] * b) : 0;
      const double free = b / 2 * (1 - (cosine > max_cosine ? max_cosine : cosine)), d = free < least ? least : free;
      penalty[k] += std::log1p(d / gamma);
      const bool flat = cosine > max_cosine || free < least;
      const auto slope =
          static_cast<float>(flat ? 0 : -quantization * b / 2 / (gamma + d) / static_cast<double>(n) / std::sqrt(b));
      // The product is symmetric: each of its sides gives the same.
      const float* const from = sums.deltas + i * layout.padded_width() + layout.padded_starts[k];
      for (int64_t j = 0; j < layout.lengths[k]; ++j)
        g[j] = static_cast<float>(2 / pairs) * from[j] + (u[j] > 0 ? slope : u[j] < 0 ? -slope : 0.0f);
      unit_back(kernels, u, g, layout.lengths[k], norm, 1.0f,
                out.deltas + i * layout.width() + layout.starts[k]);
    }
  }
  for (int64_t k = 0; k < m; ++k)
    out.values[k] = static_cast<float>(sums.values[k] / pairs + quantization * penalty[k] / static_cast<double>(n));
}

}  // namespace nhl::train
