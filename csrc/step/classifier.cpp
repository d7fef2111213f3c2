// The loss of a linear classifier of the codes, which is learned along.
#include "common.h"

namespace nhl::step {

namespace {

// 1 / the number (or the weights' sum) of every row's classes, times the row's weight; 0 without a class.
std::vector<float> row_shares(const Batch& batch, const Labels& labels, int64_t classes, int64_t begin, int64_t count,
                              int64_t np) {
  std::vector<float> out(np, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (begin + i) * classes;
    float number = labels.ids ? 1.0f : 0.0f;
    for (int64_t c = 0; labels.ids == nullptr && c < classes; ++c)
      number += labels.soft ? labels.soft[row + c] : labels.flags[row + c] != 0 ? 1.0f : 0.0f;
    if (number > 0) out[i] = static_cast<float>(batch.weight(begin + i) / static_cast<double>(number));
  }
  return out;
}

}  // namespace

void classifier(const Batch& batch, const Labels& labels, const ClassifierTerm& term, const PenaltyTerm& penalty,
                const Loss& out, float* weight_slopes, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits(), width = layout.width(), classes = term.classes;
  const auto scale = static_cast<float>(1 / static_cast<double>(n));
  const Buffer signs(n * bits);
  for (int64_t i = 0; i < n * bits; ++i)
    signs[i] = std::isnan(batch.u[i]) ? batch.u[i] : batch.u[i] > 0 ? 1.0f : -1.0f;
  // At most 16 pieces, whatever the number of threads: their sums are added up in one order.
  const int64_t piece = divide_up(divide_up(n, 16), kBlock) * kBlock, pieces = divide_up(n, piece);
  std::vector<double> parts(pieces * m, 0.0);
  const Buffer slopes(pieces * classes * width);
  std::fill_n(static_cast<float*>(slopes), pieces * classes * width, 0.0f);
  const double work = static_cast<double>(n) * classes * (3 * width + 40 * m);
  for_blocks(executor, work, n, piece, [&](int64_t part, int64_t from, int64_t to) {
    const Buffer columns(bits * kBlock), logits(classes * kBlock), scratch(2 * classes * kBlock),
        soft(labels.soft ? classes * kBlock : 0);
    float* const own = slopes + part * classes * width;
    for (int64_t begin = from; begin < to; begin += kBlock) {
      const int64_t count = std::min(kBlock, to - begin), np = padded(count);
      const float* const rows = signs + begin * bits;
      kernels.transpose(rows, bits, count, bits, columns, np, np);
      std::vector<int32_t> ids;
      std::vector<uint32_t> words;
      if (labels.soft)
        kernels.transpose(labels.soft + begin * classes, classes, count, classes, soft, np, np);
      else if (labels.ids)
        ids = label_ids(labels, nullptr, begin, count, np);
      else
        words = label_words(labels, nullptr, begin, count, np);
      const std::vector<float> shares = row_shares(batch, labels, classes, begin, count, np);
      for (int64_t k = 0; k < m; ++k) {
        const int64_t b = layout.lengths[k], start = layout.starts[k];
        kernels.product({term.weights + start, width, 1, columns, np, logits, np, classes, np, b, false});
        kernels.softmax[labels.soft != nullptr]({logits, classes, count, np, labels.ids ? ids.data() : nullptr,
                                                 words.data(), 0.0f, shares.data(), soft, true,
                                                 parts.data() + part * m + k, scratch});
        kernels.product({logits, 1, np, term.weights + start, width, out.deltas + begin * width + start, width, count,
                         b, classes, false});
        kernels.product({logits, np, 1, rows, bits, own + start, width, classes, b, count, true});
      }
    }
    for (int64_t i = from * width; i < to * width; ++i) out.deltas[i] *= scale;
  });
  std::fill_n(weight_slopes, classes * width, 0.0f);
  for (int64_t part = 0; part < pieces; ++part)
    kernels.add_scaled(slopes + part * classes * width, scale, classes * width, weight_slopes);
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k) out.values[k] = static_cast<float>(scale * sums[k]);
  add_penalty(penalty, {}, layout, batch, out, executor);
}

}  // namespace nhl::step
