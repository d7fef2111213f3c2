// The operators PyTorch sees: schemas, checks, and tensors to raw pointers. Stable ABI only.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace nhl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor empty(std::vector<int64_t> sizes, ScalarType type) { return empty_tensor(sizes, type); }

Rows rows_of(const Tensor& codes, int64_t bits, const char* name) {
  STD_TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == ScalarType::Byte, name, ": expected uint8 rows");
  STD_TORCH_CHECK(bits >= 1 && bits <= kMaxBits, "length: expected 1 to ", kMaxBits, " bits, got ", bits);
  STD_TORCH_CHECK(8 * codes.size(1) >= bits, name, ": rows of ", codes.size(1), " bytes hold no ", bits, " bits");
  STD_TORCH_CHECK(codes.numel() == 0 || codes.size(1) == 1 || codes.stride(1) == 1, name, ": expected contiguous bytes in each row");
  return {static_cast<const uint8_t*>(codes.const_data_ptr()), codes.size(0), codes.stride(0)};
}

void check_lengths(const std::vector<int64_t>& lengths) {
  STD_TORCH_CHECK(!lengths.empty() && lengths[0] >= 1, "lengths: expected at least one, all positive");
  for (size_t m = 1; m < lengths.size(); ++m)
    STD_TORCH_CHECK(lengths[m - 1] < lengths[m], "lengths: expected increasing lengths");
}

const uint8_t* mask_of(const std::optional<Tensor>& allow, int64_t items) {
  if (!allow) return nullptr;
  STD_TORCH_CHECK(allow->scalar_type() == ScalarType::Bool && allow->dim() == 1 && allow->size(0) == items &&
                      allow->is_contiguous(),
                  "allow: expected a contiguous bool mask, one entry an item");
  return static_cast<const uint8_t*>(allow->const_data_ptr());
}

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
  return {query_labels.const_data_ptr(), item_labels.const_data_ptr(),
          sets ? 0 : static_cast<int64_t>(item_labels.element_size()), sets ? item_labels.size(1) : 0};
}

int64_t count_bins(const std::vector<int64_t>& lengths, int64_t queries) {
  int64_t bins = 0;
  for (int64_t b : lengths) bins += 2 * (b + 1);
  return bins * queries;
}

Tensor pack_cpu(const Tensor& x) {
  Float type = Float::f32;
  switch (x.scalar_type()) {
    case ScalarType::Half: type = Float::f16; break;
    case ScalarType::BFloat16: type = Float::bf16; break;
    case ScalarType::Float: type = Float::f32; break;
    case ScalarType::Double: type = Float::f64; break;
    default: STD_TORCH_CHECK(false, "x: expected float16, bfloat16, float32 or float64");
  }
  STD_TORCH_CHECK(x.dim() == 2, "x: expected two dimensions");
  Tensor out = empty({x.size(0), (x.size(1) + 7) / 8}, ScalarType::Byte);
  pack(x.const_data_ptr(), type, x.size(0), x.size(1), x.stride(0), x.stride(1),
       static_cast<uint8_t*>(out.mutable_data_ptr()), Call().executor);
  return out;
}

Tensor distances_cpu(const Tensor& queries, const Tensor& items, std::vector<int64_t> lengths) {
  check_lengths(lengths);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  Tensor out = empty({static_cast<int64_t>(lengths.size()), q.count, x.count}, ScalarType::Int);
  distances(q, x, lengths, static_cast<int32_t*>(out.mutable_data_ptr()), Call().executor);
  return out;
}

