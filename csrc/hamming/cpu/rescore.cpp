// A second look at candidates: their vectors, or queries' raw outputs against their codes.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "../hamming.h"

namespace nhl::hamming {

namespace {

constexpr int64_t kPiece = 64, kLanes = 16;

struct Sums {
  double product = 0, squares = 0;
  bool finite = true;
};

template <class T>
Sums sums_of(const T* row, const float* query, int64_t width) {
  Sums out;
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t begin = 0; begin < whole; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, whole);
    float products[kLanes] = {}, squares[kLanes] = {}, ends[kLanes] = {};
    for (int64_t i = begin; i < end; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float x = number(row[i + lane]);
        products[lane] += x * query[i + lane];
        squares[lane] += x * x;
        ends[lane] += x * 0.0f;  // NaN for a number that is not finite
      }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      out.product += products[lane];
      out.squares += squares[lane];
      out.finite &= ends[lane] == 0;
    }
  }
  for (int64_t i = whole; i < width; ++i) {
    const float x = number(row[i]);
    out.product += static_cast<double>(x) * query[i];
    out.squares += static_cast<double>(x) * x;
    out.finite &= std::isfinite(x);
  }
  return out;
}

template <class T>
bool vector_scores(const Chosen& candidates, const float* queries, const Vectors& vectors, bool unit, float* out,
                   const Executor& executor) {
  std::atomic<bool> finite{true};
  run_units(executor, candidates.queries, no_scratch, [&](int64_t q, NoScratch&) {
    for (int64_t c = q * candidates.each; c < (q + 1) * candidates.each; ++c) {
      const T* const row = static_cast<const T*>(vectors.data) + candidates.ids[c] * vectors.stride;
      const Sums sums = sums_of(row, queries + q * vectors.width, vectors.width);
      if (!sums.finite) finite.store(false, std::memory_order_relaxed);
      const double norm = unit && sums.squares > 0 ? std::sqrt(sums.squares) : 1;
      out[c] = static_cast<float>(sums.product / norm);
    }
  });
  return finite;
}

}  // namespace

bool score_vectors(const Chosen& candidates, const float* queries, const Vectors& vectors, bool unit, float* out,
                   const Executor& executor) {
  switch (vectors.type) {
    case Number::f16: return vector_scores<Half>(candidates, queries, vectors, unit, out, executor);
    case Number::bf16: return vector_scores<Brain>(candidates, queries, vectors, unit, out, executor);
    case Number::i8: return vector_scores<int8_t>(candidates, queries, vectors, unit, out, executor);
    default: return vector_scores<float>(candidates, queries, vectors, unit, out, executor);
  }
}

void score_codes(const Chosen& candidates, const float* outputs, int64_t stride, const Rows& codes, int64_t length,
                 float* out, const Executor& executor) {
  const int64_t bytes = (length + 7) / 8;
  run_units(
      executor, candidates.queries, [&] { return std::make_unique<std::vector<float>>(bytes * 256); },
      [&](int64_t q, std::vector<float>& table) {
        // table[256 j + v]: the product of eight outputs with the signs of the byte v.
        for (int64_t j = 0; j < bytes; ++j) {
          float* const sums = table.data() + 256 * j;
          sums[0] = 0;
          for (int64_t bit = 0; bit < 8; ++bit) {  // the last one of a byte is its lowest
            const int64_t c = 8 * j + 7 - bit, half = int64_t{1} << bit;
            const float u = c < length ? outputs[q * stride + c] : 0.0f;
            for (int64_t v = 0; v < half; ++v) {
              sums[half + v] = sums[v] + u;
              sums[v] -= u;
            }
          }
        }
        for (int64_t c = q * candidates.each; c < (q + 1) * candidates.each; ++c) {
          const uint8_t* const code = codes.data + candidates.ids[c] * codes.stride;
          double sum = 0;
          for (int64_t j = 0; j < bytes; ++j) sum += table[256 * j + code[j]];
          out[c] = static_cast<float>(sum);
        }
      });
}

}  // namespace nhl::hamming
