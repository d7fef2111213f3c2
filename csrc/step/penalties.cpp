// Penalties on the outputs.
#include "common.h"

namespace nhl::step {

namespace {

// Means over the bits of a function of one output.
void add_bitwise(const PenaltyTerm& penalty, const Layout& layout, const Batch& batch, const Loss& out,
                 const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const int64_t n = batch.n, m = layout.m, bits = layout.bits();
  const std::vector<float> scale = mean_scales(layout, n, penalty.weight);
  std::vector<double> parts(divide_up(n, kBlock) * m, 0.0);
  for_blocks(executor, 10.0 * n * layout.width(), n, kBlock, [&](int64_t i, int64_t begin, int64_t end) {
    const Buffer scratch(2 * padded(bits));
    kernels.penalty[static_cast<int>(penalty.kind)](layout,
                                            {batch.u + begin * bits, end - begin, scale.data(),
                                             batch.weights ? batch.weights + begin : nullptr, parts.data() + i * m,
                                             out.deltas + begin * layout.width(), scratch});
  });
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k)
    out.values[k] += static_cast<float>(penalty.weight * sums[k] /
                                        (static_cast<double>(n) * static_cast<double>(layout.lengths[k])));
}

void add_balance(float weight, const Layout& layout, const Batch& batch, const Loss& out) {
  const Kernels& kernels = active_kernels();
  const auto n = static_cast<double>(batch.n);
  std::vector<double> squares(layout.m, 0.0), sums(layout.m);
  const Buffer ones(layout.bits());
  std::fill_n(static_cast<float*>(ones), layout.bits(), 1.0f);
  for (int64_t i = 0; i < batch.n; ++i) {
    prefix_dots(kernels, layout, batch.u + i * layout.bits(), ones, sums.data());
    for (int64_t k = 0; k < layout.m; ++k) {
      const auto b = static_cast<double>(layout.lengths[k]);
      squares[k] += batch.weight(i) * (sums[k] / b) * (sums[k] / b);
      const auto slope = static_cast<float>(2.0 * weight * batch.weight(i) * sums[k] / (b * b * n));
      float* const to = out.deltas + i * layout.width() + layout.starts[k];
      for (int64_t c = 0; c < layout.lengths[k]; ++c) to[c] += slope;
    }
  }
  for (int64_t k = 0; k < layout.m; ++k) out.values[k] += static_cast<float>(weight * squares[k] / n);
}

// Of the cosine of |u| and 1, sum |u| / (|u| sqrt b), whose gradient is (sign u / sqrt b - cosine u / |u|) / |u|.
void add_cauchy(float weight, float gamma, float cap, const Layout& layout, const Batch& batch, const Loss& out) {
  const Kernels& kernels = active_kernels();
  const int64_t m = layout.m, bits = layout.bits();
  const auto n = static_cast<double>(batch.n);
  std::vector<double> values(m, 0.0), squares(m), absolute(m);
  const Buffer magnitudes(bits), ones(bits);
  std::fill_n(static_cast<float*>(ones), bits, 1.0f);
  for (int64_t i = 0; i < batch.n; ++i) {
    const float* const u = batch.u + i * bits;
    for (int64_t c = 0; c < bits; ++c) magnitudes[c] = std::fabs(u[c]);
    prefix_dots(kernels, layout, u, u, squares.data());
    prefix_dots(kernels, layout, magnitudes, ones, absolute.data());
    for (int64_t k = 0; k < m; ++k) {
      const auto b = static_cast<double>(layout.lengths[k]);
      const Norm norm(squares[k], 0.0f);
      const double cosine = norm.some ? absolute[k] / std::sqrt(squares[k] * b) : 0;
      const double free = b / 2 * (1 - (cosine > cap ? cap : cosine)), d = free < 1e-6 ? 1e-6 : free;
      values[k] += batch.weight(i) * std::log1p(d / gamma);
      if (!norm.some || cosine > cap || free < 1e-6) continue;
      const double slope = -weight * batch.weight(i) * b / 2 / (gamma + d) / n / std::sqrt(squares[k]);
      const auto sign = static_cast<float>(slope / std::sqrt(b));
      const auto along = static_cast<float>(slope * cosine / std::sqrt(squares[k]));
      float* const to = out.deltas + i * layout.width() + layout.starts[k];
      for (int64_t c = 0; c < layout.lengths[k]; ++c)
        to[c] += (u[c] > 0 ? sign : u[c] < 0 ? -sign : 0.0f) - along * u[c];
    }
  }
  for (int64_t k = 0; k < m; ++k) out.values[k] += static_cast<float>(weight * values[k] / n);
}

}  // namespace

void add_penalty(const PenaltyTerm& penalty, const std::vector<float>& constants, const Layout& layout,
                 const Batch& batch, const Loss& out, const Executor& executor) {
  if (penalty.weight == 0 || penalty.kind == Penalty::none) return;
  if (penalty.kind == Penalty::balance) return add_balance(penalty.weight, layout, batch, out);
  if (penalty.kind == Penalty::cauchy)
    return add_cauchy(penalty.weight, constants.at(0), constants.at(1), layout, batch, out);
  add_bitwise(penalty, layout, batch, out, executor);
}

}  // namespace nhl::step
