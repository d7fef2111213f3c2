// Shared by the algorithms: what a set of lengths needs, and blocks of items.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../../common/numbers.h"
#include "kernels.h"

namespace nhl::hamming {

struct Plan {
  explicit Plan(const std::vector<int64_t>& lengths) : bytes((lengths.back() + 7) / 8), words((bytes + 3) / 4) {
    for (int64_t b : lengths) {
      const int64_t word = (b - 1) / 32;
      steps.push_back({static_cast<int32_t>(word), leading_bits(b - 32 * word)});
    }
    // Blocks are masked to the longest length, so that its step needs no mask of its own.
    tail = steps.back().mask;
    steps.back().mask = ~0u;
  }

  // Masks the first `bits` bits of a word as it lies in memory: most significant bit of each byte first.
  static uint32_t leading_bits(int64_t bits) {
    uint8_t bytes[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t in_byte = std::clamp<int64_t>(bits - 8 * i, 0, 8);
      bytes[i] = static_cast<uint8_t>(0xff00 >> in_byte);
    }
    uint32_t word;
    std::memcpy(&word, bytes, 4);
    return word;
  }

  void load_query(const uint8_t* row, uint32_t* out) const {
    out[words - 1] = 0;
    std::memcpy(out, row, bytes);
    out[words - 1] &= tail;
  }

  // All queries, `pitch` words each, at least `words`.
  std::vector<uint32_t> load_queries(const Rows& rows, int64_t pitch) const {
    std::vector<uint32_t> out(rows.count * pitch);
    for (int64_t q = 0; q < rows.count; ++q) load_query(rows.data + q * rows.stride, out.data() + q * pitch);
    return out;
  }

  int64_t bytes, words;
  uint32_t tail;
  std::vector<Step> steps;
};

// Items a block holds: 16 KB of words where that is a sensible number of items, so that a block and what is
// computed from it stay in the first-level cache.
inline int64_t block_items(int64_t words) {
  int64_t items = 4096;
  while (items > 256 && items * words > 4096) items /= 2;
  return items;
}

// A run of items, word by word; see kernels.h. 64-byte aligned, with `pitch` items from word to word.
class Block {
 public:
  Block(int64_t items, int64_t words)
      // One cache line more than a power of two: the words of one item fall into different cache sets.
      : pitch(round_up(items, kBlockAlign) + 16), storage_(pitch * round_up(words, 4) + 16) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    data = storage_.data() + (64 - address % 64) % 64 / sizeof(uint32_t);
  }
  Block(const Block&) = delete;

  void load(const Kernels& kernels, const Rows& items, int64_t begin, int64_t count, const Plan& plan) {
    kernels.transpose(items.data + begin * items.stride, items.stride, count, plan.bytes, plan.tail, data, pitch);
  }

  int64_t pitch;
  uint32_t* data;

 private:
  std::vector<uint32_t> storage_;
};

inline int64_t padded(int64_t count) { return divide_up(count, kBlockAlign) * kBlockAlign; }

}  // namespace nhl::hamming
