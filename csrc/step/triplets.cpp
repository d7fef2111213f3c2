// The loss of the batch's triplets.
#include "square.h"

namespace nhl::step {

void triplets(const Batch& batch, const Labels& labels, const TripletTerm& term, const PenaltyTerm& penalty,
              const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, width = layout.padded_width();
  const std::vector<uint8_t> similar = similarity(labels, n);
  std::vector<float> scale(n, 0.0f);
  double usable = 0, triplets = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t positives = std::count(similar.begin() + i * n, similar.begin() + (i + 1) * n, 1);
    const double count = static_cast<double>(positives) * static_cast<double>(n - positives);
    if (count > 0) scale[i] = static_cast<float>(1 / count);
    usable += count > 0;
    triplets += count;
  }
  for (float& s : scale) s = static_cast<float>(s / std::max(usable, 1.0));

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
      kernels.triplets({theta, n, square.np, begin, end, similar.data(), scale.data(),
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
