// The loss of the batch's triplets.
#include "square.h"

namespace nhl::step {

namespace {

// How similar rows are (n x n): cosines of rows of weights, or whether they are at all.
std::vector<float> grades_of(const Kernels& kernels, const Labels& labels, const std::vector<uint8_t>& similar,
                             int64_t n) {
  std::vector<float> out(similar.begin(), similar.end());
  if (!labels.soft) return out;
  out.resize(n * n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const double x = kernels.dot(labels.soft + i * labels.classes, labels.soft + j * labels.classes, labels.classes);
      out[i * n + j] = x > kNearlyOne ? 1.0f : static_cast<float>(x);
    }
  return out;
}

}  // namespace

void triplets(const Batch& batch, const Labels& labels, const TripletTerm& term, const PenaltyTerm& penalty,
              const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, width = layout.padded_width();
  const bool weighed = batch.weights != nullptr;
  const std::vector<uint8_t> similar = weighed && labels.soft ? std::vector<uint8_t>{} : similarity(labels, n);
  std::vector<float> scale(n, 0.0f), positive, negative;
  double usable = 0, triplets = 0;
  if (weighed) {
    const std::vector<float> grades = grades_of(kernels, labels, similar, n);
    for (int64_t i = 0; i < n; ++i) {
      double near = 0, far = 0;
      for (int64_t j = 0; j < n; ++j) {
        positive.push_back(grades[i * n + j] * batch.weights[j]);
        negative.push_back((1 - grades[i * n + j]) * batch.weights[j]);
        near += positive.back(), far += negative.back();
      }
      if (near * far > 0) scale[i] = static_cast<float>(batch.weights[i] / (near * far));
      usable += near * far > 0 ? batch.weights[i] : 0;
    }
    triplets = static_cast<double>(n) * n * n;
    if (usable == 0) usable = 1;
    for (float& s : scale) s = static_cast<float>(s / usable);
  }
  for (int64_t i = 0; !weighed && i < n; ++i) {
    const int64_t positives = std::count(similar.begin() + i * n, similar.begin() + (i + 1) * n, 1);
    const double count = static_cast<double>(positives) * static_cast<double>(n - positives);
    if (count > 0) scale[i] = static_cast<float>(1 / count);
    usable += count > 0;
    triplets += count;
  }
  for (float& s : scale) s = weighed ? s : static_cast<float>(s / std::max(usable, 1.0));

  const Square square(kernels, layout, batch);
  const int64_t step = n * square.np;
  const Buffer theta(step), slopes(m * step), deltas(n * width);
  constexpr int64_t anchors = kBlock / 4;
  std::vector<double> parts(divide_up(n, anchors) * m, 0.0);
  const double work = static_cast<double>(n) * n * layout.bits() + 10.0 * triplets * m;
  for_blocks(executor, work, n, anchors, [&](int64_t i, int64_t begin, int64_t end) {
    const Buffer scratch(3 * (square.np + kPad));
    for (int64_t k = 0; k < m; ++k) {
      square.gram(k, begin, end, theta, theta);
      kernels.triplets[weighed]({theta, n, square.np, begin, end, similar.data(), scale.data(), positive.data(),
                        negative.data(),
                        static_cast<float>(batch.ratio(layout.lengths[k])), term.margin, term.low,
                        term.high, parts.data() + i * m + k, slopes + k * step, scratch});
    }
  });
  for_blocks(executor, work, n, kBlock, [&](int64_t, int64_t begin, int64_t end) {
    std::fill(deltas + begin * width, deltas + end * width, 0.0f);
    for (int64_t k = 0; k < m; ++k) {
      square.pull(k, begin, end, slopes + k * step, deltas + layout.padded_starts[k], width);
      for (int64_t i = begin; i < end; ++i)
        std::memcpy(out.deltas + i * layout.width() + layout.starts[k], deltas + i * width + layout.padded_starts[k],
                    layout.lengths[k] * sizeof(float));
    }
  });
  const std::vector<double> sums = total(parts, m);
  std::copy(sums.begin(), sums.end(), out.values);
  add_penalty(penalty, {}, layout, batch, out, executor);
}

}  // namespace nhl::step
