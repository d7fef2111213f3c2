// Sums over the pairs of a batch with a bank (or with itself) of a pair loss and its slopes.
#pragma once

#include "common.h"

namespace nhl::train {

enum class Own { nothing, square, inverse };

struct PairTask {
  Pairs kind;
  const Batch& batch;
  const Labels& labels;
  const Bank& bank;
  std::vector<float> options;  // kPad a length
  Own own = Own::nothing;      // what the loss needs to know of each row
  float limit = std::numeric_limits<float>::infinity();  // outputs and bank are clamped to +-limit
  float without = 0;                                     // the inverse norm of a row that has none
  bool signs = false;
  bool similar_only = false;  // dissimilar pairs add nothing
};

class PairSums {
 public:
  PairSums(const Layout& layout, const PairTask& task, const Executor& executor);

  Buffer deltas;    // n x padded width: sums over the bank of slope * row
  Buffer row_sums;  // m x n, see PairArgs
  std::vector<double> values;

 private:
  // Batch rows that meet the same bank rows: all of them, or `chosen`, which are similar to each other.
  struct Block {
    std::vector<int32_t> rows;
    const int32_t* chosen;
    int64_t count;
  };
  struct Unit {
    size_t block;
    int64_t begin, end;
  };

  int64_t part_size(const Block& block) const;
  void make_blocks();
  bool group_by_class();
  void walk(const Unit& unit, float* part, double* sums) const;
  void gather(const std::vector<Unit>& units, const std::vector<Buffer>& partial);

  const Layout& layout_;
  const PairTask& task_;
  const Kernels& kernels_;
  std::vector<Block> blocks_;
  std::vector<int32_t> members_;
};

}  // namespace nhl::train
