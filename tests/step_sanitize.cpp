// Drives the CPU training step through its raw-pointer contract, for a build with sanitizers. Every buffer is an
// allocation of exactly the size it needs; the numbers must be finite, and the same to the last bit on one thread and
// on several. What they should be is tested in tests/test_native_step.py. Returns 0 when all is well.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>

#include "sanitize.h"
#include "step/step.h"

namespace {

using namespace nhl::step;
using Floats = std::vector<float>;

Floats normal(int64_t count) {
  Floats out(count);
  for (float& x : out) x = std::normal_distribution<float>()(generator);
  return out;
}

Floats uniform(int64_t count) {
  Floats out(count);
  for (float& x : out) x = std::uniform_real_distribution<float>()(generator);
  return out;
}

Floats signs(int64_t count) {
  Floats out(count);
  for (float& x : out) x = random(0, 1) ? 1.0f : -1.0f;
  return out;
}

[[noreturn]] void fail(const char* what, const char* where) {
  std::fprintf(stderr, "%s: %s\n", where, what);
  std::exit(1);
}

// Ids or flags of `rows` rows.
struct Classes {
  Classes(int64_t rows, int64_t classes, bool multi) : classes(classes) {
    if (multi) {
      flags.resize(rows * classes);
      for (auto& flag : flags) flag = random(0, 3) == 0;
    } else {
      ids.resize(rows);
      for (auto& id : ids) id = random(0, classes - 1);
    }
  }
  Labels labels() const { return flags.empty() ? Labels{ids.data(), nullptr, 0} : Labels{nullptr, flags.data(), classes}; }
  int64_t classes;
  std::vector<int64_t> ids;
  std::vector<uint8_t> flags;
};

// body(loss, executor) on one thread and on three.
template <class Body>
Floats both(const char* name, const Batch& batch, const Body& body) {
  int64_t width = 0;
  for (int64_t b : batch.lengths) width += b;
  const auto m = static_cast<int64_t>(batch.lengths.size());
  Floats first;
  for (int64_t threads : {1, 3}) {
    Floats values(m), deltas(batch.n * width);
    body(Loss{values.data(), deltas.data()}, nhl::Executor{threads, in_threads});
    for (float x : values)
      if (!std::isfinite(x)) fail("a value is not finite", name);
    for (float x : deltas)
      if (!std::isfinite(x)) fail("a gradient is not finite", name);
    if (threads == 1)
      first = deltas;
    else if (std::memcmp(first.data(), deltas.data(), first.size() * sizeof(float)) != 0)
      fail("three threads differ from one", name);
  }
  return first;
}

void losses(const Batch& batch, int64_t classes, bool multi) {
  const float none = std::numeric_limits<float>::infinity();
  int64_t width = 0;
  for (int64_t b : batch.lengths) width += b;
  const Classes own(batch.n, classes, multi), theirs(random(1, 400), classes, multi);
  const auto count = static_cast<int64_t>(multi ? theirs.flags.size() / classes : theirs.ids.size());
  const Floats rows = normal(count * batch.lengths.back());
  std::vector<uint8_t> written(count);
  for (auto& mark : written) mark = random(0, 4) > 0;
  // Of rows with weights, some have soft labels.
  const bool soft = batch.weights != nullptr && random(0, 1);
  const Floats own_soft = uniform(batch.n * classes), their_soft = uniform(count * classes), weights = uniform(count);
  const Labels labels = soft ? Labels{nullptr, nullptr, classes, own_soft.data()} : own.labels();
  const Bank bank{rows.data(), written.data(), count,
                  soft ? Labels{nullptr, nullptr, classes, their_soft.data()} : theirs.labels(), weights.data()};
  const Floats centers = signs(classes * width), each = signs(batch.n * width);

  for (int kind = 0; kind < static_cast<int>(CenterFunction::kinds); ++kind)
    both(kCenterFunctions[kind], batch, [&](const Loss& out, const nhl::Executor& e) {
      center(static_cast<CenterFunction>(kind), batch, multi ? each.data() : centers.data(),
             multi ? nullptr : own.ids.data(), batch.weights != nullptr, 0.3f, out, e);
    });
  const float cap = random(0, 1) ? 0.99f : none;
  const std::vector<float> constants[] = {{2.0f}, {}, {3.0f, 50.0f}, {20.0f, cap}, {}, {5.0f, 0.1f},
                                          std::vector<float>(batch.lengths.size(), 0.1f)};
  static_assert(std::size(constants) == static_cast<size_t>(PairFunction::kinds));
  for (int kind = 0; kind < static_cast<int>(PairFunction::kinds); ++kind) {
    PairTerm term{static_cast<PairFunction>(kind), constants[kind]};
    term.weigh = static_cast<Weigh>(random(0, 2));
    term.over = static_cast<Over>(random(0, 1));
    term.clamp = random(0, 1) ? 1.0f : none;
    term.near = 0.7f;
    term.far = 1.4f;
    auto penalty = static_cast<Penalty>(random(0, static_cast<int64_t>(Penalty::none)));
    if (penalty == Penalty::cauchy && term.function != PairFunction::cauchy) penalty = Penalty::balance;
    const Bank* const against = random(0, 1) ? &bank : nullptr;
    both(kPairFunctions[kind], batch, [&](const Loss& out, const nhl::Executor& e) {
      pairs(batch, labels, against, term, {penalty, 0.1f}, out, e);
    });
  }
  both("triplets", batch, [&](const Loss& out, const nhl::Executor& e) {
    triplets(batch, labels, {5.0f, -100.0f, 50.0f}, {Penalty::sign, 1.0f}, out, e);
  });
  for (int kind = 0; kind < static_cast<int>(SoftmaxFunction::kinds); ++kind)
    both(kSoftmaxFunctions[kind], batch, [&](const Loss& out, const nhl::Executor& e) {
      const SoftmaxTerm term{static_cast<SoftmaxFunction>(kind), centers.data(), classes, 0.3f, 0.1};
      softmax(batch, labels, term, {Penalty::square, 1e-4f}, out, e);
    });
  const Floats rows_of_classes = normal(classes * width);
  for (int kind = 0; kind < static_cast<int>(ClassifierFunction::kinds); ++kind) {
    Floats alone;  // slopes of one thread
    both(kClassifierFunctions[kind], batch, [&](const Loss& out, const nhl::Executor& e) {
      const ClassifierTerm term{static_cast<ClassifierFunction>(kind), rows_of_classes.data(), classes};
      Floats slopes(classes * width);
      classifier(batch, labels, term, {Penalty::cube, 0.1f}, out, slopes.data(), e);
      if (!all_finite(slopes.data(), classes * width)) fail("not finite", "the classifier's slopes");
      if (e.threads == 1) alone = slopes;
      if (slopes != alone) fail("three threads differ from one", "the classifier's slopes");
    });
  }
  if (batch.n < 2) return;
  const int64_t d = random(1, 40);
  const Floats vectors = normal(batch.n * d), scales(batch.lengths.size(), 3.0f);
  std::vector<int64_t> ids(batch.n);
  for (int64_t& id : ids) id = random(0, batch.n);
  for (const auto function : {ListwiseFunction::divergence, ListwiseFunction::views})
    both(kListwiseFunctions[static_cast<int>(function)], batch, [&](const Loss& out, const nhl::Executor& e) {
      Floats slopes(batch.lengths.size());
      listwise(batch, {function, 0.1f, scales.data(), vectors.data(), d, ids.data()}, out, slopes.data(), e);
      if (!all_finite(slopes.data(), static_cast<int64_t>(slopes.size()))) fail("not finite", "the scales' slopes");
    });
}

void head(const Batch& batch, int64_t d) {
  const int64_t n = batch.n, bits = batch.lengths.back(), m = static_cast<int64_t>(batch.lengths.size());
  int64_t width = 0;
  for (int64_t b : batch.lengths) width += b;
  const nhl::Executor executor{random(1, 3), in_threads};
  const Floats features = normal(n * d), weight = normal(bits * d), bias = normal(bits);
  Floats u(n * bits), gram(n * n);
  project(features.data(), n, d, weight.data(), bias.data(), bits, u.data(), gram.data(), executor);
  const Floats values = normal(m), deltas = normal(n * width), fixed = normal(m);
  for (int way = 0; way < 3; ++way) {
    float total;
    Floats distill(m), weights(m), dots(m * m), du(n * bits);
    Combine step{};
    step.features = features.data();
    step.d = d;
    step.gram = way == 0 ? gram.data() : nullptr;
    step.fixed = way == 2 ? fixed.data() : nullptr;
    step.distill_weight = 0.5f;
    step.values = values.data();
    step.deltas = deltas.data();
    step.total = &total;
    step.distill = distill.data();
    step.weights = weights.data();
    step.dots = dots.data();
    step.du = du.data();
    combine(batch, step, executor);
    if (!std::isfinite(total) || !all_finite(du.data(), n * bits)) fail("not finite", "combine");
    Floats df(n * d), dw(bits * d), db(bits);
    project_back(2.0f, du.data(), n, bits, features.data(), d, weight.data(), way == 1 ? nullptr : df.data(),
                 way == 2 ? nullptr : dw.data(), way == 2 ? nullptr : db.data(), executor);
    if (!all_finite(df.data(), n * d) || !all_finite(dw.data(), bits * d)) fail("not finite", "project_back");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 20;
  at_every_level(rounds, [&] {
    for (int64_t round = 0; round < rounds; ++round) {
      Lengths lengths{random(1, 20)};
      while (static_cast<int64_t>(lengths.size()) < random(1, 5)) lengths.push_back(lengths.back() + random(1, 70));
      const int64_t n = round % 5 ? random(1, 40) : random(60, 140);
      const Floats u = normal(n * lengths.back());
      const Floats weights = uniform(n);
      const Batch batch{u.data(), n, lengths, random(0, 1) ? static_cast<float>(random(1, 300)) : 0.0f,
                        random(0, 1) ? weights.data() : nullptr};
      losses(batch, random(2, 70), random(0, 1));
      head(batch, round % 5 ? random(1, 90) : random(250, 600));
    }
  });
  return 0;
}
