// What differs from one instruction set to the next: a table of block kernels. A block holds its items word by
// word (all first 32-bit words, then all second ones, `pitch` items apart), so that one vector holds one word
// of several items and a distance is a few plain vector operations.
#pragma once

#include <cstdint>
#include <cstring>

#include "../hamming.h"

namespace nhl::hamming {

constexpr int64_t kBlockAlign = 64;  // items; blocks are padded to a multiple of it
constexpr int64_t kGroup = 4;        // queries that share each load
constexpr uint32_t kFar = ~0u;       // the distance of a row that is not there

// One code length inside a multi-length pass: it ends in `word`, of which only the bits of `mask` count.
struct Step {
  int32_t word;
  uint32_t mask;
};

// Items of one block under a query's limit, in item order. Both arrays have kBlockAlign spare entries.
struct Hits {
  uint32_t* positions;
  uint32_t* distances;
  int64_t count;
};

constexpr bool reads_rows(int64_t stride) { return stride == 4 || stride == 8 || stride == 16 || stride == 32; }

struct Kernels {
  // Rows -> block. `count` rows of `bytes` bytes; the last word is and-ed with `tail`; padding is zeroed.
  // Words are written in fours: there must be room for a multiple of 4.
  void (*transpose)(const uint8_t* rows, int64_t stride, int64_t count, int64_t bytes, uint32_t tail,
                    uint32_t* block, int64_t pitch);
  // out[s * out_pitch + i]: distance of item i over the bits of step s. `count` is a multiple of kBlockAlign.
  void (*distances)(const uint32_t* block, int64_t pitch, int64_t count, const uint32_t* query, int64_t words,
                    const Step* steps, int64_t num_steps, uint16_t* out, int64_t out_pitch);
  // hits[g]: items i with valid bit i set whose distance to query g is below limits[g]; 1 <= group <= kGroup.
  void (*filter)(const uint32_t* block, int64_t pitch, int64_t count, const uint64_t* valid,
                 const uint32_t* queries, int64_t words, int64_t group, const uint32_t* limits, Hits* hits);
  // The same for one query and rows as they lie, `stride` bytes apart, all of which may be read: a stride for which
  // `reads_rows` holds. `query` and `mask` hold stride / 4 words; bits outside the mask do not count.
  void (*filter_rows)(const uint8_t* rows, int64_t stride, int64_t count, const uint64_t* valid,
                      const uint32_t* query, const uint32_t* mask, uint32_t limit, Hits* hits);
  // out[i]: distance of row ids[i] (kFar where that is below 0) over the first `bytes` bytes, the last of them
  // and-ed with `tail`.
  void (*distances_of)(const uint8_t* rows, int64_t stride, const int64_t* ids, int64_t count, const uint8_t* query,
                       int64_t bytes, uint8_t tail, uint32_t* out);
  // One bit a byte, set where the byte is not zero; `count` bytes, the last word filled up with zeros.
  void (*nonzero)(const uint8_t* bytes, int64_t count, uint64_t* out);
  // Bits of one row of `bits` contiguous numbers that are > 0, packed; see `pack`.
  void (*pack16)(const uint16_t* x, int64_t bits, uint16_t infinity, uint8_t* out);
  void (*pack32)(const uint32_t* x, int64_t bits, uint8_t* out);
};

const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& neon_kernels();
const Kernels& active_kernels();

}  // namespace nhl::hamming
