// One scan of the items for all queries, by whichever unit the device counts fastest on: what is found, and where it
// goes, is the same for all of them.
#pragma once

#include "../device.cuh"

namespace nhl::cuda {

// Of query q, the items whose distance << kIdBits | id is below its limit: those nearer than some distance, and of those
// at it the first ones by id. A block all of whose queries have limit 0 returns at once.
struct Find {
  const int64_t* limits;  // null: `limit` for every query
  int64_t limit;
  const uint8_t* allow;        // null: all items count
  unsigned long long* counts;  // how many were found, those beyond `room` included
  int64_t* out;                // null: they are only counted; else they come in no particular order
  const int64_t* offsets;      // where a query's places begin; null: at q * room
  int64_t room;                // places a query
  int64_t per_query;           // written is (q * per_query + distance) << shift | id
  int shift;
  bool sparse = false;  // most queries are expected to have limit 0: the others get more blocks each

  __device__ __forceinline__ int64_t limit_of(int64_t q) const { return limits != nullptr ? __ldg(limits + q) : limit; }
  __device__ __forceinline__ void put(int64_t q, int64_t at, int distance, int64_t id) const {
    if (out != nullptr && at < room)
      out[(offsets != nullptr ? offsets[q] : q * room) + at] = (q * per_query + distance) << shift | id;
  }
};

constexpr int64_t kIdMask = (int64_t{1} << kIdBits) - 1;

// Items at this distance or beyond are not below the limit.
__device__ __forceinline__ int reach_of(int64_t limit) {
  return static_cast<int>(limit >> kIdBits) + ((limit & kIdMask) != 0);
}

// How many times as many blocks a pass takes that only few queries need: all others' return at once, which takes time, too.
inline int64_t sparse_blocks(int64_t items) { return std::clamp<int64_t>(items >> 22, 1, 16); }

// Adds to find.counts and writes to find.out; `bits` as for nearest.
void scan(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context);

void scan_popc(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context);
void scan_imma(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context);
void scan_mma(const Rows& queries, const Rows& items, int64_t bits, const Find& find, const Context& context);

// Whether rows can be read a word at a time, which the tensor cores' scans do.
inline bool in_words(const Rows& rows) { return (reinterpret_cast<uint64_t>(rows.data) | rows.stride) % 4 == 0; }

inline Rows slice(const Rows& rows, int64_t first, int64_t count) {
  return {rows.data + first * rows.stride, count, rows.stride};
}

}  // namespace nhl::cuda
