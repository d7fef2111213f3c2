// Drives the CPU engine through its raw-pointer contract against a brute force of its own, for a build with
// -fsanitize=address,undefined. Every buffer is a separate allocation of exactly the size it needs, so that a read or
// write one byte too far is caught. Returns 0 when all is well.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "hamming/hamming.h"
#include "sanitize.h"

namespace {

[[noreturn]] void fail(const char* what, int line) {
  std::fprintf(stderr, "line %d: %s\n", line, what);
  std::exit(1);
}
#define EXPECT(condition) \
  if (!(condition)) fail(#condition, __LINE__)

int64_t brute(const uint8_t* a, const uint8_t* b, int64_t bits) {
  int64_t d = 0;
  for (int64_t i = 0; i < bits; ++i) d += (a[i / 8] ^ b[i / 8]) >> (7 - i % 8) & 1;
  return d;
}

// Rows `stride` bytes apart in an allocation that ends with the last row's last byte.
struct Codes {
  Codes(int64_t count, int64_t width, int64_t stride, int64_t distinct)
      : bytes(count ? (count - 1) * stride + width : 0), rows{bytes.data(), count, stride} {
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random(0, 255));
    for (int64_t i = distinct; i < count; ++i)
      std::memcpy(bytes.data() + i * stride, bytes.data() + random(0, distinct - 1) * stride, width);
  }
  const uint8_t* row(int64_t i) const { return bytes.data() + i * rows.stride; }
  std::vector<uint8_t> bytes;
  nhl::hamming::Rows rows;
};

void search(const Codes& queries, const Codes& items, int64_t bits, const std::vector<int64_t>& ks,
            const nhl::Executor& executor) {
  const int64_t n = items.rows.count, num = queries.rows.count;
  std::vector<uint8_t> allow(n);
  for (auto& bit : allow) bit = random(0, 3) > 0;
  for (const uint8_t* mask : {static_cast<const uint8_t*>(nullptr), const_cast<const uint8_t*>(allow.data())}) {
    std::vector<std::vector<std::pair<int64_t, int64_t>>> every(num);
    for (int64_t q = 0; q < num; ++q) {
      for (int64_t i = 0; i < n; ++i)
        if (mask == nullptr || mask[i]) every[q].push_back({brute(queries.row(q), items.row(i), bits), i + 5});
      std::sort(every[q].begin(), every[q].end());
    }
    for (int64_t k : ks) {
      std::vector<int32_t> distances(num * k);
      std::vector<int64_t> ids(num * k);
      nhl::hamming::topk(queries.rows, items.rows, bits, k, 5, mask, distances.data(), ids.data(), executor);
      for (int64_t q = 0; q < num; ++q)
        for (int64_t r = 0; r < k; ++r) {
          const bool there = r < static_cast<int64_t>(every[q].size());
          EXPECT(distances[q * k + r] == (there ? every[q][r].first : -1));
          EXPECT(ids[q * k + r] == (there ? every[q][r].second : -1));
        }
    }
    const int64_t radius = random(0, bits);
    const nhl::hamming::RadiusSearch found(queries.rows, items.rows, bits, radius, 5, mask, executor);
    std::vector<int32_t> distances(found.offsets.back());
    std::vector<int64_t> ids(found.offsets.back());
    found.write(distances.data(), ids.data());
    for (int64_t q = 0; q < num; ++q) {
      int64_t at = found.offsets[q];
      for (const auto& [d, id] : every[q]) {
        if (d > radius) break;
        EXPECT(at < found.offsets[q + 1] && distances[at] == d && ids[at] == id);
        ++at;
      }
      EXPECT(at == found.offsets[q + 1]);
    }
  }
}

void among(const Codes& queries, const Codes& items, int64_t bits, const nhl::Executor& executor) {
  const int64_t n = items.rows.count, num = queries.rows.count, each = random(0, n), k = random(0, each + 2);
  std::vector<int64_t> candidates, order(n);
  std::iota(order.begin(), order.end(), 0);
  std::vector<std::vector<std::pair<int64_t, int64_t>>> every(num);
  for (int64_t q = 0; q < num; ++q) {
    for (int64_t i = 0; i < each; ++i) {
      std::swap(order[i], order[random(i, n - 1)]);
      const bool there = random(0, 4) > 0;
      candidates.push_back(there ? order[i] : -1);
      if (there) every[q].push_back({brute(queries.row(q), items.row(order[i]), bits), order[i]});
    }
    std::sort(every[q].begin(), every[q].end());
    every[q].resize(std::max<int64_t>(k, static_cast<int64_t>(every[q].size())), {-1, -1});
  }
  std::vector<int32_t> distances(num * k);
  std::vector<int64_t> ids(num * k);
  nhl::hamming::topk_among(queries.rows, items.rows, {candidates.data(), num, each}, bits, k, distances.data(),
                           ids.data(), executor);
  for (int64_t q = 0; q < num; ++q)
    for (int64_t r = 0; r < k; ++r)
      EXPECT(distances[q * k + r] == every[q][r].first && ids[q * k + r] == every[q][r].second);
}

void evaluation(const Codes& queries, const Codes& items, const std::vector<int64_t>& lengths,
                const nhl::Executor& executor) {
  const int64_t n = items.rows.count, num = queries.rows.count, m = static_cast<int64_t>(lengths.size());
  if (n == 0 || num == 0) return;
  // Ids, or sets of one word or two; few classes, so that a query may have most of the items.
  const int64_t set_words = random(0, 2), classes = random(1, 4);
  std::vector<uint16_t> query_ids(num), item_ids(n);
  for (auto& id : query_ids) id = static_cast<uint16_t>(random(0, classes - 1));
  for (auto& id : item_ids) id = static_cast<uint16_t>(random(0, classes - 1));
  std::vector<uint64_t> query_sets(num * set_words), item_sets(n * set_words);
  for (auto* sets : {&query_sets, &item_sets})
    for (auto& set : *sets) set = random(0, 3) ? uint64_t{1} << random(0, classes) * 15 : 0;
  const auto relevant = [&](int64_t q, int64_t i) {
    bool shared = set_words == 0 && query_ids[q] == item_ids[i];
    for (int64_t w = 0; w < set_words; ++w) shared |= (query_sets[q * set_words + w] & item_sets[i * set_words + w]) != 0;
    return shared;
  };
  int64_t bins = 0;
  for (int64_t b : lengths) bins += b + 1;
  std::vector<int64_t> counts(2 * bins * num), again(2 * bins * num), retrieved(m * num);
  std::vector<double> precision(m * num), hits(m * n), recall(m * n);
  std::vector<int32_t> distances(m * num * n);
  const int64_t cutoff = random(1, n + n / 4);
  std::vector<int64_t> ends{(n + 1) / 2};
  if (n > 1) ends.push_back(n);
  const auto num_ends = static_cast<int64_t>(ends.size());
  std::vector<double> gains(m * num * num_ends);
  const nhl::hamming::Relevance relevance =
      set_words ? nhl::hamming::Relevance{query_sets.data(), item_sets.data(), 8, set_words}
                : nhl::hamming::Relevance{query_ids.data(), item_ids.data(), 2, 0};
  nhl::hamming::evaluate(queries.rows, items.rows, lengths, relevance, cutoff,
                {counts.data(), precision.data(), retrieved.data(), hits.data(), recall.data(), gains.data(), ends},
                executor);
  nhl::hamming::label_histograms(queries.rows, items.rows, lengths, relevance, again.data(), executor);
  nhl::hamming::distances(queries.rows, items.rows, lengths, distances.data(), executor);
  EXPECT(counts == again);
  std::vector<double> expected_hits(m * n, 0.0);
  const int64_t* table = counts.data();
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t q = 0; q < num; ++q) {
      std::vector<int64_t> expected(2 * (lengths[j] + 1), 0), order(n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t d = brute(queries.row(q), items.row(i), lengths[j]);
        EXPECT(distances[(j * num + q) * n + i] == d);
        ++expected[2 * d + relevant(q, i)];
      }
      EXPECT(std::equal(expected.begin(), expected.end(), table + q * 2 * (lengths[j] + 1)));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return distances[(j * num + q) * n + a] < distances[(j * num + q) * n + b];
      });
      double sum = 0;
      int64_t seen = 0, inside = 0;
      std::vector<double> gain(num_ends);
      for (int64_t r = 0; r < n; ++r) {
        if (!relevant(q, order[r])) continue;
        ++seen;
        expected_hits[j * n + r] += 1;
        if (r < cutoff) sum += static_cast<double>(seen) / static_cast<double>(r + 1), inside = seen;
        for (int64_t e = 0; e < num_ends; ++e)
          if (r < ends[e]) gain[e] += 1 / std::log2(static_cast<double>(r + 2));
      }
      for (int64_t e = 0; e < num_ends; ++e)
        EXPECT(std::abs(gains[(j * num + q) * num_ends + e] - gain[e]) <= 1e-12 * (1 + gain[e]));
      EXPECT(retrieved[j * num + q] == inside);
      EXPECT(std::abs(precision[j * num + q] - sum) <= 1e-12 * (1 + sum));
    }
    table += num * 2 * (lengths[j] + 1);
  }
  EXPECT(hits == expected_hits);
}

