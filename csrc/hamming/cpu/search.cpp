// Top-k and radius search: scan blocks with a distance limit per query, keep what passes, sort it by counting.
//
// Distances are small integers, so there is no heap: a query counts its candidates by distance, and its limit
// is the smallest one with k candidates below or at it. Items come in ascending order, so an item at the limit
// itself comes too late, and the scan passes d < limit only.
#include "scan.h"

#include <cmath>

namespace nhl::hamming {
namespace {

constexpr int64_t kSample = 4096;    // items, in pieces of kBlockAlign
constexpr int64_t kGuessFrom = 256;  // neighbours; fewer find their limit soon enough

// limits[q] for queries [first, last): from a sample of the items, a limit with most likely k items below it. That
// spares the scan most of the candidates of its first items; a query with fewer than k is searched again.
void guess_limits(const Problem& p, int64_t first, int64_t last, int64_t k, uint32_t* limits,
                  const Executor& executor) {
  constexpr int64_t kTile = 64;
  const double expected = static_cast<double>(kSample) * static_cast<double>(k) / static_cast<double>(p.items.count);
  const double wanted = expected + 3 * std::sqrt(expected) + 3;
  const int64_t size = block_items(p.plan.words), step = p.items.count / (kSample / kBlockAlign);
  run_units(
      executor, divide_up(last - first, kTile), [&] { return std::make_unique<Block>(size, p.plan.words); },
      [&](int64_t unit, Block& block) {
        const int64_t q0 = first + unit * kTile, q1 = std::min(last, q0 + kTile), bins = p.bits + 1;
        std::vector<uint32_t> counts((q1 - q0) * bins);
        std::vector<uint16_t> distances(size);
        std::vector<uint64_t> valid(size / 64);
        for (int64_t at = 0; at < kSample; at += size) {
          for (int64_t i = 0; i < size; i += kBlockAlign) {
            const int64_t begin = (at + i) / kBlockAlign * step;
            p.kernels.transpose(p.items.data + begin * p.items.stride, p.items.stride, kBlockAlign, p.plan.bytes,
                                p.plan.tail, block.data + i, block.pitch);
            valid_bits(p.kernels, p.allow, begin, kBlockAlign, &valid[i / 64]);
          }
          for (int64_t q = q0; q < q1; ++q) {
            p.kernels.distances(block.data, block.pitch, size, p.query_words.data() + q * p.words, p.plan.words,
                                p.plan.steps.data(), 1, distances.data(), size);
            uint32_t* const count = counts.data() + (q - q0) * bins;
            for (int64_t i = 0; i < size; ++i) count[distances[i]] += valid[i / 64] >> (i % 64) & 1;
          }
        }
        for (int64_t q = q0; q < q1; ++q) {
          const uint32_t* const count = counts.data() + (q - q0) * bins;
          int64_t below = 0;
          uint32_t limit = 0;
          while (limit < bins && static_cast<double>(below) < wanted) below += count[limit++];
          limits[q] = limit;
        }
      });
}

void adaptive_topk(const Problem& p, int64_t k, int64_t base, int32_t* out_distances, int64_t* out_ids,
                   const Executor& executor) {
  // Candidates take about 12 bytes a neighbour; a batch of queries is bounded by what they take.
  const int64_t batch = std::clamp<int64_t>((int64_t{256} << 20) / (24 * k + 8 * p.bits), kGroup, 4096);
  const int64_t tile = std::clamp<int64_t>((int64_t{4} << 20) / (24 * k), 8, 64);
  const bool guess = k >= kGuessFrom && p.items.count >= 16 * kSample;
  std::vector<uint32_t> limits(p.queries.count, static_cast<uint32_t>(p.bits + 1));
  std::vector<uint8_t> missed(p.queries.count);
  const auto search = [&](int64_t first, int64_t last) {
    const Split split(last - first, p.items.count, tile, executor.threads, std::max<int64_t>(p.least_run(), 16 * k));
    SharedLimits shared(p.queries.count);
    for (auto& limit : shared) limit.store(kNoLimit, std::memory_order_relaxed);
    const auto found = collect(p, first, last, split, k, limits.data(), nullptr, &shared, executor);
    run_units(
        executor, last - first, no_scratch,
        [&](int64_t i, NoScratch&) {
          const Candidates* const pieces = found.data() + i * split.runs;
          const int64_t q = first + i;
          int64_t total = 0;
          for (int64_t c = 0; c < split.runs; ++c) total += pieces[c].size();
          missed[q] = total < k && limits[q] <= p.bits;
          if (missed[q]) return;
          emit(pieces, split.runs, split.run, p.bits, k, base, out_distances + q * k, out_ids + q * k);
        });
  };
  for (int64_t first = 0, last; first < p.queries.count; first = last) {
    last = std::min(p.queries.count, first + batch);
    if (guess) guess_limits(p, first, last, k, limits.data(), executor);
    search(first, last);
    for (int64_t q = first, end; guess && q < last; q = end) {
      for (end = q + 1; end < last && missed[end] == missed[q]; ++end) {
      }
      if (!missed[q]) continue;
      std::fill(limits.begin() + q, limits.begin() + end, static_cast<uint32_t>(p.bits + 1));
      search(q, end);
    }
  }
}

// For a k that is a sizeable part of the database: count first, then collect below a limit that is known.
void counted_topk(const Problem& p, int64_t k, int64_t base, int32_t* out_distances, int64_t* out_ids,
                  const Executor& executor) {
  const int64_t batch = std::clamp<int64_t>((int64_t{256} << 20) / (12 * p.items.count), kGroup, 256);
  std::vector<uint64_t> allowed(divide_up(p.items.count, 64) + 1);
  valid_bits(p.kernels, p.allow, 0, p.items.count, allowed.data());
  for (int64_t first = 0; first < p.queries.count; first += batch) {
    const int64_t last = std::min(p.queries.count, first + batch), num = last - first;
    std::vector<int64_t> counts(num * (p.bits + 1) * 2);
    const Rows some{p.queries.data + first * p.queries.stride, num, p.queries.stride};
    histograms(some, p.items, {p.bits}, {allowed.data(), 0, nullptr}, {counts.data(), 0, num}, executor);
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
  const Split split(queries.count, items.count, 64, executor.threads, problem.least_run());
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

}  // namespace nhl::hamming
