// The CUDA side of the operators of hamming.cpp: tensors to raw pointers, on PyTorch's current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdlib>
#include <string>
#include <tuple>

#include "../hamming/cuda/device.cuh"
#include "tensors.h"

// Weak: a PyTorch built without CUDA can then load this library, and say so, instead of failing on a symbol.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace nhl::cuda {
namespace {

Tensor empty_like_device(const Tensor& like, Ints sizes, ScalarType type) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device());
}

// Makes the tensor's device current, and keeps scratch memory alive while the operator runs.
class DeviceCall {
 public:
  explicit DeviceCall(const Tensor& like) : guard_(like.get_device_index()), like_(like) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this PyTorch was built without CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    context.stream = static_cast<cudaStream_t>(stream);
    check(cudaDeviceGetAttribute(&context.multiprocessors, cudaDevAttrMultiProcessorCount, like.get_device_index()));
    choose_scan();
    context.scratch = [this](int64_t bytes) { return take(scratch_, bytes); };
    context.zeros = [this](int64_t bytes) { return take(zeros_, bytes); };
  }
  DeviceCall(const DeviceCall&) = delete;

  Context context;

 private:
  // Binary tensor cores came with sm_80 and went with sm_90. NHL_FAST_CUDA_SCAN = mma, imma or popc asks for a unit.
  void choose_scan() {
    int major = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, like_.get_device_index()));
    const bool binary = major == 8 || major == 9;
    const char* const asked = std::getenv("NHL_FAST_CUDA_SCAN");
    const std::string name = asked == nullptr ? "" : asked;
    context.scan_is_forced = !name.empty();
    if (name.empty()) {
      context.scan = binary ? Scan::mma : Scan::popc;
    } else if (name == "mma") {
      STD_TORCH_CHECK(binary, "NHL_FAST_CUDA_SCAN=mma, but this device (compute capability ", major,
                      ".x) has no binary tensor cores");
      context.scan = Scan::mma;
    } else {
      STD_TORCH_CHECK(name == "imma" || name == "popc", "NHL_FAST_CUDA_SCAN: expected mma, imma or popc, got ", name);
      context.scan = name == "imma" ? Scan::imma : Scan::popc;
    }
  }

  // Small requests share an allocation, and zeros a fill: each costs the host as much as a launch.
  struct Memory {
    int64_t block;
    bool zero;
    char* at = nullptr;
    int64_t left = 0;
  };

  void* take(Memory& memory, int64_t bytes) {
    bytes = divide_up(std::max<int64_t>(bytes, 1), 256) * 256;
    if (bytes <= memory.left) {
      void* const out = memory.at;
      memory.at += bytes, memory.left -= bytes;
      return out;
    }
    const int64_t size = std::max(bytes, memory.block);
    held_.push_back(empty_like_device(like_, {size}, ScalarType::Byte));
    auto* const data = static_cast<char*>(held_.back().mutable_data_ptr());
    if (memory.zero) check(cudaMemsetAsync(data, 0, size, context.stream));
    if (size - bytes > memory.left) memory.at = data + bytes, memory.left = size - bytes;
    return data;
  }

  torch::stable::accelerator::DeviceGuard guard_;
  Tensor like_;
  std::vector<Tensor> held_;
  Memory scratch_{1 << 18, false}, zeros_{1 << 16, true};
};

Rows rows_of(const Tensor& codes, int64_t bits, const char* name) {
  return code_rows<Rows>(codes, bits, kMaxBits, "bits on CUDA", name);
}

void check_device(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index(),
                  "expected all tensors on one CUDA device");
}

const uint8_t* mask_beside(const std::optional<Tensor>& allow, const Tensor& items) {
  if (allow) check_device(*allow, items);
  return mask_of(allow, items.size(0));
}

Tensor sorted(const Tensor& keys) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(keys), torch::stable::detail::from(int64_t{-1}),
                                    torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor order = torch::stable::detail::to<Tensor>(stack[1]);  // owned by us, not needed
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor pack_cuda(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2, "x: expected two dimensions");
  uint64_t infinity = 0;
  switch (x.scalar_type()) {
    case ScalarType::Half: infinity = 0x7c00; break;
    case ScalarType::BFloat16: infinity = 0x7f80; break;
    case ScalarType::Float: infinity = 0x7f800000; break;
    case ScalarType::Double: infinity = 0x7ff0000000000000; break;
    default: STD_TORCH_CHECK(false, "x: expected float16, bfloat16, float32 or float64");
  }
  const DeviceCall call(x);
  Tensor out = empty_like_device(x, {x.size(0), (x.size(1) + 7) / 8}, ScalarType::Byte);
  pack(x.const_data_ptr(), static_cast<int>(x.element_size()), infinity, x.size(0), x.size(1), x.stride(0),
       x.stride(1), data<uint8_t>(out), call.context);
  return out;
}

