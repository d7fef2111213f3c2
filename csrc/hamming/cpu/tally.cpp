// Histograms over distances, by bit-sliced counting.
#include "planes.h"

namespace nhl::hamming {
namespace {

constexpr int64_t kTile = 16;  // queries that share a run of blocks

struct Scratch {
  Scratch(const Planes& planes, int64_t rows)
      : query(kTile * planes.bits), items(kTile * rows), marked(kTile * rows) {}
  std::vector<uint64_t> query, items, marked;
};

}  // namespace

void sliced_histograms(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths, const Marks& marks,
                       const Counts& counts, const Executor& executor) {
  const int64_t rows = count_rows(lengths), mark_words = divide_up(items.count, 64);
  if (queries.count == 0 || items.count == 0) return;
  Planes planes(items.count, lengths.back());
  const int64_t tiles = divide_up(queries.count, kTile), together = planes.together();
  for (int64_t at = 0; at < items.count; at += planes.most_items) {
    planes.load(items, at, std::min(planes.most_items, items.count - at), executor);
    const int64_t most_runs = divide_up(planes.blocks, 8 * together);
    const int64_t runs = tiles % executor.threads == 0 ? 1 : std::min(most_runs, divide_up(4 * executor.threads, tiles));
    run_units(
        executor, tiles * runs, [&] { return std::make_unique<Scratch>(planes, rows); },
        [&](int64_t unit, Scratch& s) {
          const int64_t first = unit / runs * kTile, num = std::min(kTile, queries.count - first);
          const int64_t run = unit % runs, end = planes.blocks * (run + 1) / runs;
          for (int64_t q = 0; q < num; ++q)
            spread_query(queries.data + (first + q) * queries.stride, planes.bits, s.query.data() + q * planes.bits);
          std::fill(s.items.begin(), s.items.end(), 0);
          std::fill(s.marked.begin(), s.marked.end(), 0);
          BlockTask task(planes, lengths);
          for (int64_t b = planes.blocks * run / runs; b < end; b += together) {
            executor.check();
            for (int64_t q = 0; q < num; ++q) {
              const uint64_t* row = marks.of(first + q);
              for (int64_t j = b; j < std::min(end, b + together); ++j)
                planes.kernels.tally(task.at(j, s.query.data() + q * planes.bits, row, mark_words),
                                     s.items.data() + q * rows, s.marked.data() + q * rows);
            }
          }
          // Several threads may hold runs of one query; adding integers has no order to keep.
          for (int64_t q = 0; q < num; ++q) {
            int64_t* table = counts.data;
            const uint64_t *all = s.items.data() + q * rows, *some = s.marked.data() + q * rows;
            for (const int64_t bits : lengths) {
              int64_t* target = table + (counts.first + first + q) * (bits + 1) * 2;
              for (int64_t d = 0; d <= bits; ++d) {
                if (all[d] != some[d])
                  __atomic_fetch_add(target + 2 * d, static_cast<int64_t>(all[d] - some[d]), __ATOMIC_RELAXED);
                if (some[d]) __atomic_fetch_add(target + 2 * d + 1, static_cast<int64_t>(some[d]), __ATOMIC_RELAXED);
              }
              all += sliced_rows(bits);
              some += sliced_rows(bits);
              table += counts.total * (bits + 1) * 2;
            }
          }
        });
  }
}

}  // namespace nhl::hamming
