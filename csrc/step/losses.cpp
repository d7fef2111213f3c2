// The losses of single outputs, of triplets, and of a softmax over centres.
#include <cmath>

#include "square.h"

namespace nhl::train {
namespace {

std::vector<float> mean_scales(const Layout& layout, int64_t n, double weight) {
  std::vector<float> out;
  for (int64_t k = 0; k < layout.m; ++k)
    out.push_back(static_cast<float>(weight / (static_cast<double>(n) * static_cast<double>(layout.lengths[k]))));
  return out;
}

}  // namespace

void pointwise(Pointwise kind, const Batch& batch, const float* centers, const int64_t* ids, float option,
               const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits();
  const std::vector<float> scale = mean_scales(layout, n, 1.0);
  std::vector<double> parts(divide_up(n, kBlock) * m, 0.0);
  for_blocks(executor, 10.0 * n * layout.width(), n, kBlock, [&](int64_t i, int64_t begin, int64_t end) {
    const Buffer scratch(4 * padded(bits) + m * kPad);
    kernels.pointwise[static_cast<int>(kind)](
        layout, {batch.u + begin * bits, end - begin, ids ? centers : centers + begin * layout.width(),
                 ids ? ids + begin : nullptr, option, scale.data(), parts.data() + i * m,
                 out.deltas + begin * layout.width(), scratch});
  });
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k)
    out.values[k] = static_cast<float>(sums[k] / (static_cast<double>(n) * static_cast<double>(layout.lengths[k])));
}

void add_penalty(Penalty kind, const Layout& layout, const Batch& batch, double weight, const Loss& out,
                 const Executor& executor) {
  if (weight == 0) return;
  const Kernels& kernels = active_kernels();
  const int64_t n = batch.n, m = layout.m, bits = layout.bits();
  const std::vector<float> scale = mean_scales(layout, n, weight);
  std::vector<double> parts(divide_up(n, kBlock) * m, 0.0);
  for_blocks(executor, 10.0 * n * layout.width(), n, kBlock, [&](int64_t i, int64_t begin, int64_t end) {
    const Buffer scratch(2 * padded(bits));
    kernels.penalty[static_cast<int>(kind)](layout,
                                            {batch.u + begin * bits, end - begin, scale.data(), parts.data() + i * m,
                                             out.deltas + begin * layout.width(), scratch});
  });
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k)
    out.values[k] += static_cast<float>(weight * sums[k] /
                                        (static_cast<double>(n) * static_cast<double>(layout.lengths[k])));
}

void dtsh(const Batch& batch, const Labels& labels, float margin, float quantization, float low, float high,
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
                        static_cast<float>(batch.ratio(layout.lengths[k])), margin, low, high,
                        parts.data() + i * m + k, slopes + k * step, scratch});
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
  add_penalty(Penalty::sign, layout, batch, quantization, out, executor);
}

void center_softmax(const Batch& batch, const Labels& labels, const float* centers, int64_t classes, float scale,
                    float negative_weight, float quantization, const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits(), width = layout.width();
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
      kernels.product({centers + start, width, 1, columns, np, logits, np, classes, np, b, false});
      const auto sharpness = static_cast<float>(std::sqrt(batch.ratio(b)));
      for (int64_t i = 0; i < np; ++i) inverse[k * np + i] *= sharpness;
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t i = 0; i < np; ++i) logits[c * np + i] *= inverse[k * np + i];
      kernels.softmax({logits, classes, count, np, labels.ids ? ids.data() : nullptr, words.data(), negative_weight,
                       wide, parts.data() + block * m + k, scratch});
      kernels.product({logits, 1, np, centers + start, width, g, b, count, b, classes, false});
      for (int64_t i = 0; i < count; ++i)
        unit_back(kernels, batch.u + (begin + i) * bits, g + i * b, b, norms[i * m + k], sharpness * scale,
                  out.deltas + (begin + i) * width + start);
    }
  });
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k) out.values[k] = static_cast<float>(scale * sums[k]);
  add_penalty(Penalty::square, layout, batch, quantization, out, executor);
}

}  // namespace nhl::train
