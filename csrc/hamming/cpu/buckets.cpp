// Top-k of items that lie in buckets of equal prefixes. The distance of the prefixes bounds the whole one from below, so
// buckets are visited by it, nearest first, until the bound passes the k-th distance. Where most may still matter, they
// are visited in the order of memory, which costs what a scan of as many items costs.
#include <algorithm>

#include "plan.h"

namespace nhl::hamming {
namespace {

constexpr int64_t kFirstRun = 256, kLongestRun = 16384;  // items that are filtered at once
constexpr int64_t kThreadItems = 32768;                 // worth a thread of their own
constexpr double kAlways = 0.02;  // levels up to this part of all items are visited bucket by bucket ...
constexpr double kSweep = 0.3;    // ... and more than this part that may remain in the order of memory
constexpr int64_t kFlood = 8;                           // one item in so many passes: ties that come too late
constexpr int kIdBits = 32;

// The k smallest keys, distance << kIdBits | id, of those below a bound.
class Nearest {
 public:
  Nearest(int64_t k, uint64_t bound) : k_(k), bound_(bound) {}

  uint64_t bound() const { return bound_; }
  bool full() const { return static_cast<int64_t>(keys_.size()) == k_; }
  uint32_t furthest() const { return static_cast<uint32_t>(bound_ >> kIdBits); }
  std::vector<uint64_t>& keys() { return keys_; }

  void add(uint64_t key) {
    if (key >= bound_) return;
    if (static_cast<int64_t>(keys_.size()) == k_) {
      std::pop_heap(keys_.begin(), keys_.end());
      keys_.back() = key;
    } else {
      keys_.push_back(key);
    }
    std::push_heap(keys_.begin(), keys_.end());
    if (static_cast<int64_t>(keys_.size()) == k_) bound_ = keys_.front();
  }

 private:
  int64_t k_;
  uint64_t bound_;
  std::vector<uint64_t> keys_;
};

struct Scratch {
  Scratch() : valid(kLongestRun / 64, ~0ull), found(2 * (kLongestRun + kBlockAlign)) {
    hits = {found.data(), found.data() + kLongestRun + kBlockAlign, 0};
  }
  std::vector<uint64_t> valid;
  std::vector<uint32_t> found;
  Hits hits;
  int64_t flooded = -1;  // the k-th distance at which ties were many
};

// Items of one bucket, or some of them.
struct Run {
  int64_t begin, end;
};

struct Search {
  const Buckets& items;
  uint32_t own;  // prefix
  const uint32_t* query;
  const uint32_t* mask;
  const Kernels& kernels;
  const Executor& executor;

  int64_t level_of(int64_t prefix) const { return __builtin_popcountll(static_cast<uint64_t>(prefix) ^ own); }

  void filter(int64_t at, int64_t size, uint32_t limit, Nearest& nearest, Scratch& s) const {
    const int64_t tail = size % 64;
    if (tail) s.valid[size / 64] = (1ull << tail) - 1;
    kernels.filter_rows(items.rows.data + at * items.rows.stride, items.rows.stride, round_up(size, kBlockAlign),
                        s.valid.data(), query, mask, limit, &s.hits);
    if (tail) s.valid[size / 64] = ~0ull;
    for (int64_t i = 0; i < s.hits.count; ++i)
      nearest.add(static_cast<uint64_t>(s.hits.distances[i]) << kIdBits |
                  static_cast<uint32_t>(items.ids[at + s.hits.positions[i]]));
    if (s.hits.count * kFlood > size) {
      const uint32_t furthest = nearest.furthest();
      const int64_t ties = std::count(s.hits.distances, s.hits.distances + s.hits.count, furthest);
      if (ties * kFlood > size) s.flooded = furthest;
    }
    if (size == kLongestRun) executor.check();
  }

