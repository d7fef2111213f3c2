// Sums over the pairs of a batch with a bank (or with itself) of a pair loss and its slopes.
#pragma once

#include "common.h"

namespace nhl::step {

// What is summed over the pairs of a batch and a bank.
struct PairTask {
  const PairKernel& kernel;
  Counting counting;
  const Batch& batch;
  const Labels& labels;
  const Bank& bank;
  const std::vector<float>& constants;
  std::vector<float> factors;  // what inner products of each length are multiplied by (product)
  float near, far;             // weights of similar and of other pairs (Counting::kinds)
  float limit;                 // the bank is clamped to +-limit
};

class PairSums {
 public:
  PairSums(const Layout& layout, const PairTask& task, const Executor& executor);

  Buffer deltas;    // n x padded width: sums over the bank of slope * row
  Buffer row_sums;  // (m + 1) x n, see PairArgs
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

}  // namespace nhl::step
