// The losses of every row's softmax over the other rows of its batch.
#include "square.h"

namespace nhl::step {

namespace {

// Which distribution over the other rows every row is to have: (n x np), its logarithms or null, and rows' weights.
struct Wanted {
  Wanted(int64_t n, int64_t np, bool logs) : shares(n * np), logs(logs ? n * np : 0), has_logs(logs), weights(n) {}
  Buffer shares, logs;
  bool has_logs;
  std::vector<float> weights;
};

// products: room for (n x np).
Wanted neighbors_of(const ListwiseTerm& term, int64_t n, float* products, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const int64_t d = term.width;
  const Buffer unit(n * d);
  for (int64_t i = 0; i < n; ++i) {
    const float* const x = term.vectors + i * d;
    const auto inverse = static_cast<float>(1 / std::max(std::sqrt(kernels.dot(x, x, d)), 1e-12));
    for (int64_t c = 0; c < d; ++c) unit[i * d + c] = inverse * x[c];
  }
  const Plan plan({d});
  const Square square(kernels, plan.layout, {unit, n, plan.lengths});
  Wanted wanted(n, square.np, true);
  for_blocks(executor, static_cast<double>(n) * n * d, n, kBlock, [&](int64_t, int64_t begin, int64_t end) {
    square.gram(0, begin, end, nullptr, products);
    kernels.listwise_targets({products, n, square.np, begin, end, 1 / term.constant, wanted.shares, wanted.logs});
  });
  std::fill(wanted.weights.begin(), wanted.weights.end(), static_cast<float>(1 / static_cast<double>(n)));
  return wanted;
}

Wanted views_of(const ListwiseTerm& term, int64_t n, int64_t np) {
  Wanted wanted(n, np, false);
  int64_t used = 0;
  for (int64_t i = 0; i < n; ++i) {
    float* const row = wanted.shares + i * np;
    std::fill_n(row, np, 0.0f);
    int64_t count = -1;  // less the row itself
    for (int64_t j = 0; j < n; ++j) count += term.ids[j] == term.ids[i];
    for (int64_t j = 0; j < n; ++j)
      if (j != i && term.ids[j] == term.ids[i]) row[j] = static_cast<float>(1 / static_cast<double>(count));
    wanted.weights[i] = count > 0;
    used += count > 0;
  }
  for (float& weight : wanted.weights) weight = static_cast<float>(weight / static_cast<double>(std::max<int64_t>(used, 1)));
  return wanted;
}

// Adds the divergences between the bits' probabilities of a row and of its views (constants) to values and deltas.
void add_view_gaps(const Layout& layout, const Batch& batch, const ListwiseTerm& term, const Wanted& wanted, int64_t np,
                   double* values, const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const int64_t n = batch.n, m = layout.m, bits = layout.bits();
  std::vector<double> parts(divide_up(n, kBlock) * m, 0.0);
  for_blocks(executor, 30.0 * n * bits, n, kBlock, [&](int64_t block, int64_t begin, int64_t end) {
    const Buffer delta(bits);
    for (int64_t i = begin; i < end; ++i) {
      if (wanted.weights[i] == 0) continue;
      std::fill_n(static_cast<float*>(delta), bits, 0.0f);
      for (int64_t j = 0; j < n; ++j) {
        const float share = wanted.shares[i * np + j];
        if (share == 0) continue;
        const double scale = static_cast<double>(term.constant) * wanted.weights[i] * share;
        double sum = 0;
        for (int64_t k = 0; k < m; ++k) {
          kernels.view_gap(batch.u + i * bits, batch.u + j * bits, layout.first(k), layout.lengths[k],
                           static_cast<float>(scale), &sum, delta);
          parts[block * m + k] += scale * sum;
        }
      }
      for (int64_t k = 0; k < m; ++k)
        kernels.add_scaled(delta, 1.0f, layout.lengths[k], out.deltas + i * layout.width() + layout.starts[k]);
    }
  });
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k) values[k] += sums[k];
}

}  // namespace

void listwise(const Batch& batch, const ListwiseTerm& term, const Loss& out, float* scale_slopes,
              const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits();
  const Buffer signs(n * bits), tanh_slopes(n * bits);
  kernels.straight(batch.u, n * bits, signs, tanh_slopes);
  const Square square(kernels, layout, {signs, n, batch.lengths});
  const int64_t np = square.np, step = n * np;
  const bool neighbors = term.function == ListwiseFunction::divergence;
  const Buffer products(step), slopes(step);
  const Wanted wanted = neighbors ? neighbors_of(term, n, products, executor) : views_of(term, n, np);

  std::vector<double> parts(divide_up(n, kBlock) * 2 * m, 0.0);
  for (int64_t k = 0; k < m; ++k) {
    const int64_t b = layout.lengths[k], wide = padded(b);
    const double work = static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(b + 20);
    for_blocks(executor, work, n, kBlock, [&](int64_t i, int64_t begin, int64_t end) {
      square.gram(k, begin, end, products, products);
      double* const part = parts.data() + 2 * (i * m + k);
      kernels.listwise({products, n, np, begin, end, term.scales[k] / static_cast<float>(b), wanted.shares,
                        wanted.has_logs ? static_cast<float*>(wanted.logs) : nullptr, wanted.weights.data(), part,
                        part + 1, slopes});
    });
    for_blocks(executor, work, n, kBlock, [&](int64_t, int64_t begin, int64_t end) {
      const int64_t count = end - begin;
      const Buffer both(count * np), delta(count * wide);
      // A product of two rows is there twice: in the softmax of one, and of the other.
      kernels.transpose(slopes + begin, np, n, count, both, np, np);
      kernels.add_scaled(slopes + begin * np, 1.0f, count * np, both);
      square.pull_rows(k, count, both, delta, wide);
      for (int64_t i = begin; i < end; ++i) {
        float* const to = out.deltas + i * layout.width() + layout.starts[k];
        for (int64_t c = 0; c < b; ++c) to[c] = delta[(i - begin) * wide + c] * tanh_slopes[i * bits + c];
      }
    });
  }
  const std::vector<double> sums = total(parts, 2 * m);
  std::vector<double> values(m);
  for (int64_t k = 0; k < m; ++k) {
    values[k] = sums[2 * k];
    scale_slopes[k] = static_cast<float>(sums[2 * k + 1] / static_cast<double>(layout.lengths[k]));
  }
  if (!neighbors && term.constant > 0) add_view_gaps(layout, batch, term, wanted, np, values.data(), out, executor);
  std::copy(values.begin(), values.end(), out.values);
}

}  // namespace nhl::step
