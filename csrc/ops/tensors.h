// What all operators ask of their tensors, and how they make new ones. Stable ABI only.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../hamming/formats.h"

namespace nhl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

// An uninitialised tensor. Too little memory, the one thing that can fail, is std::bad_alloc: MemoryError in Python.
inline Tensor empty(const Ints& sizes, ScalarType type) {
  try {
    return torch::stable::empty(sizes, type);
  } catch (const std::exception&) {
    throw std::bad_alloc();
  }
}

// A `str` argument, to be taken exactly once. PyTorch's own conversion to std::string leaks one each time.
inline std::string text(StringHandle handle) {
  size_t length = 0;
  const char* characters = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
  std::string out(characters, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return out;
}

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline void check_lengths(const Ints& lengths) {
  STD_TORCH_CHECK(!lengths.empty() && lengths[0] >= 1, "lengths: expected at least one, all positive");
  for (size_t m = 1; m < lengths.size(); ++m)
    STD_TORCH_CHECK(lengths[m - 1] < lengths[m], "lengths: expected increasing lengths");
}

// Where an evaluation's gains end.
inline void check_ranks(const Ints& ranks, int64_t items) {
  for (size_t i = 0; i < ranks.size(); ++i)
    STD_TORCH_CHECK(ranks[i] > (i ? ranks[i - 1] : 0) && ranks[i] <= items,
                    "ranks: expected them to increase from 1 to at most ", items);
}

// Counts, precision, retrieved, hits, recall and gains of an evaluation.
using Evaluated = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The operator without gains, of the one with them.
template <auto evaluate_gains>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> without_gains(const Tensor& queries, const Tensor& items,
                                                                 const Tensor& query_labels,
                                                                 const Tensor& item_labels, Ints lengths,
                                                                 int64_t cutoff) {
  auto [counts, precision, retrieved, hits, recall, gains] =
      evaluate_gains(queries, items, query_labels, item_labels, lengths, cutoff, {});
  return {counts, precision, retrieved, hits, recall};
}

// Packed codes of `bits` bits, of which the engine takes `most` (`unit` says so).
template <class Rows>
Rows code_rows(const Tensor& codes, int64_t bits, int64_t most, const char* unit, const char* name) {
  STD_TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == ScalarType::Byte, name, ": expected uint8 rows");
  STD_TORCH_CHECK(bits >= 1 && bits <= most, "length: expected 1 to ", most, " ", unit, ", got ", bits);
  STD_TORCH_CHECK(8 * codes.size(1) >= bits, name, ": rows of ", codes.size(1), " bytes hold no ", bits, " bits");
  STD_TORCH_CHECK(codes.numel() == 0 || codes.size(1) == 1 || codes.stride(1) == 1, name,
                  ": expected contiguous bytes in each row");
  return {const_data<uint8_t>(codes), codes.size(0), codes.stride(0)};
}

// Rows that are as wide as the queries', and the format of their numbers.
inline hamming::Number vectors_format(const Tensor& vectors, const Tensor& queries) {
  STD_TORCH_CHECK(vectors.dim() == 2 && vectors.size(1) == queries.size(1) &&
                      (vectors.stride(1) == 1 || vectors.size(1) == 1),
                  "vectors: expected rows of ", queries.size(1), " contiguous numbers");
  switch (vectors.scalar_type()) {
    case ScalarType::Half: return hamming::Number::f16;
    case ScalarType::BFloat16: return hamming::Number::bf16;
    case ScalarType::Float: return hamming::Number::f32;
    case ScalarType::Char: return hamming::Number::i8;
    default: STD_TORCH_CHECK(false, "vectors: expected float16, bfloat16, float32 or int8");
  }
}

inline const float* float_rows(const Tensor& rows, const char* name) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.scalar_type() == ScalarType::Float && rows.is_contiguous(), name,
                  ": expected contiguous float32 rows");
  return const_data<float>(rows);
}

// One byte an item, or null.
inline const uint8_t* mask_of(const std::optional<Tensor>& allow, int64_t items) {
  if (!allow) return nullptr;
  STD_TORCH_CHECK(allow->scalar_type() == ScalarType::Bool && allow->dim() == 1 && allow->size(0) == items &&
                      allow->is_contiguous(),
                  "allow: expected a contiguous bool mask, one entry an item");
  return const_data<uint8_t>(*allow);
}

// The labels that say who is relevant to whom: {queries, items, bytes of an id, words of a label set or 0}.
template <class Relevance>
Relevance relevance_of(const Tensor& query_labels, const Tensor& item_labels, int64_t queries, int64_t items) {
  const bool sets = item_labels.dim() == 2;
  const ScalarType type = item_labels.scalar_type();
  STD_TORCH_CHECK(query_labels.scalar_type() == type && query_labels.dim() == item_labels.dim() &&
                      query_labels.is_contiguous() && item_labels.is_contiguous(),
                  "labels: expected two contiguous tensors of one dtype and form");
  STD_TORCH_CHECK(query_labels.size(0) == queries && item_labels.size(0) == items,
                  "labels: expected one row a code");
  if (sets)
    STD_TORCH_CHECK(type == ScalarType::Long && query_labels.size(1) == item_labels.size(1) && item_labels.size(1) > 0,
                    "labels: expected label sets as int64 words");
  Relevance relevance{};
  relevance.queries = query_labels.const_data_ptr();
  relevance.items = item_labels.const_data_ptr();
  relevance.id_bytes = static_cast<decltype(relevance.id_bytes)>(sets ? 0 : item_labels.element_size());
  relevance.words = static_cast<decltype(relevance.words)>(sets ? item_labels.size(1) : 0);
  return relevance;
}

}  // namespace nhl
