// The training step's operators: schemas, checks, and tensors to raw pointers. Stable ABI only.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"
#include "../step/step.h"

namespace nhl::train {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;
using Pair = std::tuple<Tensor, Tensor>;

Tensor empty(Ints sizes) { return empty_tensor(sizes, ScalarType::Float); }

float* out(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

void check_matrix(const Tensor& t, ScalarType type, const char* name, const char* what) {
  STD_TORCH_CHECK(t.dim() == 2 && t.scalar_type() == type && t.is_contiguous(), name, ": expected contiguous ", what,
                  " with two dimensions");
}

const float* matrix(const Tensor& t, int64_t rows, int64_t cols, const char* name) {
  check_matrix(t, ScalarType::Float, name, "float32 numbers");
  STD_TORCH_CHECK((rows < 0 || t.size(0) == rows) && (cols < 0 || t.size(1) == cols), name, ": expected ", rows, " x ",
                  cols, " numbers, got ", t.size(0), " x ", t.size(1));
  return static_cast<const float*>(t.const_data_ptr());
}

template <class T>
const T* column(const Tensor& t, int64_t size, ScalarType type, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == type && t.is_contiguous() && t.size(0) == size, name,
                  ": expected ", size, " contiguous numbers of another dtype or shape");
  return static_cast<const T*>(t.const_data_ptr());
}

Batch batch_of(const Tensor& u, const Ints& lengths, double reference_bits = 0) {
  STD_TORCH_CHECK(!lengths.empty() && lengths[0] >= 1, "lengths: expected at least one, all positive");
  for (size_t k = 1; k < lengths.size(); ++k)
    STD_TORCH_CHECK(lengths[k - 1] < lengths[k], "lengths: expected increasing lengths");
  const float* const data = matrix(u, -1, lengths.back(), "u");
  STD_TORCH_CHECK(u.size(0) >= 1, "u: expected at least one row");
  STD_TORCH_CHECK(reference_bits >= 0 && std::isfinite(reference_bits),
                  "reference_bits: expected a finite number of at least 0, got ", reference_bits);
  return {data, u.size(0), lengths, static_cast<float>(reference_bits)};
}

Labels labels_of(const Tensor& labels, int64_t rows, const char* name) {
  if (labels.dim() == 1) return {column<int64_t>(labels, rows, ScalarType::Long, name), nullptr, 0};
  check_matrix(labels, ScalarType::Bool, name, "bool rows");
  STD_TORCH_CHECK(labels.size(0) == rows, name, ": expected ", rows, " rows, got ", labels.size(0));
  return {nullptr, static_cast<const uint8_t*>(labels.const_data_ptr()), labels.size(1)};
}

Bank bank_of(const Tensor& u, const Tensor& labels, const Tensor& written, const Batch& batch, const Labels& own) {
  const float* const data = matrix(u, -1, batch.lengths.back(), "bank");
  const Labels theirs = labels_of(labels, u.size(0), "bank_labels");
  STD_TORCH_CHECK((own.ids == nullptr) == (theirs.ids == nullptr) && own.classes == theirs.classes,
                  "bank_labels: expected the form of labels");
  return {data, column<uint8_t>(written, u.size(0), ScalarType::Bool, "written"), u.size(0), theirs};
}

// Values and deltas of a loss, as tensors and as pointers.
struct Made {
  explicit Made(const Batch& batch) {
    int64_t width = 0;
    for (int64_t b : batch.lengths) width += b;
    values = empty({static_cast<int64_t>(batch.lengths.size())});
    deltas = empty({batch.n, width});
    loss = {out(values), out(deltas)};
  }
  Pair result() const { return {values, deltas}; }
  Tensor values, deltas;
  Loss loss;
};

float number(double x) { return static_cast<float>(x); }

bool finite(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(), "x: expected contiguous float32 numbers");
  return all_finite(static_cast<const float*>(x.const_data_ptr()), x.numel());
}

bool in_range(const Tensor& x, int64_t low, int64_t high) {
  const auto* const data = column<int64_t>(x, x.numel(), ScalarType::Long, "x");
  bool ok = true;
  for (int64_t i = 0; i < x.numel(); ++i) ok &= data[i] >= low && data[i] < high;
  return ok;
}

