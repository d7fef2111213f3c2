// Rank sums by counting: no sort, and no float is ever compared.
//
// The rank of an item is the number of items at smaller distances plus its turn among those at its own. Items
// come in row order, so a counter a distance gives every item its turn; once all are counted, the turns of the
// relevant ones are enough for all ranks.
#include "plan.h"

namespace nhl::hamming {
namespace {

// A chunk of items is counted as four streams of consecutive items, each with counters of its own, in step: so
// that a run of equal distances does not wait for one counter's store.
constexpr int64_t kStreams = 4;
constexpr int64_t kStream = int64_t{1} << 15;
constexpr int64_t kChunk = kStreams * kStream;
constexpr int64_t kPitch = kStream + kBlockAlign;  // not a power of two: streams use different cache sets
// Counters of two streams must not share the low 12 bits of their addresses: a load would wait for the wrong store.
constexpr int64_t kBins = kMaxBits + 256;
constexpr uint32_t kTurnBits = 16, kTurnMask = (1u << kTurnBits) - 1;  // distance << kTurnBits | turn
static_assert(kStream <= kTurnMask && kMaxBits < (int64_t{1} << (32 - kTurnBits)));

// Sums by rank over one group of queries.
struct Density {
  std::vector<double> recall;
  std::vector<uint32_t> hits;
};

// The next item of one distance: items and relevant items ranked before it.
struct Cursor {
  int64_t items, relevant;
};

struct Scratch {
  std::vector<uint16_t> distances = std::vector<uint16_t>(kStreams * kPitch);
  std::vector<uint32_t> turns = std::vector<uint32_t>(kStreams * kPitch);
  std::vector<uint32_t> counters = std::vector<uint32_t>(kStreams * kBins);
  std::vector<uint32_t> records = std::vector<uint32_t>(kChunk);  // turns of the relevant items
  std::vector<int64_t> start = std::vector<int64_t>(kStreams * kBins);
  int64_t found[kStreams + 1];  // records of stream t are found[t] to found[t + 1]
};

// The parameters of one chunk of items, for one code length.
struct Chunk {
  Chunk(const Block& b, int64_t n, const Plan& p, int64_t bits_, const Kernels& k)
      : block(b), count(n), part(round_up(divide_up(n, kStreams), kBlockAlign)), plan(p), bits(bits_),
        kernels(k) {}
  int64_t in_stream(int64_t t) const { return std::clamp<int64_t>(count - t * part, 0, part); }

