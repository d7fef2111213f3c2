// The training step's raw-pointer contract: no PyTorch in here. Numbers are float32, rows contiguous. A batch has
// n >= 1 rows of L = lengths.back() outputs u; `deltas` is the expanded form (n x sum of the lengths) of each length's
// gradient with respect to its own outputs, `values` has one number a length. Nothing depends on the number of
// threads, to the last bit.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../common/executor.h"
#include "kernels.h"

namespace nhl::step {

using Lengths = std::vector<int64_t>;

// Class ids, label sets with one byte a class (zero or not), or rows of weights of the classes.
struct Labels {
  const int64_t* ids;
  const uint8_t* flags;
  int64_t classes;
  const float* soft = nullptr;
};

struct Batch {
  const float* u;
  int64_t n;
  Lengths lengths;
  float reference = 0;  // inner products of b bits count reference / b times; 0: as they are
  const float* weights = nullptr;  // how much each row counts, 1 in the mean; null: 1

  double weight(int64_t i) const { return weights ? static_cast<double>(weights[i]) : 1; }
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

// A penalty on the outputs and its weight.
struct PenaltyTerm {
  Penalty kind;
  float weight;
};

// A function of an output and its centre: centres of +-1 (classes x expanded width), or one a row where there are no
// ids, `between` -1 and 1 perhaps. constant: CSQ's weight of the quantization, DPN's margin.
void center(CenterFunction function, const Batch& batch, const float* centers, const int64_t* ids, bool between,
            float constant, const Loss& out, const Executor& executor);

// The last outputs of all training items (`count` x L); rows not written (null: none) count for nothing.
struct Bank {
  const float* u;
  const uint8_t* written;
  int64_t count;
  Labels labels;
  const float* weights = nullptr;  // where the batch has some
};

// How much a pair counts: once; N / n where n of the N pairs that count are of its kind (similar or not); half of that.
// Where one kind is missing every pair counts once.
enum class Weigh : int { no, rarity, halves };
constexpr const char* kWeighs[] = {"no", "rarity", "halves"};
// What the mean is taken over.
enum class Over : int { pairs, similar };
constexpr const char* kOvers[] = {"pairs", "similar"};

// A function of pairs, see pair_functions.h.
struct PairTerm {
  PairFunction function;
  std::vector<float> constants;  // constants_of(function, the number of lengths)
  Weigh weigh = Weigh::no;
  Over over = Over::pairs;
  float clamp = std::numeric_limits<float>::infinity();  // outputs and bank are clamped to +-clamp first
  float near = 1, far = 1;  // where rows have weights, in place of `weigh` and `over`: what pairs of each kind count
};
size_t constants_of(PairFunction function, size_t lengths);
Geometry geometry_of(PairFunction function);

// The mean over the pairs of the batch and the bank, or of the batch with itself (null), each pair then in both orders;
// and the penalty.
void pairs(const Batch& batch, const Labels& labels, const Bank* bank, const PairTerm& term,
           const PenaltyTerm& penalty, const Loss& out, const Executor& executor);

// The mean over anchors, and over their pairs of a positive and a negative, of softplus(-t), t = clamp(theta_ip -
// theta_iq - margin, low, high), theta the inner products; and the penalty.
struct TripletTerm {
  float margin, low, high;
};
void triplets(const Batch& batch, const Labels& labels, const TripletTerm& term, const PenaltyTerm& penalty,
              const Loss& out, const Executor& executor);

// share times a function of the softmax p over the cosines with the centres (classes x expanded width), times sqrt(b) or
// sqrt(reference); and the penalty.
//   likelihood  mean over rows of the sum over classes of -[y log p + constant (1 - y) log(1 - p)]
//   cosine      mean over rows of the mean over a row's classes of -log p, their cosines less by the constant
//   angle       likewise, their angles larger by the constant
#define NHL_SOFTMAX_FUNCTIONS(X) \
  X(likelihood, Likelihood)      \
  X(cosine, Cosine)              \
  X(angle, Angle)
enum class SoftmaxFunction : int { NHL_SOFTMAX_FUNCTIONS(NHL_ENTRY) kinds };
constexpr const char* kSoftmaxFunctions[] = {NHL_SOFTMAX_FUNCTIONS(NHL_TEXT)};
struct SoftmaxTerm {
  SoftmaxFunction function;
  const float* centers;
  int64_t classes;
  float constant;
  double share;
};
void softmax(const Batch& batch, const Labels& labels, const SoftmaxTerm& term, const PenaltyTerm& penalty,
             const Loss& out, const Executor& executor);

// A linear classifier of the codes, whose signs pass gradients straight through: the mean over rows of the mean over a
// row's classes of -log p, p the softmax of the products with the classes' weights (classes x expanded width); and the
// penalty. weight_slopes (classes x expanded width): the values' gradient in the weights.
#define NHL_CLASSIFIER_FUNCTIONS(X) X(cross_entropy, CrossEntropy)
enum class ClassifierFunction : int { NHL_CLASSIFIER_FUNCTIONS(NHL_ENTRY) kinds };
constexpr const char* kClassifierFunctions[] = {NHL_CLASSIFIER_FUNCTIONS(NHL_TEXT)};
struct ClassifierTerm {
  ClassifierFunction function;
  const float* weights;
  int64_t classes;
};
void classifier(const Batch& batch, const Labels& labels, const ClassifierTerm& term, const PenaltyTerm& penalty,
                const Loss& out, float* weight_slopes, const Executor& executor);

// Which distribution over the other rows a row's softmax over products of codes is compared with: the softmax over
// cosines of vectors, or the same share for every view of the same thing.
enum class ListwiseFunction : int { divergence, views };
constexpr const char* kListwiseFunctions[] = {"divergence", "views"};

// The codes are signs, through which gradients pass to tanh u; scales (m) times cosines of codes are the logits.
struct ListwiseTerm {
  ListwiseFunction function;
  float constant;       // divergence: the temperature; views: the weight of the divergences between bits
  const float* scales;
  const float* vectors;  // divergence: (n x width)
  int64_t width;
  const int64_t* ids;  // views: n
};
// scale_slopes (m): each value's gradient in its scale.
void listwise(const Batch& batch, const ListwiseTerm& term, const Loss& out, float* scale_slopes,
              const Executor& executor);

}  // namespace nhl::step
