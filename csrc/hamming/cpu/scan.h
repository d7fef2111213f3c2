// Scanning items for queries: the problem, how it is cut into units of work, and the scan of one unit.
#pragma once

#include "candidates.h"

namespace nhl::hamming {

constexpr int64_t kFewQueries = 3;  // up to these, transposing rows costs more than it saves

struct Scratch {
  // Room for `items` items at once, `transposed` of them in a block, and what `group` queries find among them.
  Scratch(int64_t items, int64_t transposed, int64_t words, int64_t group)
      : block(transposed, words), valid(items / 64 + 1), room(items + kBlockAlign),
        found(new uint32_t[2 * group * room]) {
    for (int64_t g = 0; g < group; ++g) hits[g] = {found.get() + 2 * g * room, found.get() + (2 * g + 1) * room, 0};
  }
  Block block;
  std::vector<uint64_t> valid;
  int64_t room;
  std::unique_ptr<uint32_t[]> found;
  Hits hits[kGroup];
};

// One bit an item of the block that begins at `begin`: inside the database and allowed.
inline void valid_bits(const Kernels& kernels, const uint8_t* allow, int64_t begin, int64_t count, uint64_t* out) {
  if (allow != nullptr) return kernels.nonzero(allow + begin, count, out);
  std::fill(out, out + count / 64, ~0ull);
  if (count % 64) out[count / 64] = (1ull << count % 64) - 1;
}

struct Problem {
  const Rows& queries;
  const Rows& items;
  int64_t bits;
  const uint8_t* allow;
  Plan plan;
  std::vector<uint32_t> query_words;
  const Kernels& kernels;
  bool in_place;     // rows are read as they lie
  int64_t words;     // of a query
  int64_t readable;  // items whose whole stride may be read
  std::vector<uint32_t> mask;

  Problem(const Rows& q, const Rows& x, int64_t b, const uint8_t* allowed)
      : queries(q), items(x), bits(b), allow(allowed), plan({b}), kernels(active_kernels()),
        in_place(q.count <= kFewQueries && reads_rows(x.stride) && plan.bytes <= x.stride),
        words(in_place ? x.stride / 4 : plan.words), readable(x.count - (plan.bytes < x.stride)), mask(words, 0) {
    query_words = plan.load_queries(q, words);
    for (int64_t w = 0; w < plan.words; ++w) mask[w] = ~0u;
    mask[plan.words - 1] = plan.tail;
  }

  // Items that a scan takes at once.
  int64_t most() const {
    if (!in_place) return block_items(plan.words);
    // Several queries read the same rows in turn, from the first-level cache.
    return (queries.count == 1 ? 128 << 10 : 32 << 10) / items.stride;
  }
  // Items worth a thread of their own: about half a megabyte of rows in place, or 5 microseconds.
  int64_t least_run() const {
    return std::max<int64_t>(16384, in_place ? (512 << 10) / (items.stride * queries.count) : 0);
  }
  std::unique_ptr<Scratch> make_scratch() const {
    const int64_t transposed = in_place ? kBlockAlign : most();
    return std::make_unique<Scratch>(most(), transposed, plan.words, std::min(queries.count, kGroup));
  }
};

// A limit that the scans of one query over several runs of items share: no item above it can matter.
using SharedLimits = std::vector<std::atomic<uint32_t>>;

// Scans items [begin, end) for queries [first, last), whose candidates start at `found`. `shared` is null where
// nobody else scans for these queries; `growing` starts with short blocks, for limits that are still far off.
inline void scan(const Problem& p, int64_t first, int64_t last, int64_t begin, int64_t end, Candidates* found,
                 SharedLimits* shared, bool growing, Scratch& scratch, const Executor& executor) {
  const int64_t stride = p.items.stride, most = p.most();
  const int64_t whole = (std::min(end, p.readable) - begin) / kBlockAlign * kBlockAlign;
  const int64_t direct_end = p.in_place ? begin + whole : begin;
  std::vector<uint32_t> limits(last - first);
  for (int64_t q = first; q < last; ++q) limits[q - first] = found[q - first].limit();
  int64_t size = growing ? 256 : most;
  for (int64_t at = begin; at < end; at += size, size = std::min(most, size * 2)) {
    executor.check();
    const bool direct = at < direct_end;
    size = std::min(size, (direct ? direct_end : end) - at);
    if (!direct) scratch.block.load(p.kernels, p.items, at, size, p.plan);
    valid_bits(p.kernels, p.allow, at, size, scratch.valid.data());
    for (int64_t q = first; q < last; q += kGroup) {
      const int64_t group = std::min(kGroup, last - q);
      uint32_t* const mine = limits.data() + (q - first);
      for (int64_t g = 0; shared && g < group; ++g) {
        const uint32_t other = (*shared)[q + g].load(std::memory_order_relaxed);
        if (other < mine[g]) mine[g] = other + 1;
      }
      const uint32_t* const query = p.query_words.data() + q * p.words;
      // Queries meant for rows in place may be wider than a block's words: there, one at a time.
      const int64_t together = p.in_place ? 1 : group;
      for (int64_t g = 0; g < group; g += together) {
        if (direct)
          p.kernels.filter_rows(p.items.data + at * stride, stride, size, scratch.valid.data(), query + g * p.words,
                                p.mask.data(), mine[g], scratch.hits + g);
        else
          p.kernels.filter(scratch.block.data, scratch.block.pitch, round_up(size, kBlockAlign), scratch.valid.data(),
                           query + g * p.words, p.plan.words, together, mine + g, scratch.hits + g);
      }
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
    tile = round_up(divide_up(queries, num_tiles), kGroup);
    tiles = divide_up(queries, tile);
    runs = 1;
    if (threads > 1 && tiles % threads != 0 && tiles < 8 * threads)
      runs = std::clamp<int64_t>(items / least_run, 1, divide_up(2 * threads, tiles));
    runs = std::max(runs, divide_up(items, kLongestRun));
    run = round_up(divide_up(items, runs), kBlockAlign);
    runs = std::max<int64_t>(1, divide_up(items, run));
  }
  static constexpr int64_t kLongestRun = int64_t{1} << 31;  // positions are 32 bits
  int64_t tile, tiles, run, runs;
};

// Runs the scan over all units; candidates of query q, run c, end at result[q * runs + c].
inline std::vector<Candidates> collect(const Problem& p, int64_t first, int64_t last, const Split& split, int64_t k,
                                       const uint32_t* limits, const int64_t* reserve, SharedLimits* shared,
                                       const Executor& executor) {
  std::vector<Candidates> result((last - first) * split.runs);
  run_units(
      executor, split.tiles * split.runs,
      [&] { return p.make_scratch(); },
      [&](int64_t unit, Scratch& scratch) {
        // Runs vary fastest: threads that work on one tile of queries share their limits early.
        const int64_t q0 = first + unit / split.runs * split.tile, q1 = std::min(last, q0 + split.tile);
        const int64_t c = unit % split.runs, begin = c * split.run;
        const int64_t end = std::min(p.items.count, begin + split.run);
        std::vector<Candidates> found(q1 - q0);
        for (int64_t q = q0; q < q1; ++q)
          found[q - q0].start(p.bits, k, limits[q], reserve ? divide_up(reserve[q], split.runs) : 0);
        scan(p, q0, q1, begin, end, found.data(), split.runs > 1 ? shared : nullptr, k > 0, scratch,
             executor);
        for (int64_t q = q0; q < q1; ++q) {
          found[q - q0].compact();
          result[(q - first) * split.runs + c] = std::move(found[q - q0]);
        }
      });
  return result;
}

}  // namespace nhl::hamming
