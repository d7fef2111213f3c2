// Bit-sliced counting: items lie bit by bit, a block of them at a time, so that one vector holds one bit of a whole
// block. Distances are then summed by carry-save adders, all items of a block at once, and the items at one distance
// are a mask, whose ones are counted.
#pragma once

#include <cstdint>

namespace nhl::hamming {

// Longer codes, whose distances are far more than a block has items, are counted item by item.
constexpr int64_t kSlicedBits = 2047;
constexpr int kTurnBits = 21;  // distance << kTurnBits | turn in 32 bits
constexpr int64_t kMostTurns = int64_t{1} << kTurnBits;

constexpr int64_t kMostWords = 8;        // 64-item words that a block has at most
constexpr int64_t kRankWords = 64;       // words of ranks that are summed together; bitmaps are padded to a multiple
constexpr int64_t kMostAdded = 31;       // bitmaps whose sums fit five bits
constexpr int64_t kSpareRecords = 8;     // are written beyond the last one

constexpr int64_t sliced_rows(int64_t bits) { return (bits + 16) / 16 * 16; }  // distances, in sixteens

// One query and one block of `words` words.
struct SliceTask {
  const uint64_t* planes;   // [bit][word]
  const uint64_t* query;    // a word a bit: all ones or all zeros
  const int64_t* lengths;   // increasing
  int64_t num_lengths;
  const uint64_t* valid;    // [word]: bits of items, not padding
  const uint64_t* marks;    // [word]: bits of marked items
};

// What `turns` works with, for the longest length.
struct TurnScratch {
  uint64_t* masks;          // [distance][word]
  uint32_t* before;         // [distance][word / 4]
  uint8_t* inside;          // [distance][word]
  uint8_t* low;             // [item], distance % 256
  uint8_t* high;            // [item], distance / 256
  uint16_t* marked;         // items, room for 64 more
};

struct SliceKernels {
  int64_t words;
  // Rows -> planes of one block: plane i holds bit i of `count` rows, from 1 to 64 * words of them; the rest is zero.
  void (*slice)(const uint8_t* rows, int64_t stride, int64_t count, int64_t bits, uint64_t* planes);
  // Adds the numbers of items, and of marked items, at every distance; sliced_rows of them a length.
  void (*tally)(const SliceTask& task, uint64_t* items, uint64_t* marked);
  // For each marked item, in order, and each length m: records[m][at...] = distance << kTurnBits | turn, where the
  // turn is the number of items at that distance before it. `state` (sliced_rows a length) carries the numbers of
  // items from block to block; see start_turns and items_at. Returns the number of marked items.
  int64_t (*turns)(const SliceTask& task, const TurnScratch& scratch, uint64_t* state, uint32_t* const* records,
                   int64_t at);
  // Sets bit record + start[record >> kTurnBits] of `ranks` for every record. `bytes`, where not null, holds 64 zeros
  // for each of the `words` words of ranks, and zeros again thereafter.
  void (*place)(const uint32_t* records, int64_t count, const int64_t* start, int64_t words, uint8_t* bytes,
                uint64_t* ranks);
  // out[i] = ones among the first ends[i] bits, for increasing ends.
  void (*ones)(const uint64_t* bits, const int64_t* ends, int64_t num_ends, int64_t* out);
  // Sum of (ones up to rank r) / r over the ranks r = 1, 2, ... <= cutoff whose bit is set, and how many there are.
  double (*precision)(const uint64_t* ranks, int64_t cutoff, int64_t* found);
  // Adds up to kMostAdded bitmaps of kRankWords words, rank by rank: hits += number, recall += number * weight. The
  // weight has at most 48 significant bits, so that the product is exact.
  void (*add)(const uint64_t* const* ranks, int64_t count, double weight, int64_t num_ranks, double* hits,
              double* recall);
  // Bit i of `out`: set i, of `words` words, shares a bit with `wanted`.
  void (*meet)(const uint64_t* sets, int64_t words, int64_t items, const uint64_t* wanted, uint64_t* out);
};

inline uint64_t start_turns(int64_t distance) {
  const auto one = static_cast<uint64_t>(distance) << kTurnBits;
  return one << 32 | one;
}
inline int64_t items_at(uint64_t state, int64_t distance) {
  return static_cast<uint32_t>(static_cast<uint32_t>(state) - static_cast<uint32_t>(distance << kTurnBits));
}

// The nearest number of 48 significant bits.
double round_weight(double weight);

const SliceKernels& scalar_slices();
const SliceKernels& avx2_slices();
const SliceKernels& avx512_slices();
const SliceKernels& neon_slices();
const SliceKernels& active_slices();

}  // namespace nhl::hamming
