// Top-k and radius search: scan blocks with a distance limit per query, keep what passes, sort it by counting.
//
// Distances are small integers, so there is no heap: a query counts its candidates by distance, and its limit
// is the smallest one with k candidates below or at it. Items come in ascending order, so an item at the limit
// itself comes too late, and the scan passes d < limit only.
#include "common.h"

namespace nhl {
namespace {

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

struct Scratch {
  Scratch(int64_t items, int64_t words)
      : block(items, words), valid(items / 64 + 1), positions(kGroup * (items + kBlockAlign)),
        distances(kGroup * (items + kBlockAlign)) {
    for (int64_t g = 0; g < kGroup; ++g)
      hits[g] = {positions.data() + g * (items + kBlockAlign), distances.data() + g * (items + kBlockAlign), 0};
  }
  Block block;
  std::vector<uint64_t> valid;
  std::vector<uint32_t> positions, distances;
  Hits hits[kGroup];
};

// One bit an item of the block that begins at `begin`: inside the database and allowed.
void valid_bits(const uint8_t* allow, int64_t begin, int64_t count, std::vector<uint64_t>& out) {
  for (int64_t w = 0; w * 64 < padded(count); ++w) {
    const int64_t left = std::min<int64_t>(64, count - 64 * w);
    uint64_t bits = left == 64 ? ~0ull : (1ull << left) - 1;
    if (allow != nullptr) {
      bits = 0;
      for (int64_t i = 0; i < left; ++i) bits |= static_cast<uint64_t>(allow[begin + 64 * w + i] != 0) << i;
    }
    out[w] = bits;
  }
}

struct Problem {
  const Rows& queries;
  const Rows& items;
  int64_t bits;
  const uint8_t* allow;
  Plan plan;
  std::vector<uint32_t> query_words;
  const Kernels& kernels;