Pair project_cpu(const Tensor& features, const Tensor& weight, const Tensor& bias, bool want_gram) {
  const float* const f = matrix(features, -1, -1, "features");
  const int64_t n = features.size(0), d = features.size(1), bits = weight.size(0);
  const float* const w = matrix(weight, -1, d, "weight");
  const auto* const c = column<float>(bias, bits, ScalarType::Float, "bias");
  Tensor u = empty({n, bits}), gram = empty({want_gram ? n : 0, want_gram ? n : 0});
  project(f, n, d, w, c, bits, out(u), want_gram ? out(gram) : nullptr, Call().executor);
  return {u, gram};
}

std::tuple<Tensor, Tensor, Tensor> project_back_cpu(const Tensor& scale, const Tensor& du, const Tensor& features,
                                                    const Tensor& weight, bool need_features, bool need_weight) {
  const float* const g = matrix(du, -1, -1, "du");
  const int64_t n = du.size(0), bits = du.size(1), d = features.size(1);
  const float* const f = matrix(features, n, -1, "features");
  const float* const w = matrix(weight, bits, d, "weight");
  STD_TORCH_CHECK(scale.numel() == 1 && scale.scalar_type() == ScalarType::Float, "scale: expected a float32 number");
  Tensor df = empty({need_features ? n : 0, need_features ? d : 0});
  Tensor dw = empty({need_weight ? bits : 0, need_weight ? d : 0}), db = empty({need_weight ? bits : 0});
  project_back(*static_cast<const float*>(scale.const_data_ptr()), g, n, bits, f, d, w,
               need_features ? out(df) : nullptr, need_weight ? out(dw) : nullptr, need_weight ? out(db) : nullptr,
               Call().executor);
  return {df, dw, db};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> combine_cpu(const Tensor& u, const Tensor& features,
                                                               const Tensor& gram, const Tensor& values,
                                                               const Tensor& deltas, Ints lengths,
                                                               double distill_weight,
                                                               const std::optional<Tensor>& fixed) {
  const Batch batch = batch_of(u, lengths);
  const auto m = static_cast<int64_t>(lengths.size());
  int64_t width = 0;
  for (int64_t b : lengths) width += b;
  Combine step{};
  step.features = matrix(features, batch.n, -1, "features");
  step.d = features.size(1);
  if (gram.numel() > 0) step.gram = matrix(gram, batch.n, batch.n, "gram");
  if (fixed) step.fixed = column<float>(*fixed, m, ScalarType::Float, "fixed_weights");
  step.distill_weight = number(distill_weight);
  step.values = column<float>(values, m, ScalarType::Float, "values");
  step.deltas = matrix(deltas, batch.n, width, "deltas");
  Tensor total = empty({}), distill = empty({m}), weights = empty({m});
  Tensor dots = empty({fixed ? 0 : m, fixed ? 0 : m}), du = empty({batch.n, lengths.back()});
  step.total = out(total);
  step.distill = out(distill);
  step.weights = out(weights);
  step.dots = out(dots);
  step.du = out(du);
  combine(batch, step, Call().executor);
  return {total, distill, weights, dots, du};
}

Pair centers_cpu(Pointwise kind, const Tensor& u, const Tensor& centers, const std::optional<Tensor>& ids,
                 const Ints& lengths, double option) {
  const Batch batch = batch_of(u, lengths);
  const Made made(batch);
  const float* const c = matrix(centers, ids ? -1 : batch.n, made.deltas.size(1), "centers");
  const auto* const rows = ids ? column<int64_t>(*ids, batch.n, ScalarType::Long, "ids") : nullptr;
  if (ids) STD_TORCH_CHECK(in_range(*ids, 0, centers.size(0)), "ids: expected rows of centers");
  pointwise(kind, batch, c, rows, number(option), made.loss, Call().executor);
  return made.result();
}

Pair csq_cpu(const Tensor& u, const Tensor& centers, const std::optional<Tensor>& ids, Ints lengths,
             double quantization) {
  return centers_cpu(Pointwise::csq, u, centers, ids, lengths, quantization);
}

Pair dpn_cpu(const Tensor& u, const Tensor& centers, const std::optional<Tensor>& ids, Ints lengths, double margin,
             bool ternary) {
  return centers_cpu(ternary ? Pointwise::dpn_ternary : Pointwise::dpn, u, centers, ids, lengths, margin);
}

Pair dsh_cpu(const Tensor& u, const Tensor& labels, const Tensor& bank, const Tensor& bank_labels,
             const Tensor& written, Ints lengths, double alpha, double margin, bool balance) {
  const Batch batch = batch_of(u, lengths);
  const Labels own = labels_of(labels, batch.n, "labels");
  const Made made(batch);
  dsh(batch, own, bank_of(bank, bank_labels, written, batch, own), number(alpha), number(margin), balance, made.loss,
      Call().executor);
  return made.result();
}

Pair dhn_cpu(const Tensor& u, const Tensor& labels, const Tensor& bank, const Tensor& bank_labels,
             const Tensor& written, Ints lengths, double alpha, double reference_bits, bool balance) {
  const Batch batch = batch_of(u, lengths, reference_bits);
  const Labels own = labels_of(labels, batch.n, "labels");
  const Made made(batch);
  dhn(batch, own, bank_of(bank, bank_labels, written, batch, own), number(alpha), balance, made.loss, Call().executor);
  return made.result();
}

Pair dbdh_cpu(const Tensor& u, const Tensor& labels, const Tensor& bank, const Tensor& bank_labels,
              const Tensor& written, Ints lengths, double alpha, double clamp, double reference_bits, bool balance) {
  const Batch batch = batch_of(u, lengths, reference_bits);
  const Labels own = labels_of(labels, batch.n, "labels");
  const Made made(batch);
  dbdh(batch, own, bank_of(bank, bank_labels, written, batch, own), number(alpha), number(clamp), balance,
       made.loss, Call().executor);
  return made.result();
}

Pair lcdsh_cpu(const Tensor& u, const Tensor& labels, Ints lengths, double eta, double clamp, double reference_bits) {
  const Batch batch = batch_of(u, lengths, reference_bits);
  const Made made(batch);
  lcdsh(batch, labels_of(labels, batch.n, "labels"), number(eta), number(clamp), made.loss, Call().executor);
  return made.result();
}

Pair dch_cpu(const Tensor& u, const Tensor& labels, Ints lengths, double gamma, double quantization,
             double max_cosine) {
  const Batch batch = batch_of(u, lengths);
  const Made made(batch);
  dch(batch, labels_of(labels, batch.n, "labels"), number(gamma), number(quantization), number(max_cosine), made.loss,
      Call().executor);
  return made.result();
}

Pair dtsh_cpu(const Tensor& u, const Tensor& labels, Ints lengths, double margin, double quantization, double low,
              double high, double reference_bits) {
  const Batch batch = batch_of(u, lengths, reference_bits);
  const Made made(batch);
  dtsh(batch, labels_of(labels, batch.n, "labels"), number(margin), number(quantization), number(low), number(high),
       made.loss, Call().executor);
  return made.result();
}

Pair center_softmax_cpu(const Tensor& u, const Tensor& labels, const Tensor& centers, Ints lengths, double scale,
                        double negative_weight, double quantization, double reference_bits,
                        const std::optional<Tensor>& bank, const std::optional<Tensor>& bank_labels,
                        const std::optional<Tensor>& written) {
  const Batch batch = batch_of(u, lengths, reference_bits);
  const Labels own = labels_of(labels, batch.n, "labels");
  const Made made(batch);
  const float* const c = matrix(centers, -1, made.deltas.size(1), "centers");
  STD_TORCH_CHECK(centers.size(0) >= 2 && (own.ids || own.classes == centers.size(0)),
                  "centers: expected one row a class, at least two");
  center_softmax(batch, own, c, centers.size(0), number(scale), number(negative_weight), number(quantization),
                 made.loss, Call().executor);
  if (bank) {
    STD_TORCH_CHECK(bank_labels && written, "bank: expected its labels and marks, too");
    attraction(batch, own, bank_of(*bank, *bank_labels, *written, batch, own), made.loss, Call().executor);
  }
  return made.result();
}

}  // namespace
}  // namespace nhl::train

