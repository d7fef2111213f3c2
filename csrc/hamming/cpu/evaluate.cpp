// Rank sums by counting: no sort, and no float is ever compared.
//
// The rank of an item is the number of items at smaller distances plus its turn among those at its own. A ranking is
// kept as a bitmap of the ranks that hold a relevant item, from which all measures follow in the order of the ranks.
#include <cmath>
#include <cstring>

#include "marks.h"
#include "plan.h"
#include "planes.h"

namespace nhl::hamming {
namespace {

// One batch of queries, in the order of their labels: then all with the same relevant items weigh the same, and are
// summed together. Row j of every array here is that of query order[j].
struct Batch {
  Rows queries;
  const Rows& items;
  const std::vector<int64_t>& lengths;
  int64_t cutoff, rank_words, total;
  const Evaluation& out;
  const std::vector<double>& discounts;  // of ranks, from the first on
  const int64_t* order;
  LabelMarks& marks;
  std::vector<int64_t>& relevant;  // items
  std::vector<bool>& flipped;      // the others, which are fewer, are marked
  std::vector<uint64_t>& ranks;

  int64_t marked(int64_t j) const { return flipped[j] ? items.count - relevant[j] : relevant[j]; }
  int64_t num_lengths() const { return static_cast<int64_t>(lengths.size()); }
  uint64_t* ranks_of(int64_t j, int64_t m) { return ranks.data() + (j * num_lengths() + m) * rank_words; }
  // [d][2] of one query and length, in the result.
  int64_t* counts_of(int64_t j, int64_t m) const {
    int64_t* table = out.counts;
    for (int64_t i = 0; i < m; ++i) table += total * (lengths[i] + 1) * 2;
    return table + order[j] * (lengths[m] + 1) * 2;
  }
};

// out[i]: sum of the discounts of the ranks that are set among the first ends[i].
void add_gains(const uint64_t* ranks, const std::vector<int64_t>& ends, const double* discounts, double* out) {
  double sum = 0;
  int64_t at = 0;
  for (size_t i = 0; i < ends.size(); ++i) {
    while (at < ends[i]) {
      const int64_t first = at / 64 * 64, last = std::min(ends[i], first + 64);
      uint64_t bits = ranks[at / 64] & ~0ull << at % 64;
      if (last % 64) bits &= ~(~0ull << last % 64);
      double here = 0;  // of a word, so that the words need not wait for one another
      for (; bits; bits &= bits - 1) here += discounts[first + __builtin_ctzll(bits)];
      sum += here;
      at = last;
    }
    out[i] = sum;
  }
}

// What follows from one ranking alone, whose marked items have been placed. `ends[d]` is the number of items at
// distances up to d.
void measure(Batch& batch, const SliceKernels& kernels, int64_t j, int64_t m, const int64_t* ends, int64_t* ones) {
  const int64_t bins = batch.lengths[m] + 1, at = m * batch.total + batch.order[j];
  uint64_t* const ranks = batch.ranks_of(j, m);
  if (batch.flipped[j]) {
    const int64_t n = batch.items.count;
    for (int64_t w = 0; w < n / 64; ++w) ranks[w] = ~ranks[w];
    if (n % 64) ranks[n / 64] ^= ~(~0ull << n % 64);
  }
  kernels.ones(ranks, ends, bins, ones);
  int64_t* const counts = batch.counts_of(j, m);
  for (int64_t d = 0; d < bins; ++d) {
    counts[2 * d + 1] = ones[d] - (d ? ones[d - 1] : 0);
    counts[2 * d] = ends[d] - (d ? ends[d - 1] : 0) - counts[2 * d + 1];
  }
  batch.out.precision[at] = kernels.precision(ranks, batch.cutoff, batch.out.retrieved + at);
  const std::vector<int64_t>& wanted = batch.out.gain_ends;
  if (!wanted.empty())
    add_gains(ranks, wanted, batch.discounts.data(), batch.out.gains + at * static_cast<int64_t>(wanted.size()));
}

// Items ranked before those at every distance of some lengths, [query][length][distance].
std::vector<int64_t> rank_starts(const Batch& batch, const std::vector<int64_t>& lengths, const Executor& executor) {
  const int64_t num = batch.queries.count;
  int64_t bins = 0;
  for (int64_t b : lengths) bins += b + 1;
  std::vector<int64_t> counts(2 * bins * num), starts(bins * num);
  histograms(batch.queries, batch.items, lengths, batch.marks.marks(), {counts.data(), 0, num}, executor);
  const int64_t* table = counts.data();
  int64_t first = 0;
  for (int64_t b : lengths) {
    for (int64_t j = 0; j < num; ++j)
      for (int64_t d = 0, before = 0; d <= b; ++d, table += 2) {
        starts[j * bins + first + d] = before;
        before += table[0] + table[1];
      }
    first += b + 1;
  }
  return starts;
}

// ---------------------------------------------------------------------------------------------------- sliced lengths

// Up to this many ranks, a byte each stays in the second-level cache.
constexpr int64_t kByteRanks = int64_t{1} << 18;

// Of a chunk, for one query and all lengths, where all its items are marked: 64 MB a thread.
constexpr int64_t kMostRecords = int64_t{1} << 24;

struct Ranker {
  Ranker(const Planes& planes, const Batch& batch, int64_t sliced, int64_t rows_, int64_t tile, int64_t most_marked)
      : rows(rows_), capacity(most_marked + kSpareRecords), query(tile * planes.bits), state(tile * rows),
        records(tile * sliced * capacity), found(tile), start(planes.bits + 1), ends(planes.bits + 1),
        masks(sliced_rows(planes.bits) * planes.kernels.words), before(masks.size() / 4), inside(masks.size()),
        low(planes.block_items), high(planes.block_items), marked(planes.block_items + 64),
        bytes(64 * batch.rank_words <= kByteRanks ? 64 * batch.rank_words : 0),
        turns{masks.data(), before.data(), inside.data(), low.data(), high.data(), marked.data()} {}