Tensor histograms_cpu(const Tensor& queries, const Tensor& items, const Tensor& query_labels,
                      const Tensor& item_labels, std::vector<int64_t> lengths) {
  check_lengths(lengths);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  const Relevance relevance = relevance_of(query_labels, item_labels, q.count, x.count);
  Tensor out = empty({count_bins(lengths, q.count)}, ScalarType::Long);
  label_histograms(q, x, lengths, relevance, static_cast<int64_t*>(out.mutable_data_ptr()), Call().executor);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> evaluate_cpu(const Tensor& queries, const Tensor& items,
                                                                const Tensor& query_labels,
                                                                const Tensor& item_labels,
                                                                std::vector<int64_t> lengths, int64_t cutoff) {
  check_lengths(lengths);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  const Relevance relevance = relevance_of(query_labels, item_labels, q.count, x.count);
  const auto m = static_cast<int64_t>(lengths.size());
  Tensor counts = empty({count_bins(lengths, q.count)}, ScalarType::Long);
  Tensor precision = empty({m, q.count}, ScalarType::Double), retrieved = empty({m, q.count}, ScalarType::Long);
  Tensor hits = empty({m, x.count}, ScalarType::Double), recall = empty({m, x.count}, ScalarType::Double);
  evaluate(q, x, lengths, relevance, cutoff,
           {static_cast<int64_t*>(counts.mutable_data_ptr()), static_cast<double*>(precision.mutable_data_ptr()),
            static_cast<int64_t*>(retrieved.mutable_data_ptr()), static_cast<double*>(hits.mutable_data_ptr()),
            static_cast<double*>(recall.mutable_data_ptr())},
           Call().executor);
  return {counts, precision, retrieved, hits, recall};
}

std::tuple<Tensor, Tensor> topk_cpu(const Tensor& queries, const Tensor& items, int64_t k, int64_t length,
                                    const std::optional<Tensor>& allow, int64_t base) {
  const Rows q = rows_of(queries, length, "queries"), x = rows_of(items, length, "database");
  STD_TORCH_CHECK(k >= 0, "k: expected at least 0, got ", k);
  Tensor out = empty({q.count, k}, ScalarType::Int), ids = empty({q.count, k}, ScalarType::Long);
  topk(q, x, length, k, base, mask_of(allow, x.count), static_cast<int32_t*>(out.mutable_data_ptr()),
       static_cast<int64_t*>(ids.mutable_data_ptr()), Call().executor);
  return {out, ids};
}

std::tuple<Tensor, Tensor, Tensor> radius_cpu(const Tensor& queries, const Tensor& items, int64_t radius,
                                              int64_t length, const std::optional<Tensor>& allow, int64_t base) {
  const Rows q = rows_of(queries, length, "queries"), x = rows_of(items, length, "database");
  STD_TORCH_CHECK(radius >= 0, "radius: expected at least 0, got ", radius);
  const Call call;
  const RadiusSearch search(q, x, length, radius, base, mask_of(allow, x.count), call.executor);
  const int64_t found = search.offsets.back();
  Tensor offsets = empty({q.count + 1}, ScalarType::Long);
  std::copy(search.offsets.begin(), search.offsets.end(), static_cast<int64_t*>(offsets.mutable_data_ptr()));
  Tensor out = empty({found}, ScalarType::Int), ids = empty({found}, ScalarType::Long);
  search.write(static_cast<int32_t*>(out.mutable_data_ptr()), static_cast<int64_t*>(ids.mutable_data_ptr()));
  return {offsets, out, ids};
}

#ifndef NHL_FAST_SOURCE_HASH
#define NHL_FAST_SOURCE_HASH ""
#endif
std::string source_hash() { return NHL_FAST_SOURCE_HASH; }

std::string cpu_isa() { return isa_name(active_isa()); }

}  // namespace
}  // namespace nhl

STABLE_TORCH_LIBRARY(nhl_fast, m) {
  m.def("pack(Tensor x) -> Tensor");
  m.def("distances(Tensor queries, Tensor database, int[] lengths) -> Tensor");
  m.def(
      "histograms(Tensor queries, Tensor database, Tensor query_labels, Tensor database_labels, int[] lengths)"
      " -> Tensor");
  m.def(
      "evaluate(Tensor queries, Tensor database, Tensor query_labels, Tensor database_labels, int[] lengths,"
      " int cutoff) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "topk(Tensor queries, Tensor database, int k, int length, Tensor? allow=None, int base=0)"
      " -> (Tensor, Tensor)");
  m.def(
      "radius(Tensor queries, Tensor database, int radius, int length, Tensor? allow=None, int base=0)"
      " -> (Tensor, Tensor, Tensor)");
  m.def("cpu_isa() -> str");
  m.def("source_hash() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CPU, m) {
  m.impl("pack", TORCH_BOX(&nhl::pack_cpu));
  m.impl("distances", TORCH_BOX(&nhl::distances_cpu));
  m.impl("histograms", TORCH_BOX(&nhl::histograms_cpu));
  m.impl("evaluate", TORCH_BOX(&nhl::evaluate_cpu));
  m.impl("topk", TORCH_BOX(&nhl::topk_cpu));
  m.impl("radius", TORCH_BOX(&nhl::radius_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&nhl::cpu_isa));
  m.impl("source_hash", TORCH_BOX(&nhl::source_hash));
}