  // Items at the k-th distance matter only up to the id there; once that shows, they are left out by their place.
  void visit(const Run& run, uint32_t level, Nearest& nearest, Scratch& s) const {
    int64_t size = nearest.full() ? kLongestRun : kFirstRun;
    for (int64_t at = run.begin; at < run.end; at += size, size = std::min(2 * size, kLongestRun)) {
      const uint32_t furthest = nearest.furthest();
      if (level > furthest) return;
      size = std::min(size, run.end - at);
      uint32_t limit = furthest + 1;
      if (s.flooded == furthest || level == furthest) {
        const auto id = static_cast<int32_t>(static_cast<uint32_t>(nearest.bound()));
        const int64_t late = std::lower_bound(items.ids + at, items.ids + run.end, id) - items.ids;
        if (late == at && level == furthest) return;
        if (late == at) {
          limit = furthest;
        } else {
          size = std::min(size, late - at);
        }
      }
      filter(at, size, limit, nearest, s);
    }
  }

  // The buckets of prefixes [first, last) that are farther than `done` and may matter, neighbours together.
  void sweep(int64_t first, int64_t last, int64_t done, Nearest& nearest, Scratch& s) const {
    const auto wanted = [&](int64_t prefix) {
      const int64_t level = level_of(prefix);
      return level > done && level <= nearest.furthest();
    };
    for (int64_t prefix = first; prefix < last; ++prefix) {
      if (!wanted(prefix)) continue;
      if (s.flooded == nearest.furthest()) {
        visit({items.starts[prefix], items.starts[prefix + 1]}, static_cast<uint32_t>(level_of(prefix)), nearest, s);
        continue;
      }
      const int64_t begin = items.starts[prefix];
      while (prefix + 1 < last && items.starts[prefix + 1] - begin < kLongestRun && wanted(prefix + 1)) ++prefix;
      for (int64_t at = begin, end = items.starts[prefix + 1]; at < end; at += kLongestRun)
        filter(at, std::min(kLongestRun, end - at), nearest.furthest() + 1, nearest, s);
    }
  }

  void sweep_all(int64_t done, int64_t k, Nearest& nearest, Scratch& s) const {
    const int64_t prefixes = int64_t{1} << items.prefix;
    const int64_t units = std::min({items.rows.count / kThreadItems, 4 * executor.threads, prefixes});
    if (executor.threads == 1 || units < 2) return sweep(0, prefixes, done, nearest, s);
    std::vector<Nearest> found(units, Nearest(k, nearest.bound()));
    run_units(
        executor, units, [] { return std::make_unique<Scratch>(); },
        [&](int64_t unit, Scratch& scratch) {
          sweep(prefixes * unit / units, prefixes * (unit + 1) / units, done, found[unit], scratch);
        });
    for (Nearest& part : found)
      for (uint64_t key : part.keys()) nearest.add(key);
  }

