// Items as bit planes, and what a set of lengths needs of them.
#pragma once

#include <algorithm>
#include <vector>

#include "../../common/numbers.h"
#include "../hamming.h"
#include "slices.h"

namespace nhl::hamming {

constexpr int64_t kPlaneBytes = int64_t{64} << 20;  // planes that are made at once

// How many of the lengths are counted by slices.
inline int64_t count_sliced(const std::vector<int64_t>& lengths) {
  return std::upper_bound(lengths.begin(), lengths.end(), kSlicedBits) - lengths.begin();
}

// Distances of all lengths, each in rows of sixteen.
inline int64_t count_rows(const std::vector<int64_t>& lengths) {
  int64_t rows = 0;
  for (int64_t b : lengths) rows += sliced_rows(b);
  return rows;
}

// A chunk of items, block by block.
class Planes {
 public:
  // Chunks of at most `most` items, or a block.
  Planes(int64_t items, int64_t bits_, int64_t most = kMostTurns)
      : kernels(active_slices()), bits(bits_), block_items(64 * kernels.words),
        most_items(std::min(items, std::clamp(8 * kPlaneBytes / bits, block_items, std::max(most, block_items)) /
                                       block_items * block_items)),
        planes_(divide_up(most_items, block_items) * bits * kernels.words) {}

  void load(const Rows& items, int64_t begin, int64_t num, const Executor& executor) {
    first_word = begin / 64;
    count = num;
    blocks = divide_up(num, block_items);
    constexpr int64_t kTogether = 16;
    run_units(executor, divide_up(blocks, kTogether), no_scratch, [&](int64_t unit, NoScratch&) {
      for (int64_t b = unit * kTogether; b < std::min(blocks, (unit + 1) * kTogether); ++b)
        kernels.slice(items.data + (begin + b * block_items) * items.stride, items.stride,
                      std::min(block_items, num - b * block_items), bits, planes_.data() + b * bits * kernels.words);
    });
  }

  // Blocks that stay in the first-level cache together.
  int64_t together() const { return std::max<int64_t>(1, 2048 / (bits * kernels.words)); }

  const SliceKernels& kernels;
  const int64_t bits, block_items, most_items;
  int64_t first_word = 0, count = 0, blocks = 0;  // of the chunk at hand

  const uint64_t* block(int64_t b) const { return planes_.data() + b * bits * kernels.words; }

 private:
  std::vector<uint64_t> planes_;
};

// The task of one block after another, for one query after another.
class BlockTask {
 public:
  BlockTask(const Planes& planes, const std::vector<int64_t>& lengths)
      : planes_(planes),
        task_{nullptr, nullptr, lengths.data(), static_cast<int64_t>(lengths.size()), valid_, marks_} {}

  // `marks` is a row of `mark_words` words, or null.
  const SliceTask& at(int64_t block, const uint64_t* query, const uint64_t* marks, int64_t mark_words) {
    const int64_t words = planes_.kernels.words, first = planes_.first_word + block * words;
    task_.planes = planes_.block(block);
    task_.query = query;
    const int64_t count = planes_.count - block * planes_.block_items;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t left = count - 64 * w;
      valid_[w] = left >= 64 ? ~0ull : left > 0 ? ~(~0ull << left) : 0;
    }
    task_.marks = marks_;
    if (marks != nullptr && first + words <= mark_words) {
      task_.marks = marks + first;
    } else {
      for (int64_t w = 0; w < words; ++w) marks_[w] = marks != nullptr && first + w < mark_words ? marks[first + w] : 0;
    }
    return task_;
  }

 private:
  const Planes& planes_;
  uint64_t valid_[kMostWords], marks_[kMostWords];
  SliceTask task_;
};

// As `histograms`, for lengths up to kSlicedBits; adds to the counts.
void sliced_histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, const Marks& marks,
                       const Counts& counts, const Executor& executor);

// A word a bit: all ones or all zeros.
inline void spread_query(const uint8_t* row, int64_t bits, uint64_t* out) {
  for (int64_t i = 0; i < bits; ++i) out[i] = row[i / 8] >> (7 - i % 8) & 1 ? ~0ull : 0;
}

}  // namespace nhl::hamming
