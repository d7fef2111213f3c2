// The training step's operators: schemas, checks, and tensors to raw pointers. Stable ABI only.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>
#include <tuple>

#include "../step/step.h"
#include "call.h"
#include "tensors.h"

namespace nhl::step {
namespace {

using Pair = std::tuple<Tensor, Tensor>;
using Doubles = std::vector<double>;

Tensor empty(const Ints& sizes) { return nhl::empty(sizes, ScalarType::Float); }

void check_matrix(const Tensor& t, ScalarType type, const char* name, const char* what) {
  STD_TORCH_CHECK(t.dim() == 2 && t.scalar_type() == type && t.is_contiguous(), name, ": expected contiguous ", what,
                  " with two dimensions");
}

const float* matrix(const Tensor& t, int64_t rows, int64_t cols, const char* name) {
  check_matrix(t, ScalarType::Float, name, "float32 numbers");
  STD_TORCH_CHECK((rows < 0 || t.size(0) == rows) && (cols < 0 || t.size(1) == cols), name, ": expected ", rows, " x ",
                  cols, " numbers, got ", t.size(0), " x ", t.size(1));
  return const_data<float>(t);
}

template <class T>
const T* column(const Tensor& t, int64_t size, ScalarType type, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == type && t.is_contiguous() && t.size(0) == size, name,
                  ": expected ", size, " contiguous numbers of another dtype or shape");
  return const_data<T>(t);
}

Batch batch_of(const Tensor& u, const Ints& lengths, double reference_bits = 0) {
  check_lengths(lengths);
  const float* const data = matrix(u, -1, lengths.back(), "u");
  STD_TORCH_CHECK(u.size(0) >= 1, "u: expected at least one row");
  STD_TORCH_CHECK(reference_bits >= 0 && std::isfinite(reference_bits),
                  "reference_bits: expected a finite number of at least 0, got ", reference_bits);
  return {data, u.size(0), lengths, static_cast<float>(reference_bits)};
}

// The batch with its rows' weights; where labels are soft there have to be some.
void weigh_rows(Batch& batch, const Labels& labels, const std::optional<Tensor>& weights) {
  if (weights) batch.weights = column<float>(*weights, batch.n, ScalarType::Float, "weights");
  STD_TORCH_CHECK(weights || labels.soft == nullptr, "weights: expected those of the rows where labels are float32 rows");
}

Labels labels_of(const Tensor& labels, int64_t rows, const char* name) {
  if (labels.dim() == 1) return {column<int64_t>(labels, rows, ScalarType::Long, name), nullptr, 0};
  if (labels.scalar_type() == ScalarType::Float)
    return {nullptr, nullptr, labels.size(1), matrix(labels, rows, -1, name)};
  check_matrix(labels, ScalarType::Bool, name, "bool rows");
  STD_TORCH_CHECK(labels.size(0) == rows, name, ": expected ", rows, " rows, got ", labels.size(0));
  return {nullptr, const_data<uint8_t>(labels), labels.size(1)};
}

Bank bank_of(const Tensor& u, const Tensor& labels, const std::optional<Tensor>& written, const Batch& batch,
             const Labels& own) {
  const float* const data = matrix(u, -1, batch.lengths.back(), "bank");
  const Labels theirs = labels_of(labels, u.size(0), "bank_labels");
  STD_TORCH_CHECK((own.ids == nullptr) == (theirs.ids == nullptr) && (own.soft == nullptr) == (theirs.soft == nullptr) &&
                      own.classes == theirs.classes,
                  "bank_labels: expected the form of labels");
  const auto* const marks = written ? column<uint8_t>(*written, u.size(0), ScalarType::Bool, "written") : nullptr;
  return {data, marks, u.size(0), theirs};
}

// Values and deltas of a loss, as tensors and as pointers.
struct Made {
  explicit Made(const Batch& batch) {
    int64_t width = 0;
    for (int64_t b : batch.lengths) width += b;
    values = empty({static_cast<int64_t>(batch.lengths.size())});
    deltas = empty({batch.n, width});
    loss = {data<float>(values), data<float>(deltas)};
  }
  Pair result() const { return {values, deltas}; }
  Tensor values, deltas;
  Loss loss;
};

float number(double x) { return static_cast<float>(x); }

bool finite(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(), "x: expected contiguous float32 numbers");
  return all_finite(const_data<float>(x), x.numel());
}

