// A stand-in for the CUDA runtime that runs kernels on the CPU: every CUDA thread is a fiber, the blocks of a grid run
// one after another, and a thread runs until it meets a barrier or a warp-wide operation. Only what csrc/hamming/cuda uses is
// here. It shows that indices, masks, barriers and results are right; it shows nothing about speed, or about what
// needs real concurrency.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

namespace emulation {
inline int64_t most_shared = 48 * 1024;  // a launch may ask for more only after cudaFuncSetAttribute
}
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
inline cudaError_t cudaFuncSetAttribute(const void*, int, int bytes) {
  emulation::most_shared = std::max<int64_t>(emulation::most_shared, bytes);
  return bytes <= 160 * 1024 ? cudaSuccess : 1;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, int64_t) {
  *blocks = 2;
  return cudaSuccess;
}

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace emulation {

inline dim3 thread_index, block_index, block_size, grid_size;
inline uint32_t* dynamic_shared = nullptr;

// Threads that meet: the last one to arrive lets all go on. `live` counts those that have not returned.
struct Meeting {
  int live = 0, arrived = 0;
  unsigned generation = 0;
  uint64_t values[32] = {}, result[32] = {};
  void release_if_complete() {
    if (live == 0 || arrived < live) return;
    std::memcpy(result, values, sizeof values);
    arrived = 0;
    ++generation;
  }
};

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::vector<char> stack;
  bool started = false, done = false;
};

inline jmp_buf scheduler_place;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Meeting> warps;
inline Meeting block;
inline unsigned current = 0;
inline const std::function<void()>* body = nullptr;

// A fiber starts by setcontext and goes on by _longjmp, which asks nothing of the kernel.
inline void yield() {
  if (_setjmp(fibers[current]->place) == 0) _longjmp(scheduler_place, 1);
}

inline void resume(unsigned fiber) {
  current = fiber;
  if (_setjmp(scheduler_place) != 0) return;
  if (fibers[fiber]->started) _longjmp(fibers[fiber]->place, 1);
  fibers[fiber]->started = true;
  setcontext(&fibers[fiber]->context);
}

inline void meet(Meeting& meeting) {
  const unsigned generation = meeting.generation;
  ++meeting.arrived;
  meeting.release_if_complete();
  while (meeting.generation == generation) yield();
}

// Everyone in the warp gives a value and sees everyone's. Lanes that have returned left their last one.
inline const uint64_t* exchange(uint64_t value) {
  Meeting& warp = warps[current / 32];
  warp.values[current % 32] = value;
  meet(warp);
  return warp.result;
}

// The same for a value of several words.
template <class T>
std::array<T, 32> exchange_all(const T& value) {
  static_assert(sizeof(T) % 8 == 0);
  std::array<T, 32> all;
  for (size_t at = 0; at < sizeof(T); at += 8) {
    uint64_t part;
    std::memcpy(&part, reinterpret_cast<const char*>(&value) + at, 8);
    const uint64_t* parts = exchange(part);
    for (int lane = 0; lane < 32; ++lane) std::memcpy(reinterpret_cast<char*>(&all[lane]) + at, parts + lane, 8);
  }
  return all;
}

inline void run_fiber() {
  (*body)();
  fibers[current]->done = true;
  for (Meeting* meeting : {&warps[current / 32], &block}) {
    --meeting->live;
    meeting->release_if_complete();
  }
  yield();
}

inline void launch(dim3 grid, dim3 threads, int64_t shared_bytes, cudaStream_t, const std::function<void()>& kernel) {
  if (shared_bytes > most_shared || grid.y > 65535 || grid.x == 0 || grid.y == 0) {
    std::fprintf(stderr, "a launch that CUDA would refuse\n");
    std::abort();
  }
  // An exact allocation, filled with rubbish: reads of what was not set, or too far, don't go unnoticed.
  std::unique_ptr<void, decltype(&std::free)> shared(std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16 + 16), std::free);
  dynamic_shared = static_cast<uint32_t*>(shared.get());
  body = &kernel;
  grid_size = grid;
  block_size = threads;
  while (fibers.size() < threads.x) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack.resize(128 * 1024);
  }
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      block_index = dim3(x, y);
      std::memset(shared.get(), 0xa5, shared_bytes);
      warps.assign((threads.x + 31) / 32, Meeting{});
      block = Meeting{};
      block.live = static_cast<int>(threads.x);
      for (unsigned i = 0; i < threads.x; ++i) {
        Fiber& fiber = *fibers[i];
        fiber.started = fiber.done = false;
        ++warps[i / 32].live;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
      }
      for (bool running = true; running;) {
        running = false;
        for (unsigned i = 0; i < threads.x; ++i) {
          if (fibers[i]->done) continue;
          running = true;
          thread_index = dim3(i);
          resume(i);
        }
      }
    }
}

template <class T>
uint64_t to_bits(T value) {
  uint64_t out = 0;
  std::memcpy(&out, &value, sizeof value);
  return out;
}

template <class T>
T from_bits(uint64_t bits) {
  T out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::meet(emulation::block); }
inline void __syncwarp() { emulation::exchange(0); }

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint64_t* all = emulation::exchange(predicate);
  unsigned mask = 0;
  for (int i = 0; i < 32; ++i) mask |= static_cast<unsigned>(all[i] & 1) << i;
  return mask;
}

inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline void __threadfence() {}

template <class T>
unsigned __match_any_sync(unsigned, T value) {
  const uint64_t mine = emulation::to_bits(value);
  const uint64_t* all = emulation::exchange(mine);
  unsigned mask = 0;
  for (int i = 0; i < 32; ++i) mask |= static_cast<unsigned>(all[i] == mine) << i;
  return mask;
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value))[lane]);
}

template <class T>
T __shfl_up_sync(unsigned, T value, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value))[lane < step ? lane : lane - step]);
}

template <class T>
T __shfl_down_sync(unsigned, T value, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value))[lane + step > 31 ? lane : lane + step]);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value))[lane ^ mask]);
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << by % 32 >> 32);
}
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }

template <class T>
T __ldg(const T* p) {
  return *p;
}

template <class T>
T __ldcg(const T* p) {
  return *p;
}

template <class T>
T atomicAdd(T* p, T value) {
  const T before = *p;
  *p += value;
  return before;
}

template <class T>
T atomicOr(T* p, T value) {
  const T before = *p;
  *p |= value;
  return before;
}

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return a < b ? a : b;
}

template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
