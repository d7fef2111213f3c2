// What differs from one instruction set to the next in the training step: a table of kernels that each do one piece
// of work, on one thread. Rows are contiguous unless a stride is given; "lanes" is a vector's width in floats, and
// arrays said to be padded have rows of a multiple of kPad floats.
#pragma once

#include <cstdint>

#include "../common/numbers.h"
#include "names.h"
#include "pair_functions.h"
#include "penalties.h"

namespace nhl::step {

constexpr int64_t kPad = 16;    // the widest vector
constexpr int64_t kBlock = 64;  // batch rows that are worked on together
constexpr int64_t kTile = 60;   // bank rows that are
constexpr float kNearlyOne = 1 - 1e-6f;  // a cosine of rows of weights so near to 1 is 1

inline int64_t padded(int64_t n) { return round_up(n, kPad); }

// The code lengths b_1 < ... < b_m and where each one's columns begin in the expanded form (side by side), as they
// are in tensors and padded.
struct Layout {
  const int64_t* lengths;
  const int64_t* starts;         // m + 1 of them
  const int64_t* padded_starts;  // likewise
  int64_t m;
  int64_t bits() const { return lengths[m - 1]; }
  int64_t width() const { return starts[m]; }
  int64_t padded_width() const { return padded_starts[m]; }
  int64_t first(int64_t k) const { return k ? lengths[k - 1] : 0; }  // first column that is new in length k
};

// c (rows x cols) = a b, or c + a b; a's element (i, k) is a[i * row_step + k * depth_step].
struct Product {
  const float* a;
  int64_t row_step, depth_step;
  const float* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  int64_t rows, cols, depth;
  bool add;
};

// Functions of an output and its centre.
#define NHL_CENTER_FUNCTIONS(X) \
  X(csq, CentralSimilarity)     \
  X(dpn, Polarization<false>)   \
  X(dpn_ternary, Polarization<true>)

enum class CenterFunction : int { NHL_CENTER_FUNCTIONS(NHL_ENTRY) kinds };
constexpr const char* kCenterFunctions[] = {NHL_CENTER_FUNCTIONS(NHL_TEXT)};

// Sums over `rows` rows of a loss of output and centre, element by element, and its gradient times scale[k].
struct CenterArgs {
  const float* u;
  int64_t rows;
  const float* centers;  // (C x width), or one row a row of u where there are no ids
  const int64_t* ids;
  float constant;  // CSQ: weight of the quantization; DPN: margin
  const float* scale;
  const float* weights;  // rows: how much each counts, or null for 1
  double* values;  // m, added to
  float* deltas;   // rows x width
  float* scratch;  // 4 * padded(bits) + m * kPad
};

// Adds sums of a penalty f(u) over `rows` rows to values, and scale[k] f'(u) to the deltas of every length.
struct PenaltyArgs {
  const float* u;
  int64_t rows;
  const float* scale;
  const float* weights;  // rows: how much each counts, or null for 1
  double* values;
  float* deltas;
  float* scratch;  // 2 * padded(bits)
};

// Who is similar to whom: equal ids, label sets that share a class, or (neither given) every pair.
struct Similar {
  const int32_t* ids;        // batch, np of them
  const uint32_t* words;     // batch label sets, word by word: (words x np)
  const int64_t* other_ids;  // bank
  const uint8_t* flags;      // bank label sets, one byte a class
  int64_t classes;
  const float* columns = nullptr;  // batch rows of weights at norm 1, transposed: (classes x np)
  const float* rows = nullptr;     // those of the bank: (count x classes)
};

// A pair function of up to kBlock batch rows against bank rows [begin, end). Products of the first b_k columns are those
// of b_(k-1) and the new columns.
struct PairArgs {
  const float* columns;  // batch, transposed: (bits x np)
  const float* sign_columns;
  int64_t n, np;
  const float* own;  // (m x np): half the squared norms (distance), inverse norms (cosine)
  const float* rows;
  const int32_t* chosen;  // bank rows to take, or null for all
  int64_t begin, end;
  const uint8_t* written;  // or null for all
  Similar similar;
  float limit;             // bank values are clamped to +-limit
  const float* constants;  // of the function, or one after the other those of every length
  const float* factors;    // m: what inner products are multiplied by (product)
  float near, far;         // weights of similar and of other pairs (Counting::kinds, weighed)
  const float* row_weights;     // np: how much each row counts (weighed)
  const float* column_weights;  // of the bank (weighed)
  double* values;          // m
  float* deltas;           // n x padded_width: sums of slope * bank row (product, distance), of unit bank row (cosine)
  float* row_sums;         // ((m + 1) x np): sums of slopes (distance); in the last row numbers of similar bank rows
                           // (Counting::similar)
  float* scratch;          // pair_scratch(...)
};
int64_t pair_scratch(const Layout& layout, int64_t np);

// The triplet loss of anchors [begin, end) at one length, and its gradient in theta (N x N, row stride np).
struct TripletArgs {
  const float* theta;
  int64_t n, np;
  int64_t begin, end;
  const uint8_t* similar;  // n x n
  const float* scale;      // an anchor's weight
  const float* positive;   // n x n: how much a positive of an anchor counts, or null for all that are similar
  const float* negative;   // likewise
  float ratio;             // theta counts so many times
  float margin, low, high;
  double* value;
  float* slope;
  float* scratch;  // 3 * np + kPad
};

// Softmax over classes of products with the centres: values and slopes of up to kBlock rows at one length.
struct SoftmaxArgs {
  float* logits;  // (classes x np) in, slopes out
  int64_t classes, n, np;
  const int32_t* ids;     // np, or null
  const uint32_t* words;  // (words x np)
  float negative_weight;
  const float* weights;  // np: how much each row counts, or null for 1
  const float* soft;     // (classes x np): y, or null where labels are given
  bool wide;       // logits may be more than 80 apart
  double* value;
  float* scratch;  // 2 x classes x np
};

// A block of columns of the Gram matrices G_k (n rows, `stride` floats apart), which begin at grams + k * step.
struct CascadeArgs {
  float* grams;  // in; slopes out, for k < m - 1
  int64_t step, stride;
  int64_t n, columns;  // rows, and columns of the block: up to the next multiple of kPad are written
  int64_t m;
  float scale;     // of the slopes
  double* values;  // m - 1, added to
};

// Rows' distributions over the others: softmaxes of factor * products (n x np), without the diagonal.
struct ListwiseTargets {
  const float* products;
  int64_t n, np;
  int64_t begin, end;
  float factor;
  float* shares;
  float* logs;
};

// Sums over rows [begin, end) of weights[i] * sum over j of shares_ij (logs_ij - log p_ij), p_i the softmax of
// factor * products_i without the diagonal; and the slopes in the products.
struct ListwiseArgs {
  const float* products;
  int64_t n, np;
  int64_t begin, end;
  float factor;
  const float* shares;
  const float* logs;     // or null: zeros
  const float* weights;  // a row's; 0: it is left out
  double* value;         // added to
  double* along;         // added to: the sum's slope in `factor`
  float* slopes;
};

struct PairKernel {
  Geometry geometry;
  bool signs;     // reads sign_columns
  float without;  // the inverse norm where the square is at most 1e-24
  int constants;
  bool by_length;  // constants of every length
  void (*run[static_cast<int>(Counting::ways)])(const Layout&, const PairArgs&);
};

struct Kernels {
  void (*product)(const Product&);
  // out[c * ldo + r] = x[r * ldx + c]; columns r of out from `rows` to `filled` become zero.
  void (*transpose)(const float* x, int64_t ldx, int64_t rows, int64_t cols, float* out, int64_t ldo,
                    int64_t filled);
  // [1]: centres lie between -1 and 1.
  void (*center[static_cast<int>(CenterFunction::kinds)][2])(const Layout&, const CenterArgs&);
  void (*penalty[static_cast<int>(Penalty::bitwise)])(const Layout&, const PenaltyArgs&);
  PairKernel pairs[static_cast<int>(PairFunction::kinds)];
  void (*triplets[2])(const TripletArgs&);  // [1]: with `positive` and `negative`
  void (*softmax[2])(const SoftmaxArgs&);   // [1]: with `soft`
  void (*cascade)(const CascadeArgs&);
  // out[k * m + i] += sum over rows of <left_k, right_i[:b_k]> for i >= k; both rows x padded_width.
  void (*gram_dots)(const Layout&, const float* left, const float* right, int64_t rows, double* out);
  // out (rows x bits) = sum over k of weights[k] deltas_k, deltas rows x padded_width.
  void (*weigh)(const Layout&, const float* deltas, int64_t rows, const float* weights, float* out);
  double (*dot)(const float* a, const float* b, int64_t n);
  void (*add_scaled)(const float* x, float scale, int64_t n, float* out);  // out += scale x
  bool (*finite)(const float* x, int64_t n);
  void (*straight)(const float* u, int64_t count, float* signs, float* slopes);
  void (*listwise_targets)(const ListwiseTargets&);
  void (*listwise)(const ListwiseArgs&);
  // Adds the divergence between two rows' bits [begin, end) to value, and scale times its gradient in u to delta.
  void (*view_gap)(const float* u, const float* v, int64_t begin, int64_t end, float scale, double* value, float* delta);
};

const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
// The level in force (see active_isa); avx2 falls to scalar where the processor has no FMA.
const Kernels& active_kernels();

}  // namespace nhl::step
