// The loss of a softmax over the centres.
#include "common.h"

namespace nhl::step {

namespace {

// f(row, class, y) for the classes of the rows [begin, begin + count), rows counted from 0; an id out of range is of
// none.
template <class F>
void for_members(const Labels& labels, int64_t classes, int64_t begin, int64_t count, const F& f) {
  for (int64_t i = 0; i < count; ++i) {
    if (labels.ids) {
      const int64_t id = labels.ids[begin + i];
      if (id >= 0 && id < classes) f(i, id, 1.0f);
      continue;
    }
    for (int64_t c = 0; labels.soft && c < classes; ++c)
      if (labels.soft[(begin + i) * classes + c] > 0) f(i, c, labels.soft[(begin + i) * classes + c]);
    if (labels.soft) continue;
    const uint8_t* const flags = labels.flags + (begin + i) * classes;
    for (int64_t c = 0; c < classes; ++c)
      if (flags[c]) f(i, c, 1.0f);
  }
}

// The logit of a row's own class, x = sharpness * cosine, with its margin; `slope` is the derivative in x.
float with_margin(const SoftmaxTerm& term, float x, float y, float sharpness, float& slope) {
  slope = 1;
  if (term.function == SoftmaxFunction::cosine) return x - sharpness * (y * term.constant);
  const float cosine = x / sharpness, square = (1 - cosine) * (1 + cosine), least = 1e-4f;
  const float sine = std::sqrt(square > least ? square : least);
  const float c = std::cos(y * term.constant), s = std::sin(y * term.constant);
  slope = square > least ? c + s * cosine / sine : c;
  return sharpness * (cosine * c - sine * s);
}

}  // namespace

void softmax(const Batch& batch, const Labels& labels, const SoftmaxTerm& term, const PenaltyTerm& penalty,
             const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits(), width = layout.width(), classes = term.classes;
  const auto scale = static_cast<float>(term.share / static_cast<double>(n));
  // Logits lie within +-sqrt(b), or +-sqrt(reference): up to here exp(-2 sqrt(b)) is a normal float32.
  const bool margins = term.function != SoftmaxFunction::likelihood;
  const float reach = std::sqrt(batch.reference > 0 ? batch.reference : static_cast<float>(bits));
  const float apart = term.function == SoftmaxFunction::cosine ? 2 + std::fabs(term.constant) : 2;
  const bool wide = apart * reach > 2 * std::sqrt(1800.0f);
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
    const Buffer soft(labels.soft ? classes * np : 0);
    if (labels.soft)
      kernels.transpose(labels.soft + begin * classes, classes, count, classes, soft, np, np);
    else if (labels.ids)
      ids = label_ids(labels, nullptr, begin, count, np);
    else
      words = label_words(labels, nullptr, begin, count, np);
    const Buffer shares(margins || batch.weights ? np : 0), falls(margins ? classes * np : 0);
    if (margins) {
      std::fill_n(static_cast<float*>(shares), np, 0.0f);
      for_members(labels, classes, begin, count, [&](int64_t i, int64_t, float y) { shares[i] += y; });
      for (int64_t i = 0; i < np; ++i) shares[i] = shares[i] > 0 ? 1 / shares[i] : 0;
    } else if (batch.weights) {
      std::fill_n(static_cast<float*>(shares), np, 1.0f);
    }
    for (int64_t i = 0; batch.weights && i < count; ++i) shares[i] *= batch.weights[begin + i];
    for (int64_t k = 0; k < m; ++k) {
      const int64_t b = layout.lengths[k], start = layout.starts[k];
      kernels.product({term.centers + start, width, 1, columns, np, logits, np, classes, np, b, false});
      const auto sharpness = static_cast<float>(std::sqrt(batch.ratio(b)));
      for (int64_t i = 0; i < np; ++i) inverse[k * np + i] *= sharpness;
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t i = 0; i < np; ++i) logits[c * np + i] *= inverse[k * np + i];
      if (margins)
        for_members(labels, classes, begin, count, [&](int64_t i, int64_t c, float y) {
          float& x = logits[c * np + i];
          x = with_margin(term, x, y, sharpness * std::sqrt(static_cast<float>(b)), falls[c * np + i]);
        });
      kernels.softmax[labels.soft != nullptr]({logits, classes, count, np, labels.ids ? ids.data() : nullptr, words.data(),
                       margins ? 0 : term.constant,
                       margins || batch.weights ? static_cast<const float*>(shares) : nullptr, soft, wide,
                       parts.data() + block * m + k, scratch});
      if (margins)
        for_members(labels, classes, begin, count,
                    [&](int64_t i, int64_t c, float) { logits[c * np + i] *= falls[c * np + i]; });
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
