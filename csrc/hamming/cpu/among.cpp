// The nearest of given candidates: what a search leaves to a longer prefix.
#include <algorithm>
#include <utility>

#include "kernels.h"

namespace nhl::hamming {

namespace {

// Candidates of a query that are ranked between two looks at the executor.
constexpr int64_t kBatch = 1 << 16;

struct Ranked {
  std::vector<uint32_t> distances;
  std::vector<std::pair<uint32_t, int64_t>> found;
};

}  // namespace

void topk_among(const Rows& queries, const Rows& items, const Chosen& candidates, int64_t bits, int64_t k,
                int32_t* out_distances, int64_t* out_ids, const Executor& executor) {
  const Kernels& kernels = active_kernels();
  const int64_t bytes = (bits + 7) / 8, each = candidates.each;
  const auto tail = static_cast<uint8_t>(0xff00 >> (bits - 8 * (bytes - 1)));
  run_units(
      executor, queries.count, [] { return std::make_unique<Ranked>(); },
      [&](int64_t q, Ranked& scratch) {
        auto& [distances, found] = scratch;
        const int64_t* const ids = candidates.ids + q * each;
        found.clear();
        for (int64_t begin = 0; begin < each; begin += kBatch) {
          executor.check();
          const int64_t count = std::min(kBatch, each - begin);
          distances.resize(count);
          kernels.distances_of(items.data, items.stride, ids + begin, count, queries.data + q * queries.stride, bytes,
                               tail, distances.data());
          for (int64_t i = 0; i < count; ++i)
            if (distances[i] != kFar) found.emplace_back(distances[i], ids[begin + i]);
        }
        const int64_t kept = std::min(k, static_cast<int64_t>(found.size()));
        if (kept < static_cast<int64_t>(found.size()))
          std::nth_element(found.begin(), found.begin() + kept, found.end());
        std::sort(found.begin(), found.begin() + kept);
        for (int64_t i = 0; i < k; ++i) {
          out_distances[q * k + i] = i < kept ? static_cast<int32_t>(found[i].first) : -1;
          out_ids[q * k + i] = i < kept ? found[i].second : -1;
        }
      });
}

}  // namespace nhl::hamming