  // Shared among threads, each of which keeps its own nearest.
  void visit_all(const std::vector<Run>& runs, int64_t total, uint32_t level, int64_t k, Nearest& nearest) const {
    const int64_t units = std::min(total / kThreadItems, 2 * executor.threads), each = divide_up(total, units);
    std::vector<std::vector<Run>> parts(1);
    int64_t room = each;
    for (Run run : runs)
      while (run.begin < run.end) {
        const int64_t taken = std::min(room, run.end - run.begin);
        parts.back().push_back({run.begin, run.begin + taken});
        run.begin += taken;
        if ((room -= taken) > 0) continue;
        parts.emplace_back();
        room = each;
      }
    std::vector<Nearest> found(parts.size(), Nearest(k, nearest.bound()));
    run_units(
        executor, static_cast<int64_t>(parts.size()), [] { return std::make_unique<Scratch>(); },
        [&](int64_t unit, Scratch& scratch) {
          for (const Run& run : parts[unit]) visit(run, level, found[unit], scratch);
        });
    for (Nearest& part : found)
      for (uint64_t key : part.keys()) nearest.add(key);
  }
};

// All numbers of `bits` bits, by how many are set: those with c from first[c] on.
std::vector<uint32_t> by_count(int64_t bits, std::vector<int64_t>& first) {
  const int64_t total = int64_t{1} << bits;
  first.assign(bits + 2, 0);
  for (int64_t x = 0; x < total; ++x) ++first[__builtin_popcountll(x) + 1];
  for (int64_t c = 0; c <= bits; ++c) first[c + 1] += first[c];
  std::vector<int64_t> next = first;
  std::vector<uint32_t> out(total);
  for (int64_t x = 0; x < total; ++x) out[next[__builtin_popcountll(x)]++] = static_cast<uint32_t>(x);
  return out;
}

}  // namespace

void topk_buckets(const Rows& queries, const Buckets& items, int64_t bits, int64_t k, int32_t* out_distances,
                  int64_t* out_ids, const Executor& executor) {
  if (queries.count == 0 || k == 0) return;
  const Plan plan({bits});
  const int64_t words = items.rows.stride / 4;
  const std::vector<uint32_t> query_words = plan.load_queries(queries, words);
  std::vector<uint32_t> mask(words, 0);
  for (int64_t w = 0; w < plan.words; ++w) mask[w] = ~0u;
  mask[plan.words - 1] = plan.tail;
  std::vector<int64_t> first;
  const std::vector<uint32_t> flips = by_count(items.prefix, first);
  Scratch scratch;
  std::vector<Run> runs;
  for (int64_t q = 0; q < queries.count; ++q) {
    const uint8_t* const row = queries.data + q * queries.stride;
    const uint32_t own = (row[0] << 8 | (items.prefix > 8 ? row[1] : 0)) >> (16 - items.prefix);
    const Search search{items, own, query_words.data() + q * words, mask.data(), active_kernels(), executor};
    std::vector<int64_t> sizes(bits + 2, 0);  // items by level
    for (int64_t prefix = 0; prefix < int64_t{1} << items.prefix; ++prefix)
      sizes[search.level_of(prefix)] += items.starts[prefix + 1] - items.starts[prefix];
    const auto n = static_cast<double>(items.rows.count);
    Nearest nearest(k, static_cast<uint64_t>(bits + 1) << kIdBits);
    scratch.flooded = -1;
    for (int64_t level = 0; level <= items.prefix && level <= nearest.furthest(); ++level) {
      executor.check();
      if (static_cast<double>(sizes[level]) > kAlways * n && nearest.full()) {
        const int64_t last = std::min<int64_t>(nearest.furthest(), items.prefix);
        int64_t rest = 0;
        for (int64_t d = level; d <= last; ++d) rest += sizes[d];
        if (static_cast<double>(rest) > kSweep * n) {
          search.sweep_all(level - 1, k, nearest, scratch);
          break;
        }
      }
      runs.clear();
      for (int64_t j = first[level]; j < first[level + 1]; ++j) {
        const Run run{items.starts[own ^ flips[j]], items.starts[(own ^ flips[j]) + 1]};
        if (run.begin < run.end) runs.push_back(run);
      }
      const auto distance = static_cast<uint32_t>(level);
      if (executor.threads > 1 && sizes[level] >= 2 * kThreadItems) {
        search.visit_all(runs, sizes[level], distance, k, nearest);
      } else {
        for (const Run& run : runs) search.visit(run, distance, nearest, scratch);
      }
    }
    std::vector<uint64_t>& keys = nearest.keys();
    std::sort_heap(keys.begin(), keys.end());
    for (int64_t r = 0; r < k; ++r) {
      const bool there = r < static_cast<int64_t>(keys.size());
      out_distances[q * k + r] = there ? static_cast<int32_t>(keys[r] >> kIdBits) : -1;
      out_ids[q * k + r] = there ? static_cast<int64_t>(static_cast<uint32_t>(keys[r])) : -1;
    }
  }
}

}  // namespace nhl::hamming
