// The Hamming engine's raw-pointer contract: no PyTorch in here, so that tests can drive it under sanitizers.
//
// Codes are rows of bytes, bit 0 of a code the most significant bit of its first byte (numpy.packbits). A code
// length is a number of leading bits; whatever a row holds beyond it is ignored. All ties are broken by the
// row number: of two rows at one distance, the lower one comes first.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../common/executor.h"

namespace nhl::hamming {

constexpr int64_t kMaxBits = 16384;

// `count` rows, `stride` bytes apart, each at least as wide as the longest length asked of it.
struct Rows {
  const uint8_t* data;
  int64_t count;
  int64_t stride;
};

// One bit an item: item i is marked by bit i % 64 of word i / 64 of a row of words, `stride` words apart. Query q has
// row rows[q]; no rows, row 0 for all queries; no bits, no marks.
struct Marks {
  const uint64_t* bits;
  int64_t stride;
  const int64_t* rows;

  const uint64_t* of(int64_t q) const { return bits == nullptr || rows == nullptr ? bits : bits + rows[q] * stride; }
};

// Who is relevant to whom: equal ids (`words` 0, ids of `id_bytes` 1, 2, 4 or 8), or label sets that share a
// bit (`words` uint64 a row).
struct Relevance {
  const void* queries;
  const void* items;
  int64_t id_bytes;
  int64_t words;
};

enum class Float : int { f16, bf16, f32, f64 };

// out[i] = numpy.packbits(x[i] > 0), a row of ceil(bits / 8) bytes; NaN packs as 0. Strides count elements.
void pack(const void* x, Float type, int64_t rows, int64_t bits, int64_t row_stride, int64_t column_stride,
          uint8_t* out, const Executor& executor);

// out[m][q][i]: distance of query q and item i over the first lengths[m] bits. Lengths are increasing.
void distances(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, int32_t* out,
               const Executor& executor);

// (unmarked, marked) items by distance: for each length in turn, [q][d][2] with d from 0 to the length. The rows
// written are those from `first` on, in a table of `total` queries.
struct Counts {
  int64_t* data;
  int64_t first, total;
};
void histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, const Marks& marks,
                const Counts& counts, const Executor& executor);

// histograms with the relevant items marked.
void label_histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
                      const Relevance& relevance, int64_t* counts, const Executor& executor);

// What the ranking by (distance, row) says of the relevant items, which have ranks from 1 on:
//   counts              as histograms
//   precision[m][q]     sum over ranks r <= cutoff that hold a relevant item of (relevant up to r) / r
//   retrieved[m][q]     relevant items at ranks <= cutoff
//   hits[m][r - 1]      queries with a relevant item at rank r, and recall[m][r - 1], each of them weighted by
//                       1 / (the query's relevant items); both whatever the cutoff
//   gains[m][q][i]      where asked for: sum over ranks r <= gain_ends[i] that hold a relevant item of 1 / log2(r + 1);
//                       the ends increase, up to the number of items
// Sums of doubles are taken in an order that does not depend on the number of threads.
struct Evaluation {
  int64_t* counts;
  double* precision;
  int64_t* retrieved;
  double* hits;
  double* recall;
  double* gains = nullptr;
  std::vector<int64_t> gain_ends = {};
};
void evaluate(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
              const Relevance& relevance, int64_t cutoff, const Evaluation& out, const Executor& executor);

// The k nearest items of every query by (distance, row), rows numbered from `base`. `allow` (or null) holds one
// byte an item, zero for items to leave out. Rows past the end of a short list are distance -1, id -1.
void topk(const Rows& queries, const Rows& items, int64_t bits, int64_t k, int64_t base, const uint8_t* allow,
          int32_t* out_distances, int64_t* out_ids, const Executor& executor);

// Every item within `radius` of each query, by (distance, row): query q has offsets[q] to offsets[q + 1].
class RadiusSearch {
 public:
  RadiusSearch(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, int64_t base,
               const uint8_t* allow, const Executor& executor);
  ~RadiusSearch();
  // Writes all offsets.back() results.
  void write(int32_t* distances, int64_t* ids) const;

  std::vector<int64_t> offsets;

 private:
  struct State;
  std::unique_ptr<State> state_;
  Executor executor_;
};

// Ids of `each` items for each query, all of them rows that there are.
struct Chosen {
  const int64_t* ids;
  int64_t queries, each;
};

// The k nearest of each query's candidates (a negative id is none), each given once, by (distance, row) over the
// first `bits` bits. Rows past the end of a short list are distance -1, id -1.
void topk_among(const Rows& queries, const Rows& items, const Chosen& candidates, int64_t bits, int64_t k,
                int32_t* out_distances, int64_t* out_ids, const Executor& executor);

enum class Number : int { f16, bf16, f32, i8 };

// Rows of `width` numbers, `stride` numbers apart.
struct Vectors {
  const void* data;
  Number type;
  int64_t width, stride;
};

// out[q][c]: inner product of a query and its candidate's vector, over the vector's norm if `unit` (0 for a zero row).
// Whether all vectors that were read are finite.
bool score_vectors(const Chosen& candidates, const float* queries, const Vectors& vectors, bool unit, float* out,
                   const Executor& executor);

// out[q][c]: inner product of a query's raw outputs (rows `stride` apart) and its candidate's first `length` bits as +-1.
void score_codes(const Chosen& candidates, const float* outputs, int64_t stride, const Rows& codes, int64_t length,
                 float* out, const Executor& executor);

}  // namespace nhl::hamming
