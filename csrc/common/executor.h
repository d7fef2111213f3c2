// How work is shared among threads, and how a long call is given up.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <thread>

namespace nhl {

// A long call that is given up.
struct Stopped : std::runtime_error {
  Stopped() : std::runtime_error("nhl_fast: the call was stopped") {}
};

// Whether a call is to go on: its own thread asks `stop` a few times a second, and all its threads hear the answer.
class Watch {
 public:
  explicit Watch(bool (*stop)()) : stop_(stop), owner_(std::this_thread::get_id()), next_(Clock::now() + kPause) {}
  Watch(const Watch&) = delete;

  // Throws Stopped. Work that takes longer than a few milliseconds calls it in between.
  void check() {
    if (stopped_.load(std::memory_order_relaxed)) throw Stopped();
    if (std::this_thread::get_id() != owner_ || Clock::now() < next_) return;
    if (stop_()) {
      stopped_.store(true, std::memory_order_relaxed);
      throw Stopped();
    }
    next_ = Clock::now() + kPause;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPause{100};
  bool (*stop_)();
  std::thread::id owner_;
  Clock::time_point next_;
  std::atomic<bool> stopped_{false};
};

// How to run work in parallel: `parallel(count, body, context)` calls body over sub-ranges of [0, count), the first
// of them on the calling thread.
struct Executor {
  int64_t threads;
  void (*parallel)(int64_t count, void (*body)(int64_t, int64_t, void*), void* context);
  Watch* watch = nullptr;

  void check() const {
    if (watch != nullptr) watch->check();
  }
};

// Runs body(unit, scratch) for every unit in [0, units): each thread makes one scratch and takes the next unit
// when it is free, so that a slow core does not hold up the rest. What a unit throws ends the work and is thrown on.
template <class MakeScratch, class Body>
void run_units(const Executor& executor, int64_t units, const MakeScratch& make_scratch, const Body& body) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  const auto worker = [&] {
    try {
      int64_t unit = next.fetch_add(1, std::memory_order_relaxed);
      if (unit >= units) return;
      auto scratch = make_scratch();
      for (; unit < units; unit = next.fetch_add(1, std::memory_order_relaxed)) {
        body(unit, *scratch);
        executor.check();
      }
    } catch (...) {
      // An exception must not leave a thread's work: OpenMP would end the process.
      next.store(units, std::memory_order_relaxed);
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
  const int64_t workers = std::min(executor.threads, units);
  if (workers <= 1)
    worker();
  else
    executor.parallel(
        workers,
        [](int64_t begin, int64_t end, void* context) {
          for (int64_t i = begin; i < end; ++i) (*static_cast<decltype(&worker)>(context))();
        },
        const_cast<void*>(static_cast<const void*>(&worker)));
  if (failure) std::rethrow_exception(failure);
}

struct NoScratch {};
inline std::unique_ptr<NoScratch> no_scratch() { return std::make_unique<NoScratch>(); }

}  // namespace nhl