Pair project_cpu(const Tensor& features, const Tensor& weight, const Tensor& bias, bool want_gram) {
  const float* const f = matrix(features, -1, -1, "features");
  const int64_t n = features.size(0), d = features.size(1), bits = weight.size(0);
  const float* const w = matrix(weight, -1, d, "weight");
  const auto* const c = column<float>(bias, bits, ScalarType::Float, "bias");
  Tensor u = empty({n, bits}), gram = empty({want_gram ? n : 0, want_gram ? n : 0});
  project(f, n, d, w, c, bits, data<float>(u), want_gram ? data<float>(gram) : nullptr, Call().executor);
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
  project_back(*const_data<float>(scale), g, n, bits, f, d, w, need_features ? data<float>(df) : nullptr,
               need_weight ? data<float>(dw) : nullptr, need_weight ? data<float>(db) : nullptr, Call().executor);
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
  step.total = data<float>(total);
  step.distill = data<float>(distill);
  step.weights = data<float>(weights);
  step.dots = data<float>(dots);
  step.du = data<float>(du);
  combine(batch, step, Call().executor);
  return {total, distill, weights, dots, du};
}

template <size_t N>
std::string joined(const char* const (&names)[N]) {
  std::string out;
  for (const char* name : names) out += std::string(out.empty() ? "" : ", ") + name;
  return out;
}

// The place of a name in a list of them.
template <class Enum, size_t N>
Enum named(const std::string& name, const char* const (&names)[N], const char* argument) {
  for (size_t i = 0; i < N; ++i)
    if (name == names[i]) return static_cast<Enum>(i);
  STD_TORCH_CHECK(false, argument, ": expected one of ", joined(names), ", got ", name);
}

std::vector<float> constants_of(const Doubles& given, size_t wanted, const std::string& function) {
  STD_TORCH_CHECK(given.size() == wanted, "constants: ", function, " takes ", wanted, ", got ", given.size());
  return {given.begin(), given.end()};
}

constexpr const char* kTripletFunctions[] = {"logistic"};

// Penalties whose constants are those of the pairs serve there alone.
PenaltyTerm penalty_of(const std::string& name, double weight, bool pairs) {
  const auto kind = named<Penalty>(name, kPenalties, "penalty");
  STD_TORCH_CHECK(pairs || kind != Penalty::cauchy, "penalty: cauchy takes the constants of the pair function cauchy");
  return {kind, number(weight)};
}

Pair center_cpu(const Tensor& u, const Tensor& centers, const std::optional<Tensor>& ids, Ints lengths,
                StringHandle function, Doubles constants, const std::optional<Tensor>& weights, bool between) {
  const std::string name = text(function);
  const auto which = named<CenterFunction>(name, kCenterFunctions, "function");
  Batch batch = batch_of(u, lengths);
  weigh_rows(batch, {}, weights);
  const Made made(batch);
  const float* const c = matrix(centers, ids ? -1 : batch.n, made.deltas.size(1), "centers");
  const auto* const rows = ids ? column<int64_t>(*ids, batch.n, ScalarType::Long, "ids") : nullptr;
  for (int64_t i = 0; ids && i < batch.n; ++i)
    STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < centers.size(0), "ids: expected rows of centers");
  center(which, batch, c, rows, between, constants_of(constants, 1, name)[0], made.loss, Call().executor);
  return made.result();
}

Pair pairs_cpu(const Tensor& u, const Tensor& labels, const std::optional<Tensor>& bank_u,
               const std::optional<Tensor>& bank_labels, const std::optional<Tensor>& written, Ints lengths,
               StringHandle function, Doubles constants, StringHandle penalty, double penalty_weight,
               StringHandle weigh, StringHandle over, double clamp, double reference_bits,
               const std::optional<Tensor>& weights, const std::optional<Tensor>& bank_weights, double near, double far) {
  const std::string name = text(function), penalty_name = text(penalty), weigh_name = text(weigh),
                    over_name = text(over);
  PairTerm term{named<PairFunction>(name, kPairFunctions, "function"), {}};
  term.constants = constants_of(constants, step::constants_of(term.function, lengths.size()), name);
  term.weigh = named<Weigh>(weigh_name, kWeighs, "weigh");
  term.over = named<Over>(over_name, kOvers, "over");
  term.clamp = number(clamp);
  STD_TORCH_CHECK(clamp > 0, "clamp: expected a number above 0 (infinity for none), got ", clamp);
  const PenaltyTerm on_outputs = penalty_of(penalty_name, penalty_weight, term.function == PairFunction::cauchy);
  STD_TORCH_CHECK(reference_bits == 0 || geometry_of(term.function) == Geometry::product,
                  "reference_bits: taken by functions of the inner product, ", name, " is none");
  Batch batch = batch_of(u, lengths, reference_bits);
  const Labels own = labels_of(labels, batch.n, "labels");
  weigh_rows(batch, own, weights);
  term.near = number(near);
  term.far = number(far);
  STD_TORCH_CHECK((weights && bank_u.has_value()) == bank_weights.has_value(),
                  "bank_weights: expected those of the bank where the rows have weights");
  STD_TORCH_CHECK(bank_u.has_value() == bank_labels.has_value() && bank_u.has_value() >= written.has_value(),
                  "bank: expected its outputs and labels, or nothing of it");
  Bank bank{};
  if (bank_u) bank = bank_of(*bank_u, *bank_labels, written, batch, own);
  if (bank_weights) bank.weights = column<float>(*bank_weights, bank.count, ScalarType::Float, "bank_weights");
  const Made made(batch);
  pairs(batch, own, bank_u ? &bank : nullptr, term, on_outputs, made.loss, Call().executor);
  return made.result();
}

