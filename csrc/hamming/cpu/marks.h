// Relevance as bits: one row of marks for all queries of one label.
#pragma once

#include <vector>

#include "../../common/numbers.h"
#include "../hamming.h"

namespace nhl::hamming {

// Queries in the order of their labels, those of equal labels side by side.
std::vector<int64_t> label_order(const Relevance& relevance, int64_t queries);

// Marks of a batch of queries, which are given in any order.
class LabelMarks {
 public:
  LabelMarks(const Relevance& relevance, int64_t items) : relevance_(relevance), items_(items) {}

  void load(const int64_t* queries, int64_t count, const Executor& executor);

  // Of query queries[i]; rows of equal labels are the same.
  Marks marks() const { return {bits_.data(), words(), row_.data()}; }
  const uint64_t* of(int64_t i) const { return bits_.data() + row_[i] * words(); }
  // Marks the others instead.
  void flip(int64_t row);
  int64_t row(int64_t i) const { return row_[i]; }
  int64_t rows() const { return rows_; }
  int64_t words() const { return divide_up(items_, 64); }

 private:
  const Relevance& relevance_;
  int64_t items_, rows_ = 0;
  std::vector<int64_t> row_;
  std::vector<uint64_t> bits_;
};

}  // namespace nhl::hamming