  Problem(const Rows& q, const Rows& x, int64_t b, const uint8_t* mask)
      : queries(q), items(x), bits(b), allow(mask), plan({b}), query_words(plan.load_queries(q)),
        kernels(active_kernels()) {}
};

// A limit that the scans of one query over several runs of items share: no item above it can matter.
using SharedLimits = std::vector<std::atomic<uint32_t>>;

// Scans items [begin, end) for queries [first, last), whose candidates start at `found`. `shared` is null where
// nobody else scans for these queries; `growing` starts with short blocks, for limits that are still far off.
void scan(const Problem& p, int64_t first, int64_t last, int64_t begin, int64_t end, Candidates* found,
          SharedLimits* shared, bool growing, Scratch& scratch) {
  const int64_t words = p.plan.words, most = block_items(words);
  std::vector<uint32_t> limits(last - first);
  for (int64_t q = first; q < last; ++q) limits[q - first] = found[q - first].limit();
  int64_t size = growing ? 256 : most;
  for (int64_t at = begin; at < end; at += size, size = std::min(most, size * 2)) {
    size = std::min(size, end - at);
    scratch.block.load(p.kernels, p.items, at, size, p.plan);
    valid_bits(p.allow, at, size, scratch.valid);
    for (int64_t q = first; q < last; q += kGroup) {
      const int64_t group = std::min(kGroup, last - q);
      uint32_t* const mine = limits.data() + (q - first);
      for (int64_t g = 0; shared && g < group; ++g) {
        const uint32_t other = (*shared)[q + g].load(std::memory_order_relaxed);
        if (other < mine[g]) mine[g] = other + 1;
      }
      p.kernels.filter(scratch.block.data, scratch.block.pitch, padded(size), scratch.valid.data(),
                       p.query_words.data() + q * words, words, group, mine, scratch.hits);
      for (int64_t g = 0; g < group; ++g) {
        if (scratch.hits[g].count == 0) continue;
        Candidates& candidates = found[q - first + g];
        candidates.append(scratch.hits[g], static_cast<uint32_t>(at - begin));
        if (candidates.limit() >= mine[g]) continue;
        mine[g] = candidates.limit();
        if (!shared) continue;
        std::atomic<uint32_t>& best = (*shared)[q + g];
        uint32_t old = best.load(std::memory_order_relaxed);
        while (mine[g] < old && !best.compare_exchange_weak(old, mine[g], std::memory_order_relaxed)) {
        }
      }
    }
  }
}

// Queries and items cut into units of work: tiles of queries x runs of items.
struct Split {
  Split(int64_t queries, int64_t items, int64_t most_queries, int64_t threads, int64_t least_run) {
    const int64_t num_tiles = divide_up(queries, std::max<int64_t>(most_queries, kGroup));
    tile = divide_up(divide_up(queries, num_tiles), kGroup) * kGroup;
    tiles = divide_up(queries, tile);
    runs = 1;
    if (threads > 1 && tiles % threads != 0 && tiles < 8 * threads)
      runs = std::clamp<int64_t>(items / least_run, 1, divide_up(2 * threads, tiles));
    runs = std::max(runs, divide_up(items, kLongestRun));
    run = divide_up(divide_up(items, runs), kBlockAlign) * kBlockAlign;
    runs = std::max<int64_t>(1, divide_up(items, run));
  }
  static constexpr int64_t kLongestRun = int64_t{1} << 31;  // positions are 32 bits
  int64_t tile, tiles, run, runs;
};

// The candidates of one query over all runs, sorted by (distance, position): the first `k` are written.
void emit(const Candidates* pieces, int64_t num_pieces, int64_t run, int64_t bits, int64_t k, int64_t base,
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

// Runs the scan over all units; candidates of query q, run c, end at result[q * runs + c].
std::vector<Candidates> collect(const Problem& p, int64_t first, int64_t last, const Split& split, int64_t k,
                                const uint32_t* limits, const int64_t* reserve, SharedLimits* shared,
                                const Executor& executor) {
  std::vector<Candidates> result((last - first) * split.runs);
  run_units(
      executor, split.tiles * split.runs,
      [&] { return std::make_unique<Scratch>(block_items(p.plan.words), p.plan.words); },
      [&](int64_t unit, Scratch& scratch) {
        // Runs vary fastest: threads that work on one tile of queries share their limits early.
        const int64_t q0 = first + unit / split.runs * split.tile, q1 = std::min(last, q0 + split.tile);
        const int64_t c = unit % split.runs, begin = c * split.run;
        const int64_t end = std::min(p.items.count, begin + split.run);
        std::vector<Candidates> found(q1 - q0);
        for (int64_t q = q0; q < q1; ++q)
          found[q - q0].start(p.bits, k, limits ? limits[q] : static_cast<uint32_t>(p.bits + 1),
                              reserve ? divide_up(reserve[q], split.runs) : 0);
        scan(p, q0, q1, begin, end, found.data(), split.runs > 1 ? shared : nullptr, k > 0, scratch);
        for (int64_t q = q0; q < q1; ++q) {
          found[q - q0].compact();
          result[(q - first) * split.runs + c] = std::move(found[q - q0]);
        }
      });
  return result;
}

void adaptive_topk(const Problem& p, int64_t k, int64_t base, int32_t* out_distances, int64_t* out_ids,
                   const Executor& executor) {
  // Candidates take about 12 bytes a neighbour; a batch of queries is bounded by what they take.
  const int64_t batch = std::clamp<int64_t>((int64_t{256} << 20) / (24 * k + 8 * p.bits), kGroup, 4096);
  for (int64_t first = 0; first < p.queries.count; first += batch) {
    const int64_t last = std::min(p.queries.count, first + batch);
    const int64_t tile = std::clamp<int64_t>((int64_t{4} << 20) / (24 * k), 8, 64);
    const Split split(last - first, p.items.count, tile, executor.threads, std::max<int64_t>(16384, 16 * k));
    SharedLimits shared(p.queries.count);
    for (auto& limit : shared) limit.store(kNoLimit, std::memory_order_relaxed);
    const auto found = collect(p, first, last, split, k, nullptr, nullptr, &shared, executor);
    run_units(
        executor, last - first, no_scratch,
        [&](int64_t q, NoScratch&) {
          emit(found.data() + q * split.runs, split.runs, split.run, p.bits, k, base,
               out_distances + (first + q) * k, out_ids + (first + q) * k);
        });
  }
}

// For a k that is a sizeable part of the database: count first, then collect below a limit that is known.
void counted_topk(const Problem& p, int64_t k, int64_t base, int32_t* out_distances, int64_t* out_ids,
                  const Executor& executor) {
  const int64_t batch = std::clamp<int64_t>((int64_t{256} << 20) / (12 * p.items.count), kGroup, 256);
  std::vector<uint64_t> allowed(divide_up(p.items.count, 64) + 1);
  valid_bits(p.allow, 0, p.items.count, allowed);
  for (int64_t first = 0; first < p.queries.count; first += batch) {
    const int64_t last = std::min(p.queries.count, first + batch), num = last - first;
    std::vector<int64_t> counts(num * (p.bits + 1) * 2);
    const Rows some{p.queries.data + first * p.queries.stride, num, p.queries.stride};
    histograms(some, p.items, {p.bits}, {allowed.data(), 0}, {counts.data(), 0, num}, executor);
    std::vector<uint32_t> limits(p.queries.count);
    std::vector<int64_t> reserve(p.queries.count);
    for (int64_t q = 0; q < num; ++q) {
      int64_t seen = 0;
      uint32_t d = 0;
      for (; d <= p.bits && seen < k; ++d) seen += counts[(q * (p.bits + 1) + d) * 2 + 1];
      limits[first + q] = d;
      reserve[first + q] = seen;
    }
    const Split split(num, p.items.count, kGroup, executor.threads, 16384);
    const auto found = collect(p, first, last, split, 0, limits.data(), reserve.data(), nullptr, executor);
    run_units(
        executor, num, no_scratch,
        [&](int64_t q, NoScratch&) {
          emit(found.data() + q * split.runs, split.runs, split.run, p.bits, k, base,
               out_distances + (first + q) * k, out_ids + (first + q) * k);
        });
  }
}

}  // namespace

void topk(const Rows& queries, const Rows& items, int64_t bits, int64_t k, int64_t base, const uint8_t* allow,
          int32_t* out_distances, int64_t* out_ids, const Executor& executor) {
  if (queries.count == 0 || k == 0) return;
  if (items.count == 0) {
    std::fill(out_distances, out_distances + queries.count * k, -1);
    std::fill(out_ids, out_ids + queries.count * k, -1);
    return;
  }
  const Problem problem(queries, items, bits, allow);
  const bool counted = k > 256 && k > items.count / 16;
  (counted ? counted_topk : adaptive_topk)(problem, k, base, out_distances, out_ids, executor);
}

struct RadiusSearch::State {
  Split split;
  int64_t bits, base;
  std::vector<Candidates> found;
};

RadiusSearch::RadiusSearch(const Rows& queries, const Rows& items, int64_t bits, int64_t radius, int64_t base,
                           const uint8_t* allow, const Executor& executor)
    : offsets(queries.count + 1, 0), executor_(executor) {
  if (queries.count == 0 || items.count == 0) return;
  const Problem problem(queries, items, bits, allow);
  const std::vector<uint32_t> limits(queries.count, static_cast<uint32_t>(std::min(radius, bits) + 1));
  const Split split(queries.count, items.count, 64, executor.threads, 16384);
  state_.reset(new State{split, bits, base, {}});
  state_->found = collect(problem, 0, queries.count, split, 0, limits.data(), nullptr, nullptr, executor);
  for (int64_t q = 0; q < queries.count; ++q) {
    offsets[q + 1] = offsets[q];
    for (int64_t c = 0; c < split.runs; ++c) offsets[q + 1] += state_->found[q * split.runs + c].size();
  }
}

RadiusSearch::~RadiusSearch() = default;

void RadiusSearch::write(int32_t* distances, int64_t* ids) const {
  if (!state_) return;
  const Split& split = state_->split;
  run_units(
      executor_, static_cast<int64_t>(offsets.size()) - 1, no_scratch, [&](int64_t q, NoScratch&) {
        emit(state_->found.data() + q * split.runs, split.runs, split.run, state_->bits,
             offsets[q + 1] - offsets[q], state_->base, distances + offsets[q], ids + offsets[q]);
      });
}

}  // namespace nhl
