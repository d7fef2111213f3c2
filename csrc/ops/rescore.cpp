// The operators of a second look at candidates: schemas, checks, and tensors to raw pointers. Stable ABI only.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../hamming/hamming.h"
#include "call.h"
#include "tensors.h"

namespace nhl::hamming {
namespace {

// `lowest` is -1 where that may stand for no item.
Chosen candidates_of(const Tensor& ids, int64_t queries, int64_t items, int64_t lowest = 0) {
  STD_TORCH_CHECK(ids.dim() == 2 && ids.size(0) == queries && ids.scalar_type() == ScalarType::Long &&
                      ids.is_contiguous(),
                  "candidates: expected contiguous int64 ids, one row a query");
  const auto* const data = const_data<int64_t>(ids);
  for (int64_t i = 0; i < ids.numel(); ++i)
    STD_TORCH_CHECK(data[i] >= lowest && data[i] < items, "candidates: expected ids from ", lowest, " to ", items - 1,
                    ", got ", data[i]);
  return {data, queries, ids.size(1)};
}

std::tuple<Tensor, bool> score_vectors_cpu(const Tensor& queries, const Tensor& vectors, const Tensor& ids, bool unit) {
  const float* const q = float_rows(queries, "queries");
  const Number type = vectors_format(vectors, queries);
  const Vectors rows{vectors.const_data_ptr(), type, queries.size(1), vectors.stride(0)};
  const Chosen candidates = candidates_of(ids, queries.size(0), vectors.size(0));
  Tensor out = empty({candidates.queries, candidates.each}, ScalarType::Float);
  const bool finite = score_vectors(candidates, q, rows, unit, data<float>(out), Call().executor);
  return {out, finite};
}

Tensor score_codes_cpu(const Tensor& outputs, const Tensor& codes, const Tensor& ids, int64_t length) {
  const float* const u = float_rows(outputs, "queries");
  const Rows rows = code_rows<Rows>(codes, length, outputs.size(1), "bits, those of the outputs", "codes");
  const Chosen candidates = candidates_of(ids, outputs.size(0), rows.count);
  Tensor out = empty({candidates.queries, candidates.each}, ScalarType::Float);
  score_codes(candidates, u, outputs.size(1), rows, length, data<float>(out), Call().executor);
  return out;
}

std::tuple<Tensor, Tensor> topk_among_cpu(const Tensor& queries, const Tensor& items, const Tensor& ids, int64_t k,
                                          int64_t length) {
  const Rows q = code_rows<Rows>(queries, length, kMaxBits, "bits", "queries");
  const Rows x = code_rows<Rows>(items, length, kMaxBits, "bits", "database");
  STD_TORCH_CHECK(k >= 0, "k: expected at least 0, got ", k);
  const Chosen candidates = candidates_of(ids, q.count, x.count, -1);
  Tensor out = empty({q.count, k}, ScalarType::Int), found = empty({q.count, k}, ScalarType::Long);
  topk_among(q, x, candidates, length, k, data<int32_t>(out), data<int64_t>(found), Call().executor);
  return {out, found};
}

}  // namespace
}  // namespace nhl::hamming

STABLE_TORCH_LIBRARY_FRAGMENT(nhl_fast, m) {
  m.def("score_vectors(Tensor queries, Tensor vectors, Tensor candidates, bool unit) -> (Tensor, bool)");
  m.def("score_codes(Tensor outputs, Tensor codes, Tensor candidates, int length) -> Tensor");
  m.def(
      "topk_among(Tensor queries, Tensor database, Tensor candidates, int k, int length) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CPU, m) {
  m.impl("score_vectors", TORCH_BOX(&nhl::hamming::score_vectors_cpu));
  m.impl("score_codes", TORCH_BOX(&nhl::hamming::score_codes_cpu));
  m.impl("topk_among", TORCH_BOX(&nhl::hamming::topk_among_cpu));
}