void packing(const nhl::Executor& executor) {
  const int64_t rows = random(0, 5), bits = random(1, 70), bytes = (bits + 7) / 8;
  std::vector<float> x(rows * bits);
  for (auto& value : x) value = static_cast<float>(random(-1, 1));
  std::vector<uint8_t> out(rows * bytes);
  nhl::hamming::pack(x.data(), nhl::hamming::Float::f32, rows, bits, bits, 1, out.data(), executor);
  std::vector<uint16_t> halves(rows * bits);
  for (size_t i = 0; i < x.size(); ++i) halves[i] = x[i] > 0 ? 0x3c00 : x[i] < 0 ? 0xbc00 : 0;
  std::vector<uint8_t> from_halves(rows * bytes);
  nhl::hamming::pack(halves.data(), nhl::hamming::Float::f16, rows, bits, bits, 1, from_halves.data(), executor);
  EXPECT(out == from_halves);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < 8 * bytes; ++i)
      EXPECT((out[r * bytes + i / 8] >> (7 - i % 8) & 1) == (i < bits && x[r * bits + i] > 0));
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 100;
  at_every_level(rounds, [&] {
    for (int64_t round = 0; round < rounds / 40; ++round) {
      // Large enough for a guess of the limit, with everything near a query where the guess looks, or nothing.
      const nhl::Executor executor{random(1, 3), in_threads};
      const int64_t n = random(70000, 75000), step = n / 64, num = random(1, 5), stride = random(2, 4);
      Codes queries(num, 2, 2, num), items(n, 2, stride, n);
      for (int64_t i = 0; round % 2 == 0 && i < 4096; ++i)
        std::memcpy(items.bytes.data() + (i / 64 * step + i % 64) * stride, queries.row(0), 2);
      search(queries, items, random(9, 16), {256, 4200}, executor);
    }
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t threads = random(1, 3);
      const nhl::Executor executor{threads, in_threads};
      const int64_t bits = round % 10 == 0 ? random(1, 2200) : random(1, 140), width = (bits + 7) / 8;
      const int64_t n = round % 25 == 0 ? random(3000, 20000) : random(0, 400);
      const int64_t num = random(0, 1) ? random(0, 9) : random(1, 3);
      int64_t stride = width + (random(0, 1) ? random(0, 9) : 0);
      // The strides that few queries read in place.
      for (int64_t wide : {32, 16, 8, 4})
        if (num <= 3 && wide >= width && random(0, 1)) stride = wide;
      const Codes queries(num, width, width + random(0, 3), std::max<int64_t>(num, 1));
      const Codes items(n, width, stride, random(0, 1) ? std::max<int64_t>(n, 1) : random(1, 8));
      search(queries, items, bits, {1, n / 3 + 1, n}, executor);
      if (n > 0) among(queries, items, bits, executor);
      std::vector<int64_t> lengths{bits};
      if (bits > 2) lengths.insert(lengths.begin(), random(1, bits - 1));
      if (n < 3000) evaluation(queries, items, lengths, executor);
      packing(executor);
    }
  });
  return 0;
}
