// The training step's raw-pointer contract: no PyTorch in here. Numbers are float32, rows contiguous. A batch has
// n >= 1 rows of L = lengths.back() outputs u; `deltas` is the expanded form (n x sum of the lengths) of each length's
// gradient with respect to its own outputs, `values` has one number a length. Nothing depends on the number of
// threads, to the last bit.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace nhl::train {

using Lengths = std::vector<int64_t>;

// Class ids, or label sets with one byte a class (zero or not).
struct Labels {
  const int64_t* ids;
  const uint8_t* flags;
  int64_t classes;
};

struct Batch {
  const float* u;
  int64_t n;
  Lengths lengths;
  float reference = 0;  // inner products of b bits count reference / b times; 0: as they are

  double ratio(int64_t b) const { return reference > 0 ? static_cast<double>(reference) / static_cast<double>(b) : 1; }
};

struct Loss {
  float* values;
  float* deltas;
};

// u (n x bits) = features (n x d) weight^T + bias, and where `gram` is given the Gram matrix (n x n) of the features.
void project(const float* features, int64_t n, int64_t d, const float* weight, const float* bias, int64_t bits,
             float* u, float* gram, const Executor& executor);

// Gradients of features (n x d), weight (bits x d), bias (bits) from scale * du (n x bits); null where not wanted.
void project_back(float scale, const float* du, int64_t n, int64_t bits, const float* features, int64_t d,
                  const float* weight, float* d_features, float* d_weight, float* d_bias, const Executor& executor);

bool all_finite(const float* x, int64_t count);

// The distillation, the dominance dots and weights and the combined gradient, from the losses' values and deltas.
struct Combine {
  const float* features;  // n x d, read where there is no Gram matrix
  int64_t d;
  const float* gram;   // n x n, or null
  const float* fixed;  // m weights in place of the dominance-aware ones, or null
  float distill_weight;
  const float* values;
  const float* deltas;
  // Out: the total, D_k, a_k, the dots (m x m, with dominance weights) and the total's gradient (n x bits).
  float* total;
  float* distill;
  float* weights;
  float* dots;
  float* du;
};
void combine(const Batch& batch, const Combine& step, const Executor& executor);

// CSQ (option: weight of the quantization) and DPN (option: margin) with centres of +-1 (classes x expanded width), or
// with one centre a row where there are no ids.
void pointwise(Pointwise kind, const Batch& batch, const float* centers, const int64_t* ids, float option,
               const Loss& out, const Executor& executor);

// The last outputs of all training items (`count` x L); rows not written count for nothing.
struct Bank {
  const float* u;
  const uint8_t* written;
  int64_t count;
  Labels labels;
};
// option: DSH alpha and margin; DHN alpha; DBDH alpha and the clamp (infinity for none). balance: similar and
// dissimilar pairs weigh half each.
void dsh(const Batch& batch, const Labels& labels, const Bank& bank, float alpha, float margin, bool balance,
         const Loss& out, const Executor& executor);
void dhn(const Batch& batch, const Labels& labels, const Bank& bank, float alpha, bool balance, const Loss& out,
         const Executor& executor);
void dbdh(const Batch& batch, const Labels& labels, const Bank& bank, float alpha, float clamp, bool balance,
          const Loss& out, const Executor& executor);
// Adds MDSH's pair term.
void attraction(const Batch& batch, const Labels& labels, const Bank& bank, const Loss& out,
                const Executor& executor);

// clamp: bound on theta, infinity for none.
void lcdsh(const Batch& batch, const Labels& labels, float eta, float clamp, const Loss& out,
           const Executor& executor);
// max_cosine: infinity for none.
void dch(const Batch& batch, const Labels& labels, float gamma, float quantization, float max_cosine,
         const Loss& out, const Executor& executor);
void dtsh(const Batch& batch, const Labels& labels, float margin, float quantization, float low, float high,
          const Loss& out, const Executor& executor);

// scale * sums over rows and classes of -[y log p + w (1 - y) log(1 - p)], p the softmax over centres (classes x
// expanded width), plus quantization * mean (|u| - 1)^2.
void center_softmax(const Batch& batch, const Labels& labels, const float* centers, int64_t classes, float scale,
                    float negative_weight, float quantization, const Loss& out, const Executor& executor);

}  // namespace nhl::train