Tensor distances_cuda(const Tensor& queries, const Tensor& items, Ints lengths) {
  check_lengths(lengths);
  check_device(queries, items);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  const DeviceCall call(items);
  Tensor out = empty_like_device(items, {static_cast<int64_t>(lengths.size()), q.count, x.count}, ScalarType::Int);
  distances(q, x, lengths, data<int32_t>(out), call.context);
  return out;
}

Tensor zero_counts(const Tensor& items, const Ints& lengths, int64_t queries, const Context& context) {
  int64_t bins = 0;
  for (int64_t b : lengths) bins += b + 1;
  Tensor counts = empty_like_device(items, {2 * bins * queries}, ScalarType::Long);
  check(cudaMemsetAsync(counts.mutable_data_ptr(), 0, 16 * bins * queries, context.stream));
  return counts;
}

Tensor histograms_cuda(const Tensor& queries, const Tensor& items, const Tensor& query_labels,
                       const Tensor& item_labels, Ints lengths) {
  check_lengths(lengths);
  check_device(queries, items);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  check_device(query_labels, items);
  check_device(item_labels, items);
  const auto relevance = relevance_of<Relevance>(query_labels, item_labels, q.count, x.count);
  const DeviceCall call(items);
  Tensor counts = zero_counts(items, lengths, q.count, call.context);
  histograms(q, x, lengths, relevance, data<int64_t>(counts), call.context);
  return counts;
}

Evaluated evaluate_gains_cuda(const Tensor& queries, const Tensor& items, const Tensor& query_labels,
                              const Tensor& item_labels, Ints lengths, int64_t cutoff, Ints ranks) {
  check_lengths(lengths);
  check_device(queries, items);
  const Rows q = rows_of(queries, lengths.back(), "queries"), x = rows_of(items, lengths.back(), "database");
  STD_TORCH_CHECK(q.count > 0 && x.count > 0, "expected at least one query and one database row");
  check_device(query_labels, items);
  check_device(item_labels, items);
  const auto relevance = relevance_of<Relevance>(query_labels, item_labels, q.count, x.count);
  check_ranks(ranks, x.count);
  const auto m = static_cast<int64_t>(lengths.size()), ends = static_cast<int64_t>(ranks.size());
  const DeviceCall call(items);
  Tensor counts = zero_counts(items, lengths, q.count, call.context);
  Tensor precision = empty_like_device(items, {m, q.count}, ScalarType::Double);
  Tensor retrieved = empty_like_device(items, {m, q.count}, ScalarType::Long);
  Tensor hits = empty_like_device(items, {m, x.count}, ScalarType::Double);
  Tensor recall = empty_like_device(items, {m, x.count}, ScalarType::Double);
  Tensor sums = empty_like_device(items, {m, q.count, ends}, ScalarType::Double);
  Gains gains;
  if (ends) {
    auto* const on_device = static_cast<int64_t*>(call.context.scratch(8 * ends));
    check(cudaMemcpyAsync(on_device, ranks.data(), 8 * ends, cudaMemcpyHostToDevice, call.context.stream));
    gains = {on_device, static_cast<int>(ends), ranks.back(), data<double>(sums)};
  }
  histograms(q, x, lengths, relevance, data<int64_t>(counts), call.context);
  rank_sums(q, x, lengths, relevance, cutoff, data<int64_t>(counts), data<double>(precision),
            data<int64_t>(retrieved), data<double>(hits), data<double>(recall), gains, call.context);
  return {counts, precision, retrieved, hits, recall, sums};
}

std::tuple<Tensor, Tensor> topk_cuda(const Tensor& queries, const Tensor& items, int64_t k, int64_t length,
                                     const std::optional<Tensor>& allow, int64_t base) {
  check_device(queries, items);
  const Rows q = rows_of(queries, length, "queries"), x = rows_of(items, length, "database");
  STD_TORCH_CHECK(k >= 0, "k: expected at least 0, got ", k);
  const uint8_t* const mask = mask_beside(allow, items);
  const DeviceCall call(items);
  Tensor out = empty_like_device(items, {q.count, k}, ScalarType::Int);
  Tensor ids = empty_like_device(items, {q.count, k}, ScalarType::Long);
  if (q.count == 0 || k == 0) return {out, ids};
  if (4 * k <= call.context.candidates) {
    nearest(q, x, length, k, mask, base, data<int32_t>(out), data<int64_t>(ids), call.context);
    return {out, ids};
  }
  Tensor keys = empty_like_device(items, {q.count, k}, ScalarType::Long);
  nearest_keys(q, x, length, k, mask, data<int64_t>(keys), call.context);
  const Tensor order = sorted(keys);
  split_keys(data<int64_t>(order), q.count * k, kIdBits, length + 1, base, data<int32_t>(out), data<int64_t>(ids),
             call.context);
  return {out, ids};
}

