// Shared by the step's algorithms: layouts, buffers, label sets as words, blocks of rows among threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "step.h"

namespace nhl::step {

// Floats on a cache line's boundary, not set to anything.
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(divide_up(count + kPad, 16) * 64)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  operator float*() const { return data_; }

 private:
  float* data_;
};

struct Plan {
  explicit Plan(const Lengths& lengths) : lengths(lengths), starts{0}, padded_starts{0} {
    for (int64_t b : lengths) {
      starts.push_back(starts.back() + b);
      padded_starts.push_back(padded_starts.back() + padded(b));
    }
    layout = {this->lengths.data(), starts.data(), padded_starts.data(), static_cast<int64_t>(lengths.size())};
  }
  Plan(const Plan&) = delete;
  Lengths lengths, starts, padded_starts;
  Layout layout;
};

// Work below this many multiply-adds stays on the calling thread.
constexpr double kWorthSharing = 2e6;

inline Executor share(const Executor& executor, double work) {
  return work < kWorthSharing ? Executor{1, executor.parallel, executor.watch} : executor;
}

// body(i, begin, end) for blocks of `size` of n rows.
template <class Body>
void for_blocks(const Executor& executor, double work, int64_t n, int64_t size, const Body& body) {
  run_units(share(executor, work), divide_up(n, size), no_scratch,
            [&](int64_t i, NoScratch&) { body(i, i * size, std::min(n, (i + 1) * size)); });
}

// The label sets of rows, one bit a class, word by word: (words x np).
inline std::vector<uint32_t> label_words(const Labels& labels, const int32_t* rows, int64_t begin, int64_t count,
                                         int64_t np) {
  std::vector<uint32_t> out(divide_up(labels.classes, 32) * np, 0);
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* const flags = labels.flags + (rows ? rows[begin + i] : begin + i) * labels.classes;
    for (int64_t c = 0; c < labels.classes; ++c)
      out[c / 32 * np + i] |= static_cast<uint32_t>(flags[c] != 0) << c % 32;
  }
  return out;
}

// Their ids, -1 beyond the rows.
inline std::vector<int32_t> label_ids(const Labels& labels, const int32_t* rows, int64_t begin, int64_t count,
                                      int64_t np) {
  std::vector<int32_t> out(np, -1);
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<int32_t>(labels.ids[rows ? rows[begin + i] : begin + i]);
  return out;
}

// Which rows of a batch are similar (n x n bytes).
inline std::vector<uint8_t> similarity(const Labels& labels, int64_t n) {
  std::vector<uint8_t> out(n * n, 0);
  if (labels.ids) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) out[i * n + j] = labels.ids[i] == labels.ids[j];
    return out;
  }
  const std::vector<uint32_t> words = label_words(labels, nullptr, 0, n, n);
  for (size_t w = 0; w < words.size(); w += n)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) out[i * n + j] |= (words[w + i] & words[w + j]) != 0;
  return out;
}

// The number of pairs of a batch row and a written bank row that are similar.
inline double similar_pairs(const Batch& batch, const Labels& labels, const Bank& bank) {
  int64_t found = 0;
  if (labels.ids) {
    std::vector<int64_t> own(labels.ids, labels.ids + batch.n);
    std::sort(own.begin(), own.end());
    const int64_t lowest = own.front(), highest = own.back();
    std::vector<int64_t> counts;  // of each id, where the ids are near enough for a table
    if (static_cast<uint64_t>(highest) - static_cast<uint64_t>(lowest) < (1 << 20)) {
      counts.assign(highest - lowest + 1, 0);
      for (int64_t id : own) ++counts[id - lowest];
    }
    for (int64_t j = 0; j < bank.count; ++j) {
      const int64_t id = bank.labels.ids[j];
      if ((bank.written && !bank.written[j]) || id < lowest || id > highest) continue;
      if (!counts.empty()) {
        found += counts[id - lowest];
      } else {
        const auto range = std::equal_range(own.begin(), own.end(), id);
        found += range.second - range.first;
      }
    }
    return static_cast<double>(found);
  }
  const std::vector<uint32_t> words = label_words(labels, nullptr, 0, batch.n, batch.n);
  std::vector<uint8_t> shared(batch.n);
  for (int64_t j = 0; j < bank.count; ++j) {
    if (bank.written && !bank.written[j]) continue;
    const uint8_t* const flags = bank.labels.flags + j * labels.classes;
    std::fill(shared.begin(), shared.end(), 0);
    for (int64_t c = 0; c < labels.classes; ++c) {
      if (!flags[c]) continue;
      const uint32_t* const word = words.data() + c / 32 * batch.n;
      for (int64_t i = 0; i < batch.n; ++i) shared[i] |= word[i] >> c % 32 & 1;
    }
    for (int64_t i = 0; i < batch.n; ++i) found += shared[i];
  }
  return static_cast<double>(found);
}

// Sums of the blocks' numbers, in order: out[k] = sum over i of parts[i * m + k].
inline std::vector<double> total(const std::vector<double>& parts, int64_t m) {
  std::vector<double> out(m, 0.0);
  for (size_t i = 0; i < parts.size(); ++i) out[i % m] += parts[i];
  return out;
}

// Sums over the first b_k columns of x[c] * y[c].
inline void prefix_dots(const Kernels& kernels, const Layout& layout, const float* x, const float* y, double* out) {
  double sum = 0;
  for (int64_t k = 0; k < layout.m; ++k) {
    const int64_t first = layout.first(k);
    out[k] = sum += kernels.dot(x + first, y + first, layout.lengths[k] - first);
  }
}

// A row's norm from its squared norm, and 1 / norm, or `without` for a row that has no direction.
struct Norm {
  Norm(double squares, float without) : some(squares > 1e-24) {
    norm = some ? static_cast<float>(std::sqrt(squares)) : 1.0f;
    inverse = some ? static_cast<float>(1 / std::sqrt(squares)) : without;
  }
  bool some;
  float norm, inverse;
};

// out = scale * the gradient in x of a function of x at norm 1 (or times norm.inverse) whose gradient there is g.
inline void unit_back(const Kernels& kernels, const float* x, const float* g, int64_t n, const Norm& norm, float scale,
                      float* out) {
  for (int64_t c = 0; c < n; ++c) out[c] = x[c] / norm.norm;
  const float along = norm.some ? static_cast<float>(kernels.dot(out, g, n)) : 0.0f;
  for (int64_t c = 0; c < n; ++c) out[c] = scale * norm.inverse * (g[c] - along * out[c]);
}

// 1 / (n b) of every length b, times weight.
inline std::vector<float> mean_scales(const Layout& layout, int64_t n, double weight) {
  std::vector<float> out;
  for (int64_t k = 0; k < layout.m; ++k)
    out.push_back(static_cast<float>(weight / (static_cast<double>(n) * static_cast<double>(layout.lengths[k]))));
  return out;
}

// Adds a penalty's mean over the rows and its gradient. constants: gamma and the cap of Penalty::cauchy.
void add_penalty(const PenaltyTerm& penalty, const std::vector<float>& constants, const Layout& layout,
                 const Batch& batch, const Loss& out, const Executor& executor);

}  // namespace nhl::step