  int64_t rows, capacity;
  std::vector<uint64_t> query, state;
  std::vector<uint32_t> records;
  std::vector<int64_t> found, start, ends;
  std::vector<uint64_t> masks;
  std::vector<uint32_t> before;
  std::vector<uint8_t> inside, low, high;
  std::vector<uint16_t> marked;
  std::vector<uint8_t> bytes;
  TurnScratch turns;
};

// The turns of one query's marked items of the chunk become ranks. `cursors` holds, where there are several chunks,
// how many items are ranked before the chunk's at every distance; else it is null.
void place(Batch& batch, const Planes& planes, Ranker& s, int64_t slot, int64_t j, int64_t sliced, int64_t* cursors) {
  const uint64_t* state = s.state.data() + slot * s.rows;
  const bool last = 64 * planes.first_word + planes.count == batch.items.count;
  for (int64_t m = 0; m < sliced; ++m) {
    const int64_t bits = batch.lengths[m];
    for (int64_t d = 0, before = 0; d <= bits; ++d) {
      const int64_t here = items_at(state[d], d), first = cursors ? cursors[d] : before;
      s.start[d] = first - (d << kTurnBits);
      before += here;
      s.ends[d] = first + here;
      if (cursors) cursors[d] += here;
    }
    planes.kernels.place(s.records.data() + (slot * sliced + m) * s.capacity, s.found[slot], s.start.data(),
                         batch.rank_words, s.bytes.empty() ? nullptr : s.bytes.data(), batch.ranks_of(j, m));
    if (last) measure(batch, planes.kernels, j, m, s.ends.data(), s.start.data());
    state += sliced_rows(bits);
    if (cursors) cursors += bits + 1;
  }
}

// Ranks of the first `sliced` lengths.
void rank_sliced(Batch& batch, Planes& planes, int64_t sliced, const Executor& executor) {
  const std::vector<int64_t> lengths(batch.lengths.begin(), batch.lengths.begin() + sliced);
  const int64_t n = batch.items.count, num = batch.queries.count, rows = count_rows(lengths);
  const bool single = n <= planes.most_items;
  std::vector<int64_t> cursors;
  if (!single) cursors = rank_starts(batch, lengths, executor);
  const auto bins = static_cast<int64_t>(cursors.size()) / num;
  int64_t most = 0;
  for (int64_t j = 0; j < num; ++j) most = std::max(most, batch.marked(j));
  most = std::min(most, planes.most_items);
  // Records of a tile's queries stay in the second-level cache.
  const int64_t tile = std::clamp<int64_t>((int64_t{1} << 19) / (most * sliced + 1), 1, 16);
  for (int64_t at = 0; at < n; at += planes.most_items) {
    if (!single || planes.count == 0) planes.load(batch.items, at, std::min(planes.most_items, n - at), executor);
    run_units(
        executor, divide_up(num, tile),
        [&] { return std::make_unique<Ranker>(planes, batch, sliced, rows, tile, most); },
        [&](int64_t unit, Ranker& s) {
          const int64_t first = unit * tile, width = std::min(tile, num - first);
          for (int64_t t = 0; t < width; ++t) {
            spread_query(batch.queries.data + (first + t) * batch.queries.stride, planes.bits,
                         s.query.data() + t * planes.bits);
            uint64_t* state = s.state.data() + t * rows;
            for (int64_t b : lengths)
              for (int64_t d = 0; d < sliced_rows(b); ++d) *state++ = start_turns(d);
            s.found[t] = 0;
          }
          std::vector<uint32_t*> records(sliced);
          BlockTask task(planes, lengths);
          for (int64_t b = 0, end; b < planes.blocks; b = end) {
            executor.check();
            end = std::min(planes.blocks, b + planes.together());
            for (int64_t t = 0; t < width; ++t) {
              for (int64_t m = 0; m < sliced; ++m) records[m] = s.records.data() + (t * sliced + m) * s.capacity;
              for (int64_t i = b; i < end; ++i)
                s.found[t] += planes.kernels.turns(
                    task.at(i, s.query.data() + t * planes.bits, batch.marks.of(first + t), batch.marks.words()),
                    s.turns, s.state.data() + t * rows, records.data(), s.found[t]);
            }
          }
          for (int64_t t = 0; t < width; ++t) {
            executor.check();
            place(batch, planes, s, t, first + t, sliced, single ? nullptr : cursors.data() + (first + t) * bins);
          }
        });
  }
}

// ------------------------------------------------------------------------------------------------------ long lengths

constexpr int64_t kLongTile = 8;  // queries that share a transposed block

struct LongScratch {
  LongScratch(int64_t items, const Plan& plan, int64_t bins)
      : block(items, plan.words), distances(items), ranks(items), ones(bins) {}
  Block block;
  std::vector<uint16_t> distances;
  std::vector<int64_t> ranks, ones;
};

// Ranks of a length too long to be sliced: every item is given its own, from histograms made before.
void rank_long(Batch& batch, int64_t m, const Executor& executor) {
  const int64_t n = batch.items.count, num = batch.queries.count, bins = batch.lengths[m] + 1;
  const Plan plan({batch.lengths[m]});
  const Kernels& kernels = active_kernels();
  std::vector<int64_t> cursors = rank_starts(batch, {batch.lengths[m]}, executor);
  const std::vector<uint32_t> words = plan.load_queries(batch.queries, plan.words);
  const int64_t size = block_items(plan.words);
  run_units(
      executor, divide_up(num, kLongTile), [&] { return std::make_unique<LongScratch>(size, plan, bins); },
      [&](int64_t unit, LongScratch& s) {
        const int64_t first = unit * kLongTile, end = std::min(num, first + kLongTile);
        for (int64_t at = 0; at < n; at += size) {
          executor.check();
          const int64_t count = std::min(size, n - at);
          s.block.load(kernels, batch.items, at, count, plan);
          for (int64_t j = first; j < end; ++j) {
            kernels.distances(s.block.data, s.block.pitch, round_up(count, kBlockAlign), words.data() + j * plan.words,
                              plan.words, plan.steps.data(), 1, s.distances.data(), size);
            int64_t* const cursor = cursors.data() + j * bins;
            for (int64_t i = 0; i < count; ++i) s.ranks[i] = cursor[s.distances[i]]++;
            uint64_t* const ranks = batch.ranks_of(j, m);
            const uint64_t* const marks = batch.marks.of(j) + at / 64;
            for (int64_t i = 0; i < count; i += 64)
              for (uint64_t bits = marks[i / 64]; bits; bits &= bits - 1) {
                const int64_t rank = s.ranks[i + __builtin_ctzll(bits)];
                ranks[rank / 64] |= 1ull << rank % 64;
              }
          }
        }
        for (int64_t j = first; j < end; ++j)
          measure(batch, active_slices(), j, m, cursors.data() + j * bins, s.ones.data());
      });
}

// ------------------------------------------------------------------------------------------------- sums over queries

// Sums over queries, rank by rank: in the order of the batch, whichever thread makes them.
void add_up(Batch& batch, const Executor& executor) {
  const SliceKernels& kernels = active_slices();
  const int64_t n = batch.items.count, num = batch.queries.count, all = batch.rank_words / kRankWords;
  // A page of each ranking at a time, or less where threads would have nothing to do.
  const int64_t parts = std::clamp(divide_up(2 * executor.threads, batch.num_lengths()), divide_up(all, 8), all);
  run_units(executor, parts * batch.num_lengths(), no_scratch, [&](int64_t unit, NoScratch&) {
    const int64_t m = unit / parts, part = unit % parts, end = all * (part + 1) / parts * kRankWords;
    const uint64_t* ranks[kMostAdded];
    for (int64_t j = 0, next; j < num; j = next) {
      for (next = j + 1; next < num && next < j + kMostAdded && batch.marks.row(next) == batch.marks.row(j);) ++next;
      if (batch.relevant[j] == 0) continue;
      const double weight = round_weight(1.0 / static_cast<double>(batch.relevant[j]));
      for (int64_t word = all * part / parts * kRankWords; word < end; word += kRankWords) {
        for (int64_t i = j; i < next; ++i) ranks[i - j] = batch.ranks_of(i, m) + word;
        kernels.add(ranks, next - j, weight, std::min(n - 64 * word, 64 * kRankWords),
                    batch.out.hits + m * n + 64 * word, batch.out.recall + m * n + 64 * word);
      }
    }
  });
}

}  // namespace

void evaluate(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
              const Relevance& relevance, int64_t cutoff, const Evaluation& out, const Executor& executor) {
  const int64_t n = items.count, total = queries.count, bytes = (lengths.back() + 7) / 8;
  const auto num_lengths = static_cast<int64_t>(lengths.size());
  std::fill(out.precision, out.precision + num_lengths * total, 0.0);
  std::fill(out.retrieved, out.retrieved + num_lengths * total, 0);
  std::fill(out.hits, out.hits + num_lengths * n, 0.0);
  std::fill(out.recall, out.recall + num_lengths * n, 0.0);
  if (n == 0) return label_histograms(queries, items, lengths, relevance, out.counts, executor);
  const std::vector<int64_t> order = label_order(relevance, total);
  std::vector<uint8_t> rows(total * bytes);
  for (int64_t j = 0; j < total; ++j)
    std::memcpy(rows.data() + j * bytes, queries.data + order[j] * queries.stride, bytes);
  LabelMarks marks(relevance, n);
  const int64_t sliced = count_sliced(lengths), rank_words = round_up(marks.words(), kRankWords);
  const SliceKernels& kernels = active_slices();
  std::unique_ptr<Planes> planes;
  if (sliced) planes = std::make_unique<Planes>(n, lengths[sliced - 1], kMostRecords / sliced);
  // Marks, rankings and starts of a batch stay in the last cache, or within 64 MB where 64 queries have more, or take
  // what 4 queries do.
  int64_t query_bytes = 8 * (marks.words() + num_lengths * rank_words);
  const bool single = planes == nullptr || n <= planes->most_items;
  for (int64_t m = single ? sliced : 0; m < num_lengths; ++m) query_bytes += 24 * (lengths[m] + 1);
  const int64_t most = std::clamp<int64_t>((int64_t{64} << 20) / query_bytes, 4, 64);
  const int64_t batch_size = std::max<int64_t>(most, (int64_t{8} << 20) / query_bytes);
  std::vector<double> discounts(out.gain_ends.empty() ? 0 : out.gain_ends.back());
  for (size_t r = 0; r < discounts.size(); ++r) discounts[r] = 1.0 / std::log2(static_cast<double>(r + 2));
  std::vector<int64_t> relevant;
  std::vector<bool> flipped;
  std::vector<uint64_t> ranks;
  for (int64_t first = 0; first < total; first += batch_size) {
    const int64_t num = std::min(batch_size, total - first);
    marks.load(order.data() + first, num, executor);
    relevant.resize(num);
    flipped.resize(num);
    for (int64_t j = 0; j < num; ++j) {
      if (j > 0 && marks.row(j) == marks.row(j - 1)) {
        relevant[j] = relevant[j - 1];
        flipped[j] = flipped[j - 1];
        continue;
      }
      kernels.ones(marks.of(j), &n, 1, &relevant[j]);
      flipped[j] = 2 * relevant[j] > n;
      if (flipped[j]) marks.flip(marks.row(j));
    }
    ranks.assign(num * num_lengths * rank_words, 0);
    Batch batch{{rows.data() + first * bytes, num, bytes}, items, lengths, std::min(cutoff, n), rank_words, total,
                out, discounts, order.data() + first, marks, relevant, flipped, ranks};
    if (sliced) rank_sliced(batch, *planes, sliced, executor);
    for (int64_t m = sliced; m < num_lengths; ++m) rank_long(batch, m, executor);
    add_up(batch, executor);
  }
}

}  // namespace nhl::hamming
