// The operators PyTorch sees: schemas, checks, and tensors to raw pointers. Stable ABI only.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "../common/isa.h"
#include "../hamming/hamming.h"
#include "call.h"
#include "tensors.h"

namespace nhl::hamming {
namespace {

Rows rows_of(const Tensor& codes, int64_t bits, const char* name) {
  return code_rows<Rows>(codes, bits, kMaxBits, "bits", name);
}

int64_t count_bins(const Ints& lengths, int64_t queries) {
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
  pack(x.const_data_ptr(), type, x.size(0), x.size(1), x.stride(0), x.stride(1), data<uint8_t>(out),
       Call().executor);
  return out;
}

Tensor distances_cpu(const Tensor& queries, const Tensor& items, Ints lengths) {
  check_lengths(lengths);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  Tensor out = empty({static_cast<int64_t>(lengths.size()), q.count, x.count}, ScalarType::Int);
  distances(q, x, lengths, data<int32_t>(out), Call().executor);
  return out;
}

Tensor histograms_cpu(const Tensor& queries, const Tensor& items, const Tensor& query_labels,
                      const Tensor& item_labels, Ints lengths) {
  check_lengths(lengths);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  const Relevance relevance = relevance_of<Relevance>(query_labels, item_labels, q.count, x.count);
  Tensor out = empty({count_bins(lengths, q.count)}, ScalarType::Long);
  label_histograms(q, x, lengths, relevance, data<int64_t>(out), Call().executor);
  return out;
}

Evaluated evaluate_gains_cpu(const Tensor& queries, const Tensor& items, const Tensor& query_labels,
                             const Tensor& item_labels, Ints lengths, int64_t cutoff, Ints ranks) {
  check_lengths(lengths);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  const Relevance relevance = relevance_of<Relevance>(query_labels, item_labels, q.count, x.count);
  const auto m = static_cast<int64_t>(lengths.size());
  Tensor counts = empty({count_bins(lengths, q.count)}, ScalarType::Long);
  Tensor precision = empty({m, q.count}, ScalarType::Double), retrieved = empty({m, q.count}, ScalarType::Long);
  Tensor hits = empty({m, x.count}, ScalarType::Double), recall = empty({m, x.count}, ScalarType::Double);
  check_ranks(ranks, x.count);
  Tensor gains = empty({m, q.count, static_cast<int64_t>(ranks.size())}, ScalarType::Double);
  evaluate(q, x, lengths, relevance, cutoff,
           {data<int64_t>(counts), data<double>(precision), data<int64_t>(retrieved), data<double>(hits),
            data<double>(recall), data<double>(gains), ranks},
           Call().executor);
  return {counts, precision, retrieved, hits, recall, gains};
}

std::tuple<Tensor, Tensor> topk_cpu(const Tensor& queries, const Tensor& items, int64_t k, int64_t length,
                                    const std::optional<Tensor>& allow, int64_t base) {
  const Rows q = rows_of(queries, length, "queries"), x = rows_of(items, length, "database");
  STD_TORCH_CHECK(k >= 0, "k: expected at least 0, got ", k);
  Tensor out = empty({q.count, k}, ScalarType::Int), ids = empty({q.count, k}, ScalarType::Long);
  topk(q, x, length, k, base, mask_of(allow, x.count), data<int32_t>(out), data<int64_t>(ids),
       Call().executor);
  return {out, ids};
}

std::tuple<Tensor, Tensor> topk_buckets_cpu(const Tensor& queries, const Tensor& rows, const Tensor& ids,
                                            const Tensor& starts, int64_t k, int64_t length) {
  const Rows q = rows_of(queries, length, "queries");
  Rows x = rows_of(rows, length, "rows");
  STD_TORCH_CHECK(k >= 0, "k: expected at least 0, got ", k);
  STD_TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == ScalarType::Int && ids.is_contiguous() &&
                      x.count == ids.size(0) + 64 && x.stride == rows.size(1) &&
                      (x.stride == 4 || x.stride == 8 || x.stride == 16 || x.stride == 32),
                  "rows: expected 4, 8, 16 or 32 bytes each, and 64 rows more than there are int32 ids");
  int64_t prefix = 0;
  while (prefix <= 12 && (int64_t{1} << prefix) + 1 < starts.numel()) ++prefix;
  STD_TORCH_CHECK(starts.dim() == 1 && starts.scalar_type() == ScalarType::Long && starts.is_contiguous() &&
                      starts.numel() == (int64_t{1} << prefix) + 1 && prefix <= 12 && prefix <= length,
                  "starts: expected int64, one for each prefix of at most 12 bits and of the length's, and an end");
  x.count = ids.size(0);
  const auto* const start = const_data<int64_t>(starts);
  bool right = start[0] == 0 && start[starts.numel() - 1] == x.count;
  for (int64_t i = 1; i < starts.numel(); ++i) right &= start[i - 1] <= start[i];
  STD_TORCH_CHECK(right, "starts: expected places from 0 to the number of ids, ascending");
  Tensor out = empty({q.count, k}, ScalarType::Int), found = empty({q.count, k}, ScalarType::Long);
  topk_buckets(q, {x, const_data<int32_t>(ids), start, prefix}, length, k, data<int32_t>(out), data<int64_t>(found),
               Call().executor);
  return {out, found};
}

std::tuple<Tensor, Tensor, Tensor> radius_cpu(const Tensor& queries, const Tensor& items, int64_t radius,
                                              int64_t length, const std::optional<Tensor>& allow, int64_t base) {
  const Rows q = rows_of(queries, length, "queries"), x = rows_of(items, length, "database");
  STD_TORCH_CHECK(radius >= 0, "radius: expected at least 0, got ", radius);
  const Call call;
  const RadiusSearch search(q, x, length, radius, base, mask_of(allow, x.count), call.executor);
  const int64_t found = search.offsets.back();
  Tensor offsets = empty({q.count + 1}, ScalarType::Long);
  std::copy(search.offsets.begin(), search.offsets.end(), data<int64_t>(offsets));
  Tensor out = empty({found}, ScalarType::Int), ids = empty({found}, ScalarType::Long);
  search.write(data<int32_t>(out), data<int64_t>(ids));
  return {offsets, out, ids};
}

#ifndef NHL_FAST_SOURCE_HASH
#define NHL_FAST_SOURCE_HASH ""
#endif
std::string source_hash() { return NHL_FAST_SOURCE_HASH; }

std::string cpu_isa() { return isa_name(active_isa()); }

}  // namespace
}  // namespace nhl::hamming

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
      "evaluate_gains(Tensor queries, Tensor database, Tensor query_labels, Tensor database_labels, int[] lengths,"
      " int cutoff, int[] ranks) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "topk(Tensor queries, Tensor database, int k, int length, Tensor? allow=None, int base=0)"
      " -> (Tensor, Tensor)");
  m.def(
      "topk_buckets(Tensor queries, Tensor rows, Tensor ids, Tensor starts, int k, int length) -> (Tensor, Tensor)");
  m.def(
      "radius(Tensor queries, Tensor database, int radius, int length, Tensor? allow=None, int base=0)"
      " -> (Tensor, Tensor, Tensor)");
  m.def("cpu_isa() -> str");
  m.def("source_hash() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CPU, m) {
  m.impl("pack", TORCH_BOX(&nhl::hamming::pack_cpu));
  m.impl("distances", TORCH_BOX(&nhl::hamming::distances_cpu));
  m.impl("histograms", TORCH_BOX(&nhl::hamming::histograms_cpu));
  m.impl("evaluate", TORCH_BOX(&nhl::without_gains<nhl::hamming::evaluate_gains_cpu>));
  m.impl("evaluate_gains", TORCH_BOX(&nhl::hamming::evaluate_gains_cpu));
  m.impl("topk", TORCH_BOX(&nhl::hamming::topk_cpu));
  m.impl("topk_buckets", TORCH_BOX(&nhl::hamming::topk_buckets_cpu));
  m.impl("radius", TORCH_BOX(&nhl::hamming::radius_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&nhl::hamming::cpu_isa));
  m.impl("source_hash", TORCH_BOX(&nhl::hamming::source_hash));
}