Pair triplets_cpu(const Tensor& u, const Tensor& labels, Ints lengths, StringHandle function, Doubles constants,
                  StringHandle penalty, double penalty_weight, double reference_bits,
                  const std::optional<Tensor>& weights) {
  const std::string name = text(function), penalty_name = text(penalty);
  named<int>(name, kTripletFunctions, "function");
  const std::vector<float> given = constants_of(constants, 3, name);
  const PenaltyTerm on_outputs = penalty_of(penalty_name, penalty_weight, false);
  Batch batch = batch_of(u, lengths, reference_bits);
  const Labels own = labels_of(labels, batch.n, "labels");
  weigh_rows(batch, own, weights);
  const Made made(batch);
  triplets(batch, own, {given[0], given[1], given[2]}, on_outputs, made.loss, Call().executor);
  return made.result();
}

Pair softmax_cpu(const Tensor& u, const Tensor& labels, const Tensor& centers, Ints lengths, StringHandle function,
                 Doubles constants, StringHandle penalty, double penalty_weight, double reference_bits,
                 const std::optional<Tensor>& weights) {
  const std::string name = text(function), penalty_name = text(penalty);
  const auto which = named<SoftmaxFunction>(name, kSoftmaxFunctions, "function");
  const std::vector<float> given = constants_of(constants, 2, name);
  const PenaltyTerm on_outputs = penalty_of(penalty_name, penalty_weight, false);
  Batch batch = batch_of(u, lengths, reference_bits);
  const Labels own = labels_of(labels, batch.n, "labels");
  weigh_rows(batch, own, weights);
  const Made made(batch);
  const float* const c = matrix(centers, -1, made.deltas.size(1), "centers");
  STD_TORCH_CHECK(centers.size(0) >= 2 && (own.ids || own.classes == centers.size(0)),
                  "centers: expected one row a class, at least two");
  softmax(batch, own, {which, c, centers.size(0), given[0], constants[1]}, on_outputs, made.loss, Call().executor);
  return made.result();
}

std::tuple<Tensor, Tensor, Tensor> classifier_cpu(const Tensor& u, const Tensor& labels, const Tensor& classifier_of,
                                                  Ints lengths, StringHandle function, Doubles constants,
                                                  StringHandle penalty, double penalty_weight,
                                                  const std::optional<Tensor>& weights) {
  const std::string name = text(function), penalty_name = text(penalty);
  const auto which = named<ClassifierFunction>(name, kClassifierFunctions, "function");
  constants_of(constants, 0, name);
  const PenaltyTerm on_outputs = penalty_of(penalty_name, penalty_weight, false);
  Batch batch = batch_of(u, lengths);
  const Labels own = labels_of(labels, batch.n, "labels");
  weigh_rows(batch, own, weights);
  const Made made(batch);
  const float* const w = matrix(classifier_of, -1, made.deltas.size(1), "classifier");
  const int64_t classes = classifier_of.size(0);
  STD_TORCH_CHECK(classes >= 2 && (own.ids || own.classes == classes),
                  "classifier: expected one row a class, at least two");
  Tensor slopes = empty({classes, made.deltas.size(1)});
  classifier(batch, own, {which, w, classes}, on_outputs, made.loss, data<float>(slopes), Call().executor);
  return {made.values, made.deltas, slopes};
}

