// Distances and histograms: one pass over the items, all lengths at once.
#include <numeric>

#include "marks.h"
#include "plan.h"
#include "planes.h"

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
            kernels.distances(scratch.block.data, scratch.block.pitch, round_up(count, kBlockAlign),
                              words.data() + q * plan.words, plan.words, plan.steps.data(),
                              static_cast<int64_t>(plan.steps.size()), scratch.distances.data(), size);
            visit(scratch, q, at, count, scratch.distances.data(), size);
          }
        }
        end_unit(scratch, q0, q1);
      });
}

void nothing(Scratch&, int64_t, int64_t) {}

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

namespace {

// Item by item, for codes too long to be sliced, or too few queries to make the planes worth while.
void count_items(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, const Marks& marks,
                const Counts& counts, const Executor& executor) {
  // Four counters a bin, taken in turn: items at one distance in a row don't wait for each other's store.
  constexpr int64_t kTurns = 4;
  int64_t bins = 0;
  for (int64_t b : lengths) bins += b + 1;
  const int64_t row = bins * 2 * kTurns;
  for_each_block(
      queries, items, lengths, executor,
      [&](Scratch& scratch, int64_t q0, int64_t q1) { scratch.counters.assign((q1 - q0) * row, 0); },
      [&](Scratch& scratch, int64_t q, int64_t at, int64_t count, const uint16_t* found, int64_t pitch) {
        uint32_t* counter = scratch.counters.data() + q % kTile * row;
        const uint64_t* const marked = marks.of(q);
        const uint64_t* bits = marked == nullptr ? nullptr : marked + at / 64;
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

}  // namespace

void histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, const Marks& marks,
                const Counts& counts, const Executor& executor) {
  // Summed bits cost a pair the same either way. A length costs it less by slices; slicing costs an item its bits.
  constexpr int64_t kBitsPaid = 4;  // by one query and length
  int64_t sliced = count_sliced(lengths);
  if (sliced && kBitsPaid * queries.count * sliced < lengths[sliced - 1]) sliced = 0;
  int64_t bins = 0, first_bin = 0;
  for (size_t m = 0; m < lengths.size(); ++m) {
    const int64_t b = lengths[m];
    int64_t* rows = counts.data + (bins * counts.total + (b + 1) * counts.first) * 2;
    std::fill(rows, rows + (b + 1) * queries.count * 2, 0);
    bins += b + 1;
    if (static_cast<int64_t>(m) < sliced) first_bin = bins;
  }
  const std::vector<int64_t> some(lengths.begin(), lengths.begin() + sliced);
  const std::vector<int64_t> rest(lengths.begin() + sliced, lengths.end());
  if (!some.empty()) sliced_histograms(queries, items, some, marks, counts, executor);
  const Counts others{counts.data + first_bin * counts.total * 2, counts.first, counts.total};
  if (!rest.empty()) count_items(queries, items, rest, marks, others, executor);
}

void label_histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
                      const Relevance& relevance, int64_t* counts, const Executor& executor) {
  LabelMarks marks(relevance, items.count);
  // Marks of a batch of queries take at most 64 MB.
  const int64_t batch = std::max<int64_t>(kTile, (int64_t{64} << 20) / (8 * marks.words() + 1));
  std::vector<int64_t> all(queries.count);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t first = 0; first < queries.count; first += batch) {
    const int64_t count = std::min(batch, queries.count - first);
    marks.load(all.data() + first, count, executor);
    const Rows some{queries.data + first * queries.stride, count, queries.stride};
    histograms(some, items, lengths, marks.marks(), {counts, first, queries.count}, executor);
  }
}

}  // namespace nhl::hamming
