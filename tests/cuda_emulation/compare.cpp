// The CUDA engine, emulated, against the CPU engine on the same inputs; scores against sums in double. Returns 0 when all
// agree.
#include <cmath>
#include <list>
#include <numeric>
#include <random>

#include "hamming/cuda/levels.cuh"
#include "hamming/cuda/plan.h"
#include "hamming/hamming.h"

namespace {

std::mt19937_64 generator(2);

int64_t random(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

[[noreturn]] void fail(const char* what, int line) {
  std::fprintf(stderr, "line %d: %s\n", line, what);
  std::exit(1);
}
#define EXPECT(condition) \
  if (!(condition)) fail(#condition, __LINE__)

const nhl::Executor executor{1, nullptr};
using nhl::cuda::Scan;
constexpr Scan units[] = {Scan::popc, Scan::mma, Scan::imma};

int64_t power_of_two(int64_t least) {
  int64_t size = 1;
  while (size < least) size *= 2;
  return size;
}

std::list<std::vector<uint64_t>> scratch;

nhl::cuda::Context context(nhl::cuda::Scan scan = nhl::cuda::Scan::popc) {
  scratch.clear();
  const auto memory = [](uint64_t word) {
    return [word](int64_t bytes) -> void* {
      scratch.emplace_back(bytes / 8 + 1, word);
      return scratch.back().data();
    };
  };
  // Few multiprocessors, so that small databases are cut into several chunks.
  return {nullptr, 1, scan, false, memory(0xa5a5a5a5a5a5a5a5), memory(0)};
}

struct Codes {
  Codes(int64_t count, int64_t width, int64_t distinct, int64_t offset, int64_t gap)
      : stride(width + gap), storage((offset + count * stride) / 16 + 2) {
    data = reinterpret_cast<uint8_t*>(storage.data()) + offset;
    for (int64_t i = 0; i < count * stride; ++i) data[i] = static_cast<uint8_t>(random(0, 255));
    for (int64_t i = distinct; i < count; ++i) std::memcpy(data + i * stride, data + random(0, distinct - 1) * stride, width);
    host = {data, count, stride};
    device = {data, count, stride};
  }
  struct alignas(16) Sixteen {
    uint8_t bytes[16];
  };
  int64_t stride;
  std::vector<Sixteen> storage;
  uint8_t* data;
  nhl::hamming::Rows host;
  nhl::cuda::Rows device;
};

// Top-k of both forms, by both units, with samples from the whole to so few items that limits are often wrong.
void topk(const Codes& queries, const Codes& items, int64_t bits, int64_t k, const uint8_t* mask,
          const std::vector<int64_t>& samples) {
  const int64_t num = queries.host.count;
  std::vector<int32_t> expected(num * k), distances(num * k);
  std::vector<int64_t> expected_ids(num * k), ids(num * k), keys(num * k);
  nhl::hamming::topk(queries.host, items.host, bits, k, 9, mask, expected.data(), expected_ids.data(), executor);
  for (Scan unit : units) {
    std::fill(keys.begin(), keys.end(), 0);
    nhl::cuda::nearest_keys(queries.device, items.device, bits, k, mask, keys.data(), context(unit));
    for (int64_t q = 0; q < num; ++q) std::sort(keys.begin() + q * k, keys.begin() + (q + 1) * k);
    nhl::cuda::split_keys(keys.data(), num * k, nhl::cuda::kIdBits, bits + 1, 9, distances.data(), ids.data(), context());
    EXPECT(distances == expected);
    EXPECT(ids == expected_ids);
    for (int64_t sample : samples) {
      nhl::cuda::Context own = context(unit);
      if (4 * k > own.candidates) continue;
      own.sample = sample;
      if (random(0, 1)) own.candidates = std::max<int64_t>(1024, power_of_two(4 * k));
      std::fill(distances.begin(), distances.end(), 7);
      std::fill(ids.begin(), ids.end(), 7);
      nhl::cuda::nearest(queries.device, items.device, bits, k, mask, 9, distances.data(), ids.data(), own);
      EXPECT(distances == expected);
      EXPECT(ids == expected_ids);
    }
  }
}

// A sample's limits do where items at one distance lie evenly by row, or are few: results don't show where they don't.
void limits(int64_t bits) {
  const int64_t num = 19, n = random(3000, 5000), k = 20, width = (bits + 7) / 8;
  const bool ties = random(0, 2) > 0 || bits < 24;
  const Codes queries(num, width, num, 0, 0), items(n, width, ties ? 3 : n, 0, 0);
  std::vector<uint8_t> allow(n);
  const int64_t kind = random(0, 2);
  for (int64_t least : {int64_t{100}, int64_t{400}, int64_t{16384}}) {
    nhl::cuda::Context own = context(Scan::mma);
    own.sample = least;
    const nhl::cuda::Plan plan = nhl::cuda::plan_for(n, k, own);
    // With a period that the sample's stride has, too: never the first of a stride.
    const int64_t period = plan.stride % 2 ? std::max<int64_t>(plan.stride, 2) : 2;
    for (int64_t i = 0; i < n; ++i)
      allow[i] = kind == 1 ? i % period != 0 : ties ? random(0, 3) > 0 : i >= n / 2;
    const uint8_t* mask = kind ? allow.data() : nullptr;
    std::vector<int64_t> found_below(num);
    std::vector<unsigned long long> counts(num);
    nhl::cuda::sample_limits(queries.device, items.device, bits, mask, {plan.stride, plan.wanted, plan.most, found_below.data()}, own);
    nhl::cuda::scan(queries.device, items.device, bits,
                    {found_below.data(), 0, mask, counts.data(), nullptr, nullptr, plan.room, 0, nhl::cuda::kIdBits}, own);
    for (auto count : counts) EXPECT(static_cast<int64_t>(count) >= k && static_cast<int64_t>(count) <= plan.room);
  }
}

// A plan keeps its distance from what has k, and from what has no room: 4 deviations of what a sample shows of them.
void plans() {
  for (int64_t n : {int64_t{20000}, int64_t{1} << 20, int64_t{2000000}, int64_t{10000000}, int64_t{1} << 40})
    for (int64_t k : {1, 10, 100, 500, 1000, 1500, 2048}) {
      const nhl::cuda::Plan plan = nhl::cuda::plan_for(n, k, context());
      EXPECT(plan.stride >= 1 && plan.wanted <= plan.most && plan.room <= context().candidates);
      if (plan.stride == 1) continue;
      const auto root = [](int64_t number) { return std::sqrt(static_cast<double>(number)); };
      EXPECT(root(plan.wanted) - root(k) / root(plan.stride) > 2);
      EXPECT(root(plan.room) / root(plan.stride) - root(plan.most) > 2);
    }
}

// Databases that mislead a sample: near items where it looks and nowhere else, or everywhere but there; and more items
// at one distance than there is room for, evenly or all at the end.
void misled(int64_t bits) {
  const int64_t num = 3, n = random(3000, 4000), sample = 300, stride = n / sample, width = (bits + 7) / 8;
  const Codes queries(num, width, 1, 0, 0);  // all the same
  const auto looked_at = [&](int64_t i) { return nhl::cuda::sampled(i / stride, stride, n) == i; };
  for (int kind = 0; kind < 4; ++kind) {
    const Codes items(n, width, n, 0, random(0, 1) ? 0 : 4 - width % 4);
    for (int64_t i = 0; i < n; ++i) {
      const bool near = kind == 0 ? looked_at(i) : kind == 1 ? !looked_at(i) : kind == 2 ? true : i > n - 1500;
      for (int64_t b = 0; b < width; ++b)
        items.data[i * items.stride + b] = queries.data[b] ^ (near ? 0 : random(0, 3) ? 0xff : 0xfe);
    }
    std::vector<uint8_t> allow(n);
    for (auto& bit : allow) bit = random(0, 9) > 0;
    topk(queries, items, bits, 200, kind % 2 ? allow.data() : nullptr, {sample});
  }
}

void search(const Codes& queries, const Codes& items, int64_t bits) {
  const int64_t n = items.host.count, num = queries.host.count;
  std::vector<uint8_t> allow(n);
  for (auto& bit : allow) bit = random(0, 3) > 0;
  const uint8_t* mask = random(0, 1) ? allow.data() : nullptr;
  const int64_t samples[] = {16384, 1200, 300};
  for (int64_t k : {int64_t{1}, n / 3 + 1, n, n + 5}) topk(queries, items, bits, k, mask, {samples[random(0, 2)]});
  const int64_t radius = random(0, bits), id_bits = 21;
  const nhl::hamming::RadiusSearch expected(queries.host, items.host, bits, radius, 9, mask, executor);
  for (Scan unit : units) {
    std::vector<int64_t> counts(num + 1), offsets(num + 1);
    nhl::cuda::count_within(queries.device, items.device, bits, radius, mask, counts.data() + 1, context(unit));
    nhl::cuda::running_sum(counts.data(), num + 1, offsets.data(), context());
    EXPECT(offsets == expected.offsets);
    const int64_t found = offsets.back();
    std::vector<int64_t> keys(found), ids(found), expected_ids(found);
    std::vector<int32_t> distances(found), expected_distances(found);
    nhl::cuda::collect_within(queries.device, items.device, bits, radius, mask, offsets.data(), id_bits, keys.data(), context(unit));
    std::sort(keys.begin(), keys.end());
    nhl::cuda::split_keys(keys.data(), found, id_bits, bits + 1, 9, distances.data(), ids.data(), context());
    expected.write(expected_distances.data(), expected_ids.data());
    EXPECT(distances == expected_distances);
    EXPECT(ids == expected_ids);
  }
}

template <class T>
void labels_of(std::vector<T>& labels, T highest) {
  for (auto& label : labels) label = static_cast<T>(random(0, static_cast<int64_t>(highest)));
}

template <class T>
void evaluation(const Codes& queries, const Codes& items, const std::vector<int64_t>& lengths, int words, T highest) {
  const int64_t n = items.host.count, num = queries.host.count, m = static_cast<int64_t>(lengths.size());
  if (n == 0 || num == 0) return;
  std::vector<T> a(num * std::max(words, 1)), b(n * std::max(words, 1));
  labels_of(a, highest);
  labels_of(b, highest);
  int64_t bins = 0;
  for (int64_t length : lengths) bins += length + 1;
  const int64_t cutoff = random(1, n);
  std::vector<int64_t> ends;
  for (int64_t end = random(1, 40); end <= n && random(0, 5); end += random(1, 70)) ends.push_back(end);
  const auto each = static_cast<int64_t>(ends.size());
  std::vector<double> expected_gains(m * num * each), gains(m * num * each, 7);
  std::vector<int64_t> expected_counts(2 * bins * num), counts(2 * bins * num), expected_retrieved(m * num), retrieved(m * num);
  std::vector<double> expected_precision(m * num), precision(m * num), expected_hits(m * n), hits(m * n), expected_recall(m * n),
      recall(m * n);
  nhl::hamming::evaluate(queries.host, items.host, lengths, {a.data(), b.data(), sizeof(T), words}, cutoff,
                {expected_counts.data(), expected_precision.data(), expected_retrieved.data(), expected_hits.data(),
                 expected_recall.data(), expected_gains.data(), ends},
                executor);
  const nhl::cuda::Relevance relevance{a.data(), b.data(), sizeof(T), words};
  nhl::cuda::histograms(queries.device, items.device, lengths, relevance, counts.data(), context());
  EXPECT(counts == expected_counts);
  nhl::cuda::Context own = context();
  if (random(0, 1)) own.noted = 64;  // queries in several turns
  nhl::cuda::rank_sums(queries.device, items.device, lengths, relevance, cutoff, counts.data(), precision.data(),
                       retrieved.data(), hits.data(), recall.data(),
                       {ends.data(), static_cast<int>(each), each ? ends.back() : 0, gains.data()}, own);
  EXPECT(retrieved == expected_retrieved);
  EXPECT(hits == expected_hits);
  for (int64_t i = 0; i < m * num; ++i) EXPECT(std::abs(precision[i] - expected_precision[i]) <= 1e-12 * (1 + precision[i]));
  for (int64_t i = 0; i < m * num * each; ++i) EXPECT(std::abs(gains[i] - expected_gains[i]) <= 1e-13 * (1 + gains[i]));
  for (int64_t i = 0; i < m * n; ++i) EXPECT(std::abs(recall[i] - expected_recall[i]) <= 1e-14 * (1 + recall[i]));
  std::vector<int32_t> expected_distances(m * num * n), distances(m * num * n);
  nhl::hamming::distances(queries.host, items.host, lengths, expected_distances.data(), executor);
  nhl::cuda::distances(queries.device, items.device, lengths, distances.data(), context());
  EXPECT(distances == expected_distances);
}

void packing() {
  const int64_t rows = random(1, 40), bits = random(1, 70), bytes = (bits + 7) / 8;
  std::vector<float> x(rows * bits);
  for (auto& value : x) value = static_cast<float>(random(-1, 1));
  std::vector<uint8_t> expected(rows * bytes), out(rows * bytes);
  nhl::hamming::pack(x.data(), nhl::hamming::Float::f32, rows, bits, 1, rows, expected.data(), executor);
  nhl::cuda::pack(x.data(), 4, 0x7f800000, rows, bits, 1, rows, out.data(), context());
  EXPECT(out == expected);
}

// Number i of rows in a vector's format.
double number_at(nhl::hamming::Number type, const void* rows, int64_t i) {
  using nhl::hamming::Number, nhl::hamming::number;
  switch (type) {
    case Number::f16: return number(static_cast<const nhl::hamming::Half*>(rows)[i]);
    case Number::bf16: return number(static_cast<const nhl::hamming::Brain*>(rows)[i]);
    case Number::i8: return number(static_cast<const int8_t*>(rows)[i]);
    default: return static_cast<const float*>(rows)[i];
  }
}

// What `count` roundings to float32, one after another, change at most where magnitudes add up to `size`.
double rounding(double count, double size) {
  constexpr double kUnit = 0x1p-24;
  return count * kUnit / (1 - count * kUnit) * size;
}

// Vectors of every format, some of them zero or not finite, and outputs against codes: the truth is a sum in double. A
// lane adds up every 32nd number in float32, so that each is rounded once a number of the lane, its product included; the
// lanes' sums are added in double and the score is rounded once.
void rescoring(const Codes& items, int64_t bits) {
  const int64_t num = random(1, 9), each = random(1, 40), n = items.host.count, width = random(1, 100);
  if (n == 0) return;
  std::vector<int64_t> ids(num * each);
  for (auto& id : ids) id = random(0, n - 1);
  std::normal_distribution<float> normal;
  std::vector<float> queries(num * std::max(width, bits));
  for (auto& value : queries) value = normal(generator);
  const nhl::cuda::Chosen own{ids.data(), num, each};
  std::vector<float> found(num * each);
  const auto of_a_lane = [](int64_t count) { return static_cast<double>(nhl::divide_up(count, 32)); };

  nhl::cuda::score_codes(own, queries.data(), bits, items.device, bits, found.data(), context());
  for (int64_t i = 0; i < num * each; ++i) {
    double score = 0, size = 0;
    for (int64_t c = 0; c < bits; ++c) {
      const double u = queries[i / each * bits + c];
      score += items.data[ids[i] * items.stride + c / 8] >> (7 - c % 8) & 1 ? u : -u;
      size += std::abs(u);
    }
    EXPECT(std::abs(found[i] - score) <= rounding(of_a_lane(bits), size));  // a lane's first number is not rounded
  }

  const int64_t stride = width + random(0, 5), size = n * stride;
  std::vector<float> wide(size);
  for (auto& value : wide) value = 40 * normal(generator);
  const int64_t zero = random(0, n - 1), broken = random(0, n - 1);
  std::fill_n(wide.begin() + zero * stride, width, 0.0f);
  const auto top = [](float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    return static_cast<uint16_t>(word >> 16);
  };
  std::vector<uint16_t> brain(size), half(size);
  std::vector<int8_t> whole(size);
  for (int64_t i = 0; i < size; ++i) {
    brain[i] = top(wide[i]);
    half[i] = wide[i] == 0 ? 0 : static_cast<uint16_t>(random(0, 0x7bff) | random(0, 1) << 15);  // the small ones, too
    whole[i] = static_cast<int8_t>(std::clamp(wide[i], -128.0f, 127.0f));
  }
  using nhl::hamming::Number;
  const std::pair<Number, const void*> formats[] = {
      {Number::f32, wide.data()}, {Number::bf16, brain.data()}, {Number::f16, half.data()}, {Number::i8, whole.data()}};
  for (const auto& [type, data] : formats)
    for (bool unit : {false, true}) {
      nhl::cuda::score_vectors(own, queries.data(), {data, type, n, width, stride}, unit, found.data(), context());
      for (int64_t i = 0; i < num * each; ++i) {
        double product = 0, products = 0, squares = 0;
        for (int64_t j = 0; j < width; ++j) {
          const double x = number_at(type, data, ids[i] * stride + j), term = x * queries[i / each * width + j];
          product += term;
          products += std::abs(term);
          squares += x * x;
        }
        // The norm is rounded half as often as the squares under its root.
        const double norm = unit && squares > 0 ? std::sqrt(squares) : 1;
        const double count = of_a_lane(width) * (unit ? 1.5 : 1) + 1;
        EXPECT(std::abs(found[i] - product / norm) <= rounding(count, products / norm));
      }
    }
  wide[broken * stride + random(0, width - 1)] = random(0, 1) ? INFINITY : NAN;
  ids[0] = n + random(0, 3), ids.back() = -1;
  nhl::cuda::score_vectors(own, queries.data(), {wide.data(), Number::f32, n, width, stride}, true, found.data(), context());
  for (int64_t i = 0; i < num * each; ++i)
    EXPECT(std::isnan(found[i]) == (ids[i] == broken || ids[i] < 0 || ids[i] >= n));
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 40;
  plans();
  const int64_t favourites[] = {8, 16, 32, 48, 64, 100, 128, 256, 500, 512, 1000, 1024};
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t bits = round % 2 ? random(1, 160) : favourites[round / 2 % 12], width = (bits + 7) / 8;
    const int64_t n = round % 8 == 0 ? random(2000, 5000) : random(0, 400), num = random(1, 19);
    const int64_t offset = random(0, 2) ? 0 : random(1, 15), gap = random(0, 1) ? 0 : random(0, 20);
    const Codes queries(num, width, num, 0, random(0, 3));
    const Codes items(n, width, random(0, 1) ? std::max<int64_t>(n, 1) : random(1, 8), offset, gap);
    search(queries, items, bits);
    if (round % 8 == 1) misled(bits);
    if (round % 4 == 1) limits(bits);
    std::vector<int64_t> lengths{bits};
    if (bits > 3) lengths = {random(1, bits / 2), random(bits / 2 + 1, bits - 1), bits};
    if (bits == 128) lengths = {8, 16, 32, 64, 128};
    if (bits > 100 && round % 3 == 0) {
      lengths.clear();
      for (int64_t b = 1; b <= 70; ++b) lengths.push_back(b);  // more than one program holds
    }
    switch (round % 5) {
      case 0: evaluation<uint8_t>(queries, items, lengths, 0, 3); break;
      case 1: evaluation<uint16_t>(queries, items, lengths, 0, 3); break;
      case 2: evaluation<uint32_t>(queries, items, lengths, 0, 1); break;
      case 3: evaluation<uint64_t>(queries, items, lengths, 0, 2); break;
      default: evaluation<uint64_t>(queries, items, lengths, static_cast<int>(random(1, 3)), 9);
    }
    packing();
    rescoring(items, bits);
  }
  std::printf("%lld rounds\n", static_cast<long long>(rounds));
  return 0;
}
