// The projection and its gradients, the distillation, the dominance weights and the combined gradient.
#include <cmath>

#include "square.h"

namespace nhl::step {

bool all_finite(const float* x, int64_t count) { return active_kernels().finite(x, count); }

void project(const float* features, int64_t n, int64_t d, const float* weight, const float* bias, int64_t bits,
             float* u, float* gram, const Executor& executor) {
  if (n == 0) return;
  const Kernels& kernels = active_kernels();
  constexpr int64_t strip = 256;
  const int64_t left_rows = bits + (gram ? n : 0), blocks = divide_up(n, kBlock);
  const Executor shared = share(executor, static_cast<double>(n) * left_rows * d);
  // The rows of weight and features are cut, too, where there are more threads than blocks of the batch.
  const int64_t parts = std::clamp<int64_t>(divide_up(shared.threads, blocks), 1, divide_up(left_rows, 48));
  const int64_t part = divide_up(divide_up(left_rows, parts), 12) * 12;
  run_units(shared, blocks * parts, no_scratch, [&](int64_t unit, NoScratch&) {
    const int64_t begin = unit / parts * kBlock, count = std::min(kBlock, n - begin), np = padded(count);
    const int64_t top = unit % parts * part, bottom = std::min(left_rows, top + part);
    const int64_t w0 = std::min(top, bits), w1 = std::min(bottom, bits), g0 = std::max(top, bits) - bits,
                  g1 = std::max(bottom, bits) - bits;
    if (top >= bottom) return;
    const Buffer columns(strip * np), product((w1 - w0) * np);
    for (int64_t r = w0; r < w1; ++r) std::fill_n(product + (r - w0) * np, np, bias[r]);
    for (int64_t k = 0; k < d; k += strip) {
      const int64_t depth = std::min(strip, d - k);
      kernels.transpose(features + begin * d + k, d, count, depth, columns, np, np);
      if (w1 > w0) kernels.product({weight + w0 * d + k, d, 1, columns, np, product, np, w1 - w0, np, depth, true});
      if (g1 > g0)
        kernels.product({features + g0 * d + k, d, 1, columns, np, gram + g0 * n + begin, n, g1 - g0, count, depth,
                         k > 0});
    }
    if (w1 > w0) kernels.transpose(product, np, w1 - w0, count, u + begin * bits + w0, bits, 0);
  });
}

void project_back(float scale, const float* du, int64_t n, int64_t bits, const float* features, int64_t d,
                  const float* weight, float* d_features, float* d_weight, float* d_bias, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Buffer scaled(n * bits);
  for (int64_t i = 0; i < n * bits; ++i) scaled[i] = scale * du[i];
  if (d_bias) {
    std::fill_n(d_bias, bits, 0.0f);
    const Buffer part(bits);
    for (int64_t begin = 0; begin < n; begin += 16) {
      std::fill_n(static_cast<float*>(part), bits, 0.0f);
      for (int64_t i = begin; i < std::min(n, begin + 16); ++i)
        kernels.add_scaled(scaled + i * bits, 1.0f, bits, part);
      kernels.add_scaled(part, 1.0f, bits, d_bias);
    }
  }
  for_blocks(executor, 2.0 * n * bits * d, d, 128, [&](int64_t, int64_t begin, int64_t end) {
    const int64_t cols = end - begin;
    if (d_features) kernels.product({scaled, bits, 1, weight + begin, d, d_features + begin, d, n, cols, bits, false});
    if (d_weight) kernels.product({scaled, 1, bits, features + begin, d, d_weight + begin, d, bits, cols, n, false});
  });
}

namespace {

// D_k, and lambda times the gradient of their sum added to the deltas (n x padded width).
void cascade(const Kernels& kernels, const Layout& layout, const Batch& batch, float weight, float* deltas,
             float* values, const Executor& executor) {
  const int64_t n = batch.n, m = layout.m;
  const Square square(kernels, layout, batch);
  const int64_t step = n * square.np;
  const Buffer grams(m * step);
  const double work = static_cast<double>(n) * n * layout.bits(), n_squared = static_cast<double>(n) * n;
  for_blocks(executor, work, n, kBlock, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t k = 0; k < m; ++k)
      square.gram(k, begin, end, k ? grams + (k - 1) * step : nullptr, grams + k * step);
  });
  std::vector<double> parts(divide_up(n, kBlock) * (m - 1), 0.0);
  for_blocks(executor, work, n, kBlock, [&](int64_t i, int64_t begin, int64_t end) {
    kernels.cascade({grams + begin, step, square.np, n, end - begin, m, static_cast<float>(2 * weight / n_squared),
                     parts.data() + i * (m - 1)});
  });
  for_blocks(executor, work, n, kBlock, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t k = 0; k + 1 < m; ++k)
      square.pull(k, begin, end, grams + k * step, deltas + layout.padded_starts[k], layout.padded_width());
  });
  const std::vector<double> sums = total(parts, m - 1);
  for (int64_t k = 0; k + 1 < m; ++k) values[k] = static_cast<float>(sums[k] / n_squared);
}

