// What a search keeps while it scans, and how that becomes its result.
#pragma once

#include "plan.h"

namespace nhl::hamming {

constexpr uint32_t kNoLimit = ~0u;

// What one query keeps of one run of items, in item order; positions count from the run's first item.
class Candidates {
 public:
  void start(int64_t bits, int64_t k, uint32_t limit, int64_t reserve) {
    k_ = k;
    limit_ = limit;
    below_ = 0;
    size_ = 0;
    counts_.assign(k ? bits + 1 : 0, 0);
    reserve_ = reserve;
  }

  uint32_t limit() const { return limit_; }
  int64_t size() const { return size_; }
  const uint32_t* positions() const { return positions_.data(); }
  const uint16_t* distances() const { return distances_.data(); }

  void append(const Hits& hits, uint32_t offset) {
    make_room(hits.count);
    uint32_t* positions = positions_.data();
    uint16_t* distances = distances_.data();
    if (k_ == 0) {
      for (int64_t i = 0; i < hits.count; ++i) {
        positions[size_ + i] = hits.positions[i] + offset;
        distances[size_ + i] = static_cast<uint16_t>(hits.distances[i]);
      }
      size_ += hits.count;
      return;
    }
    // Members in registers: the stores below could change them for all the compiler knows.
    uint32_t* const counts = counts_.data();
    uint32_t limit = limit_;
    int64_t size = size_, below = below_;
    for (int64_t i = 0; i < hits.count; ++i) {
      const uint32_t d = hits.distances[i];
      if (d >= limit) continue;
      positions[size] = hits.positions[i] + offset;
      distances[size++] = static_cast<uint16_t>(d);
      ++counts[d];
      // One candidate more below the limit: lower it while k stay at or below the new one.
      for (++below; below >= k_; below -= counts[limit]) --limit;
    }
    limit_ = limit;
    size_ = size;
    below_ = below;
  }

  // Drops what can no longer be among the k nearest.
  void compact() {
    if (k_ == 0 || size_ <= k_) return;
    int64_t at_limit = k_ - below_, kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const uint16_t d = distances_[i];
      if (d > limit_ || (d == limit_ && at_limit-- <= 0)) continue;
      distances_[kept] = d;
      positions_[kept++] = positions_[i];
    }
    size_ = kept;
  }

 private:
  void make_room(int64_t count) {
    const auto room = static_cast<int64_t>(positions_.size());
    if (size_ + count <= room) return;
    if (k_ > 0 && 2 * k_ + count <= room) return compact();
    const int64_t wanted = std::max({size_ + count, k_ ? 2 * k_ + count : 2 * room, reserve_});
    positions_.resize(wanted);
    distances_.resize(wanted);
  }

  std::vector<uint32_t> positions_;
  std::vector<uint16_t> distances_;
  std::vector<uint32_t> counts_;
  int64_t k_ = 0, below_ = 0, size_ = 0, reserve_ = 0;
  uint32_t limit_ = kNoLimit;
};

// The candidates of one query over all runs, sorted by (distance, position): the first `k` are written.
inline void emit(const Candidates* pieces, int64_t num_pieces, int64_t run, int64_t bits, int64_t k, int64_t base,
                 int32_t* out_distances, int64_t* out_ids) {
  std::vector<int64_t> next(bits + 2, 0);
  for (int64_t c = 0; c < num_pieces; ++c)
    for (int64_t i = 0; i < pieces[c].size(); ++i) ++next[pieces[c].distances()[i] + 1];
  for (int64_t d = 0; d <= bits; ++d) next[d + 1] += next[d];
  const int64_t written = std::min(k, next[bits + 1]);
  for (int64_t c = 0; c < num_pieces; ++c) {
    const int64_t first = base + c * run;
    for (int64_t i = 0; i < pieces[c].size(); ++i) {
      const uint16_t d = pieces[c].distances()[i];
      const int64_t slot = next[d]++;
      if (slot >= k) continue;
      out_distances[slot] = d;
      out_ids[slot] = first + pieces[c].positions()[i];
    }
  }
  std::fill(out_distances + written, out_distances + k, -1);
  std::fill(out_ids + written, out_ids + k, -1);
}

}  // namespace nhl::hamming