STABLE_TORCH_LIBRARY_FRAGMENT(nhl_fast, m) {
  m.def("step_finite(Tensor x) -> bool");
  m.def("step_in_range(Tensor x, int low, int high) -> bool");
  m.def("step_project(Tensor features, Tensor weight, Tensor bias, bool want_gram) -> (Tensor, Tensor)");
  m.def(
      "step_project_back(Tensor scale, Tensor du, Tensor features, Tensor weight, bool need_features,"
      " bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def(
      "step_combine(Tensor u, Tensor features, Tensor gram, Tensor values, Tensor deltas, int[] lengths,"
      " float distill_weight, Tensor? fixed_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("step_csq(Tensor u, Tensor centers, Tensor? ids, int[] lengths, float quantization) -> (Tensor, Tensor)");
  m.def(
      "step_dpn(Tensor u, Tensor centers, Tensor? ids, int[] lengths, float margin, bool ternary)"
      " -> (Tensor, Tensor)");
  m.def(
      "step_dsh(Tensor u, Tensor labels, Tensor bank, Tensor bank_labels, Tensor written, int[] lengths,"
      " float alpha, float margin, bool balance) -> (Tensor, Tensor)");
  m.def(
      "step_dhn(Tensor u, Tensor labels, Tensor bank, Tensor bank_labels, Tensor written, int[] lengths,"
      " float alpha, float reference_bits, bool balance) -> (Tensor, Tensor)");
  m.def(
      "step_dbdh(Tensor u, Tensor labels, Tensor bank, Tensor bank_labels, Tensor written, int[] lengths,"
      " float alpha, float clamp, float reference_bits, bool balance) -> (Tensor, Tensor)");
  m.def(
      "step_lcdsh(Tensor u, Tensor labels, int[] lengths, float eta, float clamp, float reference_bits)"
      " -> (Tensor, Tensor)");
  m.def(
      "step_dch(Tensor u, Tensor labels, int[] lengths, float gamma, float quantization, float max_cosine)"
      " -> (Tensor, Tensor)");
  m.def(
      "step_dtsh(Tensor u, Tensor labels, int[] lengths, float margin, float quantization, float low, float high,"
      " float reference_bits) -> (Tensor, Tensor)");
  m.def(
      "step_center_softmax(Tensor u, Tensor labels, Tensor centers, int[] lengths, float scale,"
      " float negative_weight, float quantization, float reference_bits, Tensor? bank=None, Tensor? bank_labels=None,"
      " Tensor? written=None) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CPU, m) {
  m.impl("step_finite", TORCH_BOX(&nhl::train::finite));
  m.impl("step_in_range", TORCH_BOX(&nhl::train::in_range));
  m.impl("step_project", TORCH_BOX(&nhl::train::project_cpu));
  m.impl("step_project_back", TORCH_BOX(&nhl::train::project_back_cpu));
  m.impl("step_combine", TORCH_BOX(&nhl::train::combine_cpu));
  m.impl("step_csq", TORCH_BOX(&nhl::train::csq_cpu));
  m.impl("step_dpn", TORCH_BOX(&nhl::train::dpn_cpu));
  m.impl("step_dsh", TORCH_BOX(&nhl::train::dsh_cpu));
  m.impl("step_dhn", TORCH_BOX(&nhl::train::dhn_cpu));
  m.impl("step_dbdh", TORCH_BOX(&nhl::train::dbdh_cpu));
  m.impl("step_lcdsh", TORCH_BOX(&nhl::train::lcdsh_cpu));
  m.impl("step_dch", TORCH_BOX(&nhl::train::dch_cpu));
  m.impl("step_dtsh", TORCH_BOX(&nhl::train::dtsh_cpu));
  m.impl("step_center_softmax", TORCH_BOX(&nhl::train::center_softmax_cpu));
}