// dots[k, i] = <g_i^k, g_k^k> for i >= k, from the Gram matrix of the features.
std::vector<double> dots_of_gram(const Kernels& kernels, const Layout& layout, int64_t n, const float* gram,
                                 const float* deltas, const Executor& executor) {
  const int64_t m = layout.m, width = layout.padded_width();
  std::vector<double> parts(divide_up(n, kBlock) * m * m, 0.0);
  for_blocks(executor, static_cast<double>(n) * n * width, n, kBlock, [&](int64_t i, int64_t begin, int64_t end) {
    const Buffer product((end - begin) * width);
    kernels.product({gram + begin * n, n, 1, deltas, width, product, width, end - begin, width, n, false});
    kernels.gram_dots(layout, deltas + begin * width, product, end - begin, parts.data() + i * m * m);
  });
  return total(parts, m * m);
}

// The same from the products delta_i^T F, a block of features' columns at a time.
std::vector<double> dots_of_products(const Kernels& kernels, const Layout& layout, int64_t n, const float* features,
                                     int64_t d, const float* deltas, const Executor& executor) {
  constexpr int64_t size = 256;
  const int64_t m = layout.m, width = layout.padded_width();
  std::vector<double> parts(divide_up(d, size) * m * m, 0.0);
  for_blocks(executor, static_cast<double>(n) * d * width, d, size, [&](int64_t i, int64_t begin, int64_t end) {
    const int64_t cols = end - begin, stride = padded(cols);
    const Buffer product(width * stride);
    kernels.product({deltas, 1, width, features + begin, d, product, stride, width, cols, n, false});
    double* const out = parts.data() + i * m * m;
    for (int64_t k = 0; k < m; ++k)
      for (int64_t j = k; j < m; ++j)
        for (int64_t r = 0; r < layout.lengths[k]; ++r)
          out[k * m + j] += kernels.dot(product + (layout.padded_starts[k] + r) * stride,
                                        product + (layout.padded_starts[j] + r) * stride, cols);
  });
  return total(parts, m * m);
}

// See nhl_fast.head.weighting.dominance_weights. NaN ends in every weight.
std::vector<double> dominance_weights(const std::vector<double>& dots, int64_t m) {
  std::vector<double> weights(m, 1.0);
  double sum = 1.0;
  for (int64_t i = 1; i < m; ++i) {
    for (int64_t k = 0; k < i; ++k) {
      const double dot = dots[k * m + i];
      if (dot >= 0) continue;
      const double bound = weights[k] * std::max(dots[k * m + k], 0.0) / static_cast<double>(m - 1 - k) / std::fabs(dot);
      if (!(bound >= weights[i])) weights[i] = bound;
    }
    sum += weights[i];
  }
  for (double& w : weights) w *= static_cast<double>(m) / sum;
  return weights;
}

}  // namespace

void combine(const Batch& batch, const Combine& step, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, width = layout.padded_width();
  const Buffer deltas(n * width);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < m; ++k) {
      float* const to = deltas + i * width + layout.padded_starts[k];
      const int64_t b = layout.lengths[k];
      std::memcpy(to, step.deltas + i * layout.width() + layout.starts[k], b * sizeof(float));
      std::fill(to + b, to + padded(b), 0.0f);
    }
  std::fill_n(step.distill, m, 0.0f);
  if (step.distill_weight > 0 && m > 1)
    cascade(kernels, layout, batch, step.distill_weight, deltas, step.distill, executor);
  std::vector<double> weights;
  if (step.fixed) {
    weights.assign(step.fixed, step.fixed + m);
  } else {
    const std::vector<double> dots =
        step.gram ? dots_of_gram(kernels, layout, n, step.gram, deltas, executor)
                  : dots_of_products(kernels, layout, n, step.features, step.d, deltas, executor);
    weights = dominance_weights(dots, m);
    std::copy(dots.begin(), dots.end(), step.dots);
  }
  double sum = 0;
  for (int64_t k = 0; k < m; ++k)
    sum += weights[k] * (static_cast<double>(step.values[k]) + static_cast<double>(step.distill_weight) * step.distill[k]);
  *step.total = static_cast<float>(sum);
  std::copy(weights.begin(), weights.end(), step.weights);
  for_blocks(executor, static_cast<double>(n) * width, n, kBlock, [&](int64_t, int64_t begin, int64_t end) {
    kernels.weigh(layout, deltas + begin * width, end - begin, step.weights, step.du + begin * layout.bits());
  });
}

}  // namespace nhl::step