std::tuple<Tensor, Tensor, Tensor> listwise_cpu(const Tensor& u, const Tensor& targets, const Tensor& scales,
                                                Ints lengths, StringHandle function, Doubles constants) {
  const std::string name = text(function);
  ListwiseTerm term{named<ListwiseFunction>(name, kListwiseFunctions, "function"), 0, nullptr, nullptr, 0, nullptr};
  term.constant = constants_of(constants, 1, name)[0];
  const Batch batch = batch_of(u, lengths);
  STD_TORCH_CHECK(batch.n >= 2, "u: expected at least two rows, which are compared");
  term.scales = column<float>(scales, static_cast<int64_t>(lengths.size()), ScalarType::Float, "scales");
  if (term.function == ListwiseFunction::divergence) {
    STD_TORCH_CHECK(term.constant > 0, "constants: expected a temperature above 0, got ", term.constant);
    term.vectors = matrix(targets, batch.n, -1, "targets");
    term.width = targets.size(1);
    STD_TORCH_CHECK(term.width >= 1, "targets: expected vectors of at least one number");
  } else {
    term.ids = column<int64_t>(targets, batch.n, ScalarType::Long, "targets");
  }
  const Made made(batch);
  Tensor slopes = empty({static_cast<int64_t>(lengths.size())});
  listwise(batch, term, made.loss, data<float>(slopes), Call().executor);
  return {made.values, made.deltas, slopes};
}

// What a body has, for checks before it is called.
std::string functions(StringHandle body) {
  const std::string name = text(body);
  if (name == "center") return joined(kCenterFunctions);
  if (name == "pairs") return joined(kPairFunctions);
  if (name == "triplets") return joined(kTripletFunctions);
  if (name == "listwise") return joined(kListwiseFunctions);
  if (name == "classifier") return joined(kClassifierFunctions);
  STD_TORCH_CHECK(name == "softmax", "body: expected center, pairs, triplets, softmax, listwise or classifier, got ",
                  name);
  return joined(kSoftmaxFunctions);
}

}  // namespace
}  // namespace nhl::step

STABLE_TORCH_LIBRARY_FRAGMENT(nhl_fast, m) {
  m.def("step_finite(Tensor x) -> bool");
  m.def("step_project(Tensor features, Tensor weight, Tensor bias, bool want_gram) -> (Tensor, Tensor)");
  m.def(
      "step_project_back(Tensor scale, Tensor du, Tensor features, Tensor weight, bool need_features,"
      " bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def(
      "step_combine(Tensor u, Tensor features, Tensor gram, Tensor values, Tensor deltas, int[] lengths,"
      " float distill_weight, Tensor? fixed_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("step_functions(str body) -> str");
  m.def(
      "step_center(Tensor u, Tensor centers, Tensor? ids, int[] lengths, str function, float[] constants,"
      " Tensor? weights=None, bool between=False) -> (Tensor, Tensor)");
  m.def(
      "step_pairs(Tensor u, Tensor labels, Tensor? bank_u, Tensor? bank_labels, Tensor? written, int[] lengths,"
      " str function, float[] constants, str penalty, float penalty_weight, str weigh, str over, float clamp,"
      " float reference_bits, Tensor? weights=None, Tensor? bank_weights=None, float near=1, float far=1)"
      " -> (Tensor, Tensor)");
  m.def(
      "step_triplets(Tensor u, Tensor labels, int[] lengths, str function, float[] constants, str penalty,"
      " float penalty_weight, float reference_bits, Tensor? weights=None) -> (Tensor, Tensor)");
  m.def(
      "step_softmax(Tensor u, Tensor labels, Tensor centers, int[] lengths, str function, float[] constants,"
      " str penalty, float penalty_weight, float reference_bits, Tensor? weights=None) -> (Tensor, Tensor)");
  m.def(
      "step_classifier(Tensor u, Tensor labels, Tensor classifier, int[] lengths, str function, float[] constants,"
      " str penalty, float penalty_weight, Tensor? weights=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "step_listwise(Tensor u, Tensor targets, Tensor scales, int[] lengths, str function, float[] constants)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CPU, m) {
  m.impl("step_finite", TORCH_BOX(&nhl::step::finite));
  m.impl("step_project", TORCH_BOX(&nhl::step::project_cpu));
  m.impl("step_project_back", TORCH_BOX(&nhl::step::project_back_cpu));
  m.impl("step_combine", TORCH_BOX(&nhl::step::combine_cpu));
  m.impl("step_center", TORCH_BOX(&nhl::step::center_cpu));
  m.impl("step_pairs", TORCH_BOX(&nhl::step::pairs_cpu));
  m.impl("step_triplets", TORCH_BOX(&nhl::step::triplets_cpu));
  m.impl("step_softmax", TORCH_BOX(&nhl::step::softmax_cpu));
  m.impl("step_classifier", TORCH_BOX(&nhl::step::classifier_cpu));
  m.impl("step_listwise", TORCH_BOX(&nhl::step::listwise_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(nhl_fast, CompositeExplicitAutograd, m) {
  m.impl("step_functions", TORCH_BOX(&nhl::step::functions));
}
