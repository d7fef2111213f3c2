#include "marks.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels.h"
#include "slices.h"

namespace nhl::hamming {
namespace {

int64_t label_bytes(const Relevance& r) { return r.words > 0 ? 8 * r.words : r.id_bytes; }

const uint8_t* label_of(const Relevance& r, int64_t query) {
  return static_cast<const uint8_t*>(r.queries) + query * label_bytes(r);
}

template <class T>
void mark_equal(const Relevance& relevance, int64_t query, int64_t count, uint64_t* out) {
  const T wanted = static_cast<const T*>(relevance.queries)[query];
  const T* const items = static_cast<const T*>(relevance.items);
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

void mark_sets(const Relevance& relevance, int64_t query, int64_t items, uint64_t* out) {
  active_slices().meet(static_cast<const uint64_t*>(relevance.items), relevance.words, items,
                       static_cast<const uint64_t*>(relevance.queries) + query * relevance.words, out);
}

}  // namespace

std::vector<int64_t> label_order(const Relevance& relevance, int64_t queries) {
  std::vector<int64_t> order(queries);
  std::iota(order.begin(), order.end(), 0);
  // No std::stable_sort: in libstdc++ it calls what C++17 deprecates, of which clang warns.
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const int unlike = std::memcmp(label_of(relevance, a), label_of(relevance, b), label_bytes(relevance));
    return unlike != 0 ? unlike < 0 : a < b;
  });
  return order;
}

void LabelMarks::load(const int64_t* queries, int64_t count, const Executor& executor) {
  const auto label = [&](int64_t i) { return label_of(relevance_, queries[i]); };
  const auto compare = [&](int64_t a, int64_t b) { return std::memcmp(label(a), label(b), label_bytes(relevance_)); };
  std::vector<int64_t> order(count), firsts;
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const int unlike = compare(a, b);
    return unlike != 0 ? unlike < 0 : a < b;
  });
  row_.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || compare(order[i - 1], order[i]) != 0) firsts.push_back(queries[order[i]]);
    row_[order[i]] = static_cast<int64_t>(firsts.size()) - 1;
  }
  rows_ = static_cast<int64_t>(firsts.size());
  const auto mark = relevance_.words > 0      ? mark_sets
                    : relevance_.id_bytes == 1 ? mark_equal<uint8_t>
                    : relevance_.id_bytes == 2 ? mark_equal<uint16_t>
                    : relevance_.id_bytes == 4 ? mark_equal<uint32_t>
                                               : mark_equal<uint64_t>;
  bits_.resize(rows_ * words());
  run_units(executor, rows_, no_scratch,
            [&](int64_t i, NoScratch&) { mark(relevance_, firsts[i], items_, bits_.data() + i * words()); });
}

void LabelMarks::flip(int64_t row) {
  uint64_t* const bits = bits_.data() + row * words();
  for (int64_t w = 0; w < words(); ++w) bits[w] = ~bits[w];
  if (items_ % 64) bits[words() - 1] &= ~(~0ull << items_ % 64);
}

}  // namespace nhl::hamming