std::tuple<Tensor, Tensor, Tensor> radius_cuda(const Tensor& queries, const Tensor& items, int64_t radius,
                                               int64_t length, const std::optional<Tensor>& allow, int64_t base) {
  check_device(queries, items);
  const Rows q = rows_of(queries, length, "queries"), x = rows_of(items, length, "database");
  STD_TORCH_CHECK(radius >= 0, "radius: expected at least 0, got ", radius);
  const uint8_t* const mask = mask_beside(allow, items);
  int id_bits = 1, key_bits = 1;
  while (x.count >> id_bits) ++id_bits;
  while (q.count * (length + 1) >> key_bits) ++key_bits;
  STD_TORCH_CHECK(id_bits + key_bits < 63, "too many queries for a database of this size; pass them in parts");
  const DeviceCall call(items);
  // One more counter in front: its running sum is the offsets.
  Tensor offsets = empty_like_device(items, {q.count + 1}, ScalarType::Long);
  auto* const counts = static_cast<int64_t*>(call.context.zeros(8 * (q.count + 1)));
  count_within(q, x, length, radius, mask, counts + 1, call.context);
  running_sum(counts, q.count + 1, data<int64_t>(offsets), call.context);
  // The one wait: the result's size is not known before.
  int64_t found = 0;
  check(cudaMemcpyAsync(&found, data<int64_t>(offsets) + q.count, 8, cudaMemcpyDeviceToHost, call.context.stream));
  check(cudaStreamSynchronize(call.context.stream));
  Tensor keys = empty_like_device(items, {found}, ScalarType::Long);
  Tensor out = empty_like_device(items, {found}, ScalarType::Int), ids = empty_like_device(items, {found}, ScalarType::Long);
  if (found == 0) return {offsets, out, ids};
  collect_within(q, x, length, radius, mask, data<int64_t>(offsets), id_bits, data<int64_t>(keys), call.context);
  const Tensor order = sorted(keys);
  split_keys(data<int64_t>(order), found, id_bits, length + 1, base, data<int32_t>(out), data<int64_t>(ids),
             call.context);
  return {offsets, out, ids};
}

Chosen chosen_of(const Tensor& ids, const Tensor& queries, const Tensor& items) {
  check_device(ids, items);
  check_device(queries, items);
  STD_TORCH_CHECK(ids.dim() == 2 && ids.size(0) == queries.size(0) && ids.scalar_type() == ScalarType::Long &&
                      ids.is_contiguous(),
                  "candidates: expected contiguous int64 ids, one row a query");
  return {const_data<int64_t>(ids), ids.size(0), ids.size(1)};
}

// Nothing waits for the device: a vector that is not finite shows as NaN.
std::tuple<Tensor, bool> score_vectors_cuda(const Tensor& queries, const Tensor& vectors, const Tensor& ids, bool unit) {
  const float* const q = float_rows(queries, "queries");
  const hamming::Number type = vectors_format(vectors, queries);
  const Chosen chosen = chosen_of(ids, queries, vectors);
  const DeviceCall call(vectors);
  Tensor out = empty_like_device(vectors, {chosen.queries, chosen.each}, ScalarType::Float);
  const Vectors rows{vectors.const_data_ptr(), type, vectors.size(0), queries.size(1), vectors.stride(0)};
  score_vectors(chosen, q, rows, unit, data<float>(out), call.context);
  return {out, true};
}

Tensor score_codes_cuda(const Tensor& outputs, const Tensor& codes, const Tensor& ids, int64_t length) {
  const float* const u = float_rows(outputs, "queries");
  const Rows rows = code_rows<Rows>(codes, length, outputs.size(1), "bits, those of the outputs", "codes");
  const Chosen chosen = chosen_of(ids, outputs, codes);
  const DeviceCall call(codes);
  Tensor out = empty_like_device(codes, {chosen.queries, chosen.each}, ScalarType::Float);
  score_codes(chosen, u, outputs.size(1), rows, length, data<float>(out), call.context);
  return out;
}

#ifndef NHL_FAST_SOURCE_HASH
#define NHL_FAST_SOURCE_HASH ""
#endif
std::string source_hash() { return NHL_FAST_SOURCE_HASH; }

}  // namespace
}  // namespace nhl::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(nhl_fast, m) { m.def("cuda_source_hash() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CompositeExplicitAutograd, m) {
  m.impl("cuda_source_hash", TORCH_BOX(&nhl::cuda::source_hash));
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CUDA, m) {
  m.impl("pack", TORCH_BOX(&nhl::cuda::pack_cuda));
  m.impl("distances", TORCH_BOX(&nhl::cuda::distances_cuda));
  m.impl("histograms", TORCH_BOX(&nhl::cuda::histograms_cuda));
  m.impl("evaluate", TORCH_BOX(&nhl::without_gains<nhl::cuda::evaluate_gains_cuda>));
  m.impl("evaluate_gains", TORCH_BOX(&nhl::cuda::evaluate_gains_cuda));
  m.impl("topk", TORCH_BOX(&nhl::cuda::topk_cuda));
  m.impl("radius", TORCH_BOX(&nhl::cuda::radius_cuda));
  m.impl("score_vectors", TORCH_BOX(&nhl::cuda::score_vectors_cuda));
  m.impl("score_codes", TORCH_BOX(&nhl::cuda::score_codes_cuda));
}
