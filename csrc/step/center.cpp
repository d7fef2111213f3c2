// The losses of an output and its centre.
#include "common.h"

namespace nhl::step {

void center(CenterFunction function, const Batch& batch, const float* centers, const int64_t* ids, bool between,
            float constant, const Loss& out, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const Plan plan(batch.lengths);
  const Layout& layout = plan.layout;
  const int64_t n = batch.n, m = layout.m, bits = layout.bits();
  const std::vector<float> scale = mean_scales(layout, n, 1.0);
  std::vector<double> parts(divide_up(n, kBlock) * m, 0.0);
  for_blocks(executor, 10.0 * n * layout.width(), n, kBlock, [&](int64_t i, int64_t begin, int64_t end) {
    const Buffer scratch(4 * padded(bits) + m * kPad);
    kernels.center[static_cast<int>(function)][between](
        layout, {batch.u + begin * bits, end - begin, ids ? centers : centers + begin * layout.width(),
                 ids ? ids + begin : nullptr, constant, scale.data(),
                 batch.weights ? batch.weights + begin : nullptr, parts.data() + i * m,
                 out.deltas + begin * layout.width(), scratch});
  });
  const std::vector<double> sums = total(parts, m);
  for (int64_t k = 0; k < m; ++k)
    out.values[k] = static_cast<float>(sums[k] / (static_cast<double>(n) * static_cast<double>(layout.lengths[k])));
}

}  // namespace nhl::step
