// The loss of a softmax over the centres.
#include "common.h"

namespace nhl::step {

void softmax(const Batch& batch, const Labels& labels, const SoftmaxTerm& term, const PenaltyTerm& penalty,
             const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits(), width = layout.width(), classes = term.classes;
  const auto scale = static_cast<float>(term.share / static_cast<double>(n));
  // Logits lie within +-sqrt(b), or +-sqrt(reference): up to here exp(-2 sqrt(b)) is a normal float32.
  const bool wide = (batch.reference > 0 ? batch.reference : static_cast<float>(bits)) > 1800;
  std::vector<double> parts(divide_up(n, kBlock) * m, 0.0);
  const double work = static_cast<double>(n) * classes * (2 * width + 40 * m);
  for_blocks(executor, work, n, kBlock, [&](int64_t block, int64_t begin, int64_t end) {
    const int64_t count = end - begin, np = padded(count);
    const Buffer columns(bits * np), logits(classes * np), scratch(2 * classes * np), g(count * padded(bits)),
        inverse(m * np);
    std::vector<double> squares(m);
    std::vector<Norm> norms;
    kernels.transpose(batch.u + begin * bits, bits, count, bits, columns, np, np);
    std::fill_n(static_cast<float*>(inverse), m * np, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const float* const u = batch.u + (begin + i) * bits;
      prefix_dots(kernels, layout, u, u, squares.data());
      for (int64_t k = 0; k < m; ++k)
        inverse[k * np + i] = norms.emplace_back(squares[k], 0.0f).inverse;
    }
    std::vector<int32_t> ids;
    std::vector<uint32_t> words;
    if (labels.ids)
      ids = label_ids(labels, nullptr, begin, count, np);
    else
      words = label_words(labels, nullptr, begin, count, np);
    for (int64_t k = 0; k < m; ++k) {
      const int64_t b = layout.lengths[k], start = layout.starts[k];
      kernels.product({term.centers + start, width, 1, columns, np, logits, np, classes, np, b, false});
      const auto sharpness = static_cast<float>(std::sqrt(batch.ratio(b)));
      for (int64_t i = 0; i < np; ++i) inverse[k * np + i] *= sharpness;
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t i = 0; i < np; ++i) logits[c * np + i] *= inverse[k * np + i];
      kernels.softmax({logits, classes, count, np, labels.ids ? ids.data() : nullptr, words.data(), term.negative_weight,
                       wide, parts.data() + block * m + k, scratch});
      kernels.product({logits, 1, np, term.centers + start, width, g, b, count, b, classes, false});
      for (int64_t i = 0; i < count; ++i)
        unit_back(kernels, batch.u + (begin + i) * bits, g + i * b, b, norms[i * m + k], sharpness * scale,
                  out.deltas + (begin + i) * width + start);
    }
  });
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k) out.values[k] = static_cast<float>(scale * sums[k]);
  add_penalty(penalty, {}, layout, batch, out, executor);
}

}  // namespace nhl::step