  const Block& block;
  int64_t count, part;  // items, and items a stream (the last ones may have fewer)
  const Plan& plan;
  int64_t bits;
  const Kernels& kernels;
};

// Distances of one query, then the turn of every item and the number of items by distance and stream.
void count_turns(Scratch& s, const Chunk& chunk, const uint32_t* query) {
  uint16_t* const distances = s.distances.data();
  uint32_t* const turns = s.turns.data();
  uint32_t* const counters = s.counters.data();
  for (int64_t t = 0; t < kStreams; ++t) {
    const int64_t count = chunk.in_stream(t);
    chunk.kernels.distances(chunk.block.data + t * chunk.part, chunk.block.pitch, round_up(count, kBlockAlign), query,
                            chunk.plan.words, chunk.plan.steps.data(), 1, distances + t * kPitch, kPitch);
    std::fill(distances + t * kPitch + count, distances + t * kPitch + chunk.part, 0);
    for (int64_t d = 0; d <= chunk.bits; ++d) counters[t * kBins + d] = static_cast<uint32_t>(d) << kTurnBits;
  }
  for (int64_t i = 0; i < chunk.part; ++i)
    for (int64_t t = 0; t < kStreams; ++t)
      turns[t * kPitch + i] = counters[t * kBins + distances[t * kPitch + i]]++;
  for (int64_t t = 0; t < kStreams; ++t) {
    for (int64_t d = 0; d <= chunk.bits; ++d) counters[t * kBins + d] &= kTurnMask;
    // The padding of a stream, at its end, was counted at distance 0.
    counters[t * kBins] -= static_cast<uint32_t>(chunk.part - chunk.in_stream(t));
  }
}

// Keeps the turns of the relevant items.
void keep_relevant(Scratch& s, const Chunk& chunk, const uint64_t* marks) {
  uint32_t* record = s.records.data();
  for (int64_t t = 0; t < kStreams; ++t) {
    s.found[t] = record - s.records.data();
    const uint32_t* turns = s.turns.data() + t * kPitch;
    const uint64_t* words = marks + t * chunk.part / 64;
    for (int64_t w = 0; w < divide_up(chunk.in_stream(t), 64); ++w)
      for (uint64_t bits = words[w]; bits; bits &= bits - 1) *record++ = turns[64 * w + __builtin_ctzll(bits)];
  }
  s.found[kStreams] = record - s.records.data();
}

// counts[d] = (irrelevant, relevant) of a chunk that is the whole database.
void chunk_counts(const Scratch& s, int64_t bits, int64_t* counts) {
  for (int64_t d = 0; d <= bits; ++d) counts[2 * d + 1] = 0;
  for (int64_t i = 0; i < s.found[kStreams]; ++i) ++counts[2 * (s.records[i] >> kTurnBits) + 1];
  for (int64_t d = 0; d <= bits; ++d) {
    counts[2 * d] = -counts[2 * d + 1];
    for (int64_t t = 0; t < kStreams; ++t) counts[2 * d] += s.counters[t * kBins + d];
  }
}

// counts[d] of a whole ranking -> cursors at its start; returns the number of relevant items.
int64_t start_cursors(const int64_t* counts, int64_t bits, Cursor* cursors) {
  Cursor next{0, 0};
  for (int64_t d = 0; d <= bits; ++d) {
    cursors[d] = next;
    next.items += counts[2 * d] + counts[2 * d + 1];
    next.relevant += counts[2 * d + 1];
  }
  return next.relevant;
}

// Ranks the chunk's relevant items, moving the cursors on.
void rank_chunk(Scratch& s, int64_t bits, Cursor* cursors, int64_t cutoff, double weight, double& precision,
                int64_t& retrieved, Density& density) {
  double sum = 0;
  int64_t inside = 0;
  double* const recall = density.recall.data();
  uint32_t* const hits = density.hits.data();
  for (int64_t t = 0; t < kStreams; ++t) {
    int64_t* const start = s.start.data();
    for (int64_t d = 0; d <= bits; ++d) {
      start[d] = cursors[d].items;
      cursors[d].items += s.counters[t * kBins + d];
    }
    for (int64_t i = s.found[t]; i < s.found[t + 1]; ++i) {
      const uint32_t d = s.records[i] >> kTurnBits;
      const int64_t before = start[d] + (s.records[i] & kTurnMask);
      const double precision_here = static_cast<double>(++cursors[d].relevant) / static_cast<double>(before + 1);
      sum += before < cutoff ? precision_here : 0.0;
      inside += before < cutoff;
      recall[before] += weight;
      ++hits[before];
    }
  }
  precision += sum;
  retrieved += inside;
}

// One batch of queries at one length. Rows of every array are those of the batch.
struct Task {
  const Rows& queries;
  const Rows& items;
  int64_t bits, cutoff;
  const uint64_t* marks;
  int64_t* counts;
  double* precision;
  int64_t* retrieved;
  double* hits;
  double* recall;
};

void evaluate_length(const Task& task, int64_t groups, const Executor& executor) {
  const int64_t n = task.items.count, num = task.queries.count, bins = task.bits + 1, mark_words = divide_up(n, 64);
  const Kernels& kernels = active_kernels();
  const Plan plan({task.bits});
  const std::vector<uint32_t> query_words = plan.load_queries(task.queries, plan.words);
  std::vector<Cursor> cursors(num * bins);
  std::vector<double> weights(num);
  std::vector<Density> density(groups);
  Block block(std::min(n, kChunk), plan.words);
  const bool single = n <= kChunk;
  if (!single) histograms(task.queries, task.items, {task.bits}, {task.marks, mark_words}, {task.counts, 0, num}, executor);
  for (int64_t at = 0; at < n; at += kChunk) {
    const Chunk chunk(block, std::min(kChunk, n - at), plan, task.bits, kernels);
    constexpr int64_t kPart = 65536;
    run_units(executor, divide_up(chunk.count, kPart), no_scratch, [&](int64_t i, NoScratch&) {
      kernels.transpose(task.items.data + (at + i * kPart) * task.items.stride, task.items.stride,
                        std::min(kPart, chunk.count - i * kPart), plan.bytes, plan.tail, block.data + i * kPart,
                        block.pitch);
    });
    run_units(
        executor, groups, [] { return std::make_unique<Scratch>(); },
        [&](int64_t g, Scratch& scratch) {
          if (at == 0) density[g] = {std::vector<double>(n), std::vector<uint32_t>(n)};
          for (int64_t q = num * g / groups; q < num * (g + 1) / groups; ++q) {
            executor.check();
            count_turns(scratch, chunk, query_words.data() + q * plan.words);
            keep_relevant(scratch, chunk, task.marks + q * mark_words + at / 64);
            if (single) chunk_counts(scratch, task.bits, task.counts + q * bins * 2);
            Cursor* const mine = cursors.data() + q * bins;
            if (at == 0) {
              const int64_t relevant = start_cursors(task.counts + q * bins * 2, task.bits, mine);
              weights[q] = relevant ? 1.0 / static_cast<double>(relevant) : 0.0;
            }
            rank_chunk(scratch, task.bits, mine, task.cutoff, weights[q], task.precision[q], task.retrieved[q],
                       density[g]);
          }
        });
  }
  constexpr int64_t kRanks = 16384;
  // Groups are added in their order, whichever thread made them.
  run_units(executor, divide_up(n, kRanks), no_scratch, [&](int64_t i, NoScratch&) {
    for (const Density& part : density)
      for (int64_t r = kRanks * i; r < std::min(n, kRanks * (i + 1)); ++r) {
        task.hits[r] += part.hits[r];
        task.recall[r] += part.recall[r];
      }
  });
}

}  // namespace

void evaluate(const Rows& queries, const Rows& items, const std::vector<int64_t>& lengths,
              const Relevance& relevance, int64_t cutoff, const Evaluation& out, const Executor& executor) {
  const int64_t n = items.count, total = queries.count, mark_words = divide_up(n, 64);
  const auto num_lengths = static_cast<int64_t>(lengths.size());
  std::fill(out.precision, out.precision + num_lengths * total, 0.0);
  std::fill(out.retrieved, out.retrieved + num_lengths * total, 0);
  std::fill(out.hits, out.hits + num_lengths * n, 0.0);
  std::fill(out.recall, out.recall + num_lengths * n, 0.0);
  if (n == 0) return label_histograms(queries, items, lengths, relevance, out.counts, executor);
  // Marks and cursors stay within 256 MB. A group's sums take 12 bytes a rank: at most 96 MB, but 4 groups.
  const int64_t query_bytes = 8 * mark_words + 16 * (lengths.back() + 1);
  const int64_t batch = std::clamp<int64_t>((int64_t{256} << 20) / query_bytes, 64, std::max<int64_t>(64, total));
  const int64_t most_groups = std::clamp<int64_t>((int64_t{96} << 20) / (12 * n), 4, 16);
  std::vector<uint64_t> marks;
  for (int64_t first = 0; first < total; first += batch) {
    const int64_t num = std::min(batch, total - first);
    const Rows some{queries.data + first * queries.stride, num, queries.stride};
    marks.resize(num * mark_words);
    mark_relevant(relevance, first, num, n, marks.data(), executor);
    int64_t* counts = out.counts;
    for (int64_t m = 0; m < num_lengths; ++m) {
      evaluate_length({some, items, lengths[m], cutoff, marks.data(), counts + first * (lengths[m] + 1) * 2,
                       out.precision + m * total + first, out.retrieved + m * total + first, out.hits + m * n,
                       out.recall + m * n},
                      std::min(most_groups, num), executor);
      counts += total * (lengths[m] + 1) * 2;
    }
  }
}

}  // namespace nhl::hamming
