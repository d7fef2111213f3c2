// Products of a batch with itself, length by length, and the way back from their slopes to the outputs.
#pragma once

#include "common.h"

namespace nhl::step {

class Square {
 public:
  Square(const Kernels& kernels, const Layout& layout, const Batch& batch)
      : np(padded(batch.n)),
        kernels_(kernels),
        layout_(layout),
        n_(batch.n),
        stride_(padded(layout.bits())),
        rows_(batch.u),
        copy_(stride_ == layout.bits() ? 0 : n_ * stride_),
        columns_(layout.bits() * np) {
    const int64_t bits = layout.bits();
    if (stride_ != bits) {
      std::fill_n(static_cast<float*>(copy_), n_ * stride_, 0.0f);
      for (int64_t i = 0; i < n_; ++i) std::memcpy(copy_ + i * stride_, batch.u + i * bits, bits * sizeof(float));
      rows_ = copy_;
    }
    kernels.transpose(batch.u, bits, n_, bits, columns_, np, np);
  }

  // Rows [begin, end) of G_k = u_k u_k^T, row stride np, in out; `shorter` holds those of G_(k-1) for k > 0, and may
  // be out itself.
  void gram(int64_t k, int64_t begin, int64_t end, const float* shorter, float* out) const {
    const int64_t first = layout_.first(k);
    if (k && shorter != out)
      std::memcpy(out + begin * np, shorter + begin * np, (end - begin) * np * sizeof(float));
    kernels_.product({rows_ + begin * stride_ + first, stride_, 1, columns_ + first * np, np, out + begin * np, np,
                      end - begin, np, layout_.lengths[k] - first, k > 0});
  }

  // Adds the gradient in rows [begin, end) of u_k of a function of G_k with these slopes (n x n, row stride np).
  void pull(int64_t k, int64_t begin, int64_t end, const float* slopes, float* deltas, int64_t delta_stride) const {
    const int64_t width = padded(layout_.lengths[k]);
    float* const out = deltas + begin * delta_stride;
    kernels_.product({slopes + begin * np, np, 1, rows_, stride_, out, delta_stride, end - begin, width, n_, true});
    kernels_.product({slopes + begin, 1, np, rows_, stride_, out, delta_stride, end - begin, width, n_, true});
  }

  // The gradient in `count` rows of u_k of a function of G_k, given these rows of its slopes and their transposes added
  // up (count x np).
  void pull_rows(int64_t k, int64_t count, const float* slopes, float* out, int64_t out_stride) const {
    const int64_t width = padded(layout_.lengths[k]);
    kernels_.product({slopes, np, 1, rows_, stride_, out, out_stride, count, width, n_, false});
  }

  const int64_t np;

 private:
  const Kernels& kernels_;
  const Layout& layout_;
  int64_t n_, stride_;
  const float* rows_;
  Buffer copy_, columns_;
};

}  // namespace nhl::step
