// Distances, relevance marks and histograms: one pass over the items, all lengths at once.
#include "plan.h"

namespace nhl::hamming {
namespace {

constexpr int64_t kTile = 32;  // queries that share a transposed block

struct Scratch {
  Scratch(int64_t items, const Plan& plan)
      : block(items, plan.words), distances(items * static_cast<int64_t>(plan.steps.size())) {}
  Block block;
  std::vector<uint16_t> distances;
  std::vector<uint32_t> counters;
};

// Calls visit(query, first item, count, distances) for every query of a tile and block of a run of items;
// `distances` holds one row of block_items numbers a length.
template <class Begin, class Visit, class End>
void for_each_block(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
                    const Executor& executor, const Begin& begin_unit, const Visit& visit, const End& end_unit) {
  if (queries.count == 0 || items.count == 0) return;
  const Plan plan(lengths);
  const Kernels& kernels = active_kernels();
  const std::vector<uint32_t> words = plan.load_queries(queries, plan.words);
  const int64_t size = block_items(plan.words), tiles = divide_up(queries.count, kTile);
  const int64_t units_wanted = tiles % executor.threads == 0 ? tiles : 4 * executor.threads;
  const int64_t run = std::clamp<int64_t>(divide_up(items.count * tiles, units_wanted * size) * size, 16384, 1 << 20);
  const int64_t runs = divide_up(items.count, run);
  run_units(
      executor, tiles * runs, [&] { return std::make_unique<Scratch>(size, plan); },
      [&](int64_t unit, Scratch& scratch) {
        const int64_t q0 = unit / runs * kTile, q1 = std::min(queries.count, q0 + kTile);
        const int64_t end = std::min(items.count, (unit % runs + 1) * run);
        begin_unit(scratch, q0, q1);
        for (int64_t at = unit % runs * run; at < end; at += size) {
          executor.check();
          const int64_t count = std::min(size, end - at);
          scratch.block.load(kernels, items, at, count, plan);
          for (int64_t q = q0; q < q1; ++q) {
            kernels.distances(scratch.block.data, scratch.block.pitch, round_up(count, kBlockAlign), words.data() + q * plan.words,
                              plan.words, plan.steps.data(), static_cast<int64_t>(plan.steps.size()),
                              scratch.distances.data(), size);
            visit(scratch, q, at, count, scratch.distances.data(), size);
          }
        }
        end_unit(scratch, q0, q1);
      });
}

void nothing(Scratch&, int64_t, int64_t) {}

template <class T>
void mark_equal(const T* items, int64_t count, T wanted, uint64_t* out) {
  for (int64_t w = 0; w * 64 < count; ++w) {
    const int64_t left = std::min<int64_t>(64, count - 64 * w);
    uint8_t equal[64] = {};
    for (int64_t i = 0; i < left; ++i) equal[i] = items[64 * w + i] == wanted;
    uint64_t bits = 0;
    for (int64_t byte = 0; byte < 8; ++byte) {
      uint64_t eight;
      std::memcpy(&eight, equal + 8 * byte, 8);
      bits |= gather_bits(eight) << (8 * byte);
    }
    out[w] = bits;
  }
}

template <class T>
void mark_ids(const Relevance& relevance, int64_t query, int64_t items, uint64_t* out) {
  const T wanted = static_cast<const T*>(relevance.queries)[query];
  mark_equal(static_cast<const T*>(relevance.items), items, wanted, out);
}

void mark_sets(const Relevance& relevance, int64_t query, int64_t items, uint64_t* out) {
  const auto* wanted = static_cast<const uint64_t*>(relevance.queries) + query * relevance.words;
  const auto* sets = static_cast<const uint64_t*>(relevance.items);
  for (int64_t w = 0; w * 64 < items; ++w) {
    const int64_t left = std::min<int64_t>(64, items - 64 * w);
    uint64_t bits = 0;
    for (int64_t i = 0; i < left; ++i, sets += relevance.words) {
      uint64_t shared = 0;
      for (int64_t j = 0; j < relevance.words; ++j) shared |= sets[j] & wanted[j];
      bits |= static_cast<uint64_t>(shared != 0) << i;
    }
    out[w] = bits;
  }
}

}  // namespace

void distances(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, int32_t* out,
               const Executor& executor) {
  const auto num_lengths = static_cast<int64_t>(lengths.size());
  for_each_block(
      queries, items, lengths, executor, nothing,
      [&](Scratch&, int64_t q, int64_t at, int64_t count, const uint16_t* found, int64_t pitch) {
        for (int64_t m = 0; m < num_lengths; ++m) {
          int32_t* row = out + (m * queries.count + q) * items.count + at;
          for (int64_t i = 0; i < count; ++i) row[i] = found[m * pitch + i];
        }
      },
      nothing);
}

void mark_relevant(const Relevance& relevance, int64_t first, int64_t count, int64_t items, uint64_t* out,
                   const Executor& executor) {
  const auto mark = relevance.words > 0      ? mark_sets
                    : relevance.id_bytes == 1 ? mark_ids<uint8_t>
                    : relevance.id_bytes == 2 ? mark_ids<uint16_t>
                    : relevance.id_bytes == 4 ? mark_ids<uint32_t>
                                              : mark_ids<uint64_t>;
  const int64_t words = divide_up(items, 64);
  run_units(executor, count, no_scratch,
            [&](int64_t q, NoScratch&) { mark(relevance, first + q, items, out + q * words); });
}

void histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, const Marks& marks,
                const Counts& counts, const Executor& executor) {
  // Four counters a bin, taken in turn: items at one distance in a row don't wait for each other's store.
  constexpr int64_t kTurns = 4;
  int64_t bins = 0;
  for (int64_t b : lengths) {
    int64_t* rows = counts.data + (bins * counts.total + (b + 1) * counts.first) * 2;
    std::fill(rows, rows + (b + 1) * queries.count * 2, 0);
    bins += b + 1;
  }
  const int64_t row = bins * 2 * kTurns;
  for_each_block(
      queries, items, lengths, executor,
      [&](Scratch& scratch, int64_t q0, int64_t q1) { scratch.counters.assign((q1 - q0) * row, 0); },
      [&](Scratch& scratch, int64_t q, int64_t at, int64_t count, const uint16_t* found, int64_t pitch) {
        uint32_t* counter = scratch.counters.data() + q % kTile * row;
        const uint64_t* bits = marks.bits == nullptr ? nullptr : marks.bits + q * marks.stride + at / 64;
        for (const int64_t b : lengths) {
          int64_t i = 0;
          for (; i + kTurns <= count; i += kTurns) {
            const uint64_t four = bits == nullptr ? 0 : bits[i / 64] >> (i % 64);
            for (int64_t t = 0; t < kTurns; ++t) ++counter[(found[i + t] * 2 + (four >> t & 1)) * kTurns + t];
          }
          for (; i < count; ++i) {
            const uint64_t bit = bits == nullptr ? 0 : bits[i / 64] >> (i % 64) & 1;
            ++counter[(found[i] * 2 + bit) * kTurns];
          }
          found += pitch;
          counter += (b + 1) * 2 * kTurns;
        }
      },
      [&](Scratch& scratch, int64_t q0, int64_t q1) {
        // Several threads may hold runs of one query; adding integers has no order to keep.
        for (int64_t q = q0; q < q1; ++q) {
          const uint32_t* counter = scratch.counters.data() + q % kTile * row;
          int64_t* table = counts.data;
          for (const int64_t b : lengths) {
            int64_t* target = table + (counts.first + q) * (b + 1) * 2;
            for (int64_t i = 0; i < (b + 1) * 2; ++i, counter += kTurns) {
              int64_t sum = 0;
              for (int64_t t = 0; t < kTurns; ++t) sum += counter[t];
              if (sum) __atomic_fetch_add(target + i, sum, __ATOMIC_RELAXED);
            }
            table += counts.total * (b + 1) * 2;
          }
        }
      });
}

void label_histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
                      const Relevance& relevance, int64_t* counts, const Executor& executor) {
  const int64_t words = divide_up(items.count, 64);
  // Marks of a batch of queries take at most 64 MB.
  const int64_t batch = std::max<int64_t>(kTile, (int64_t{64} << 20) / (8 * words + 1));
  for (int64_t first = 0; first < queries.count; first += batch) {
    const int64_t count = std::min(batch, queries.count - first);
    std::vector<uint64_t> marks(count * words);
    mark_relevant(relevance, first, count, items.count, marks.data(), executor);
    const Rows some{queries.data + first * queries.stride, count, queries.stride};
    histograms(some, items, lengths, {marks.data(), words}, {counts, first, queries.count}, executor);
  }
}

}  // namespace nhl::hamming
