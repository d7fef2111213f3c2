// Shared by the programs that drive the native code under sanitizers.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "common/isa.h"

inline std::mt19937_64 generator(1);

inline int64_t random(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

inline void in_threads(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back([=] { body(i, i + 1, context); });
  for (auto& thread : threads) thread.join();
}

// body() at every instruction level of this machine.
template <class Body>
void at_every_level(int64_t rounds, const Body& body) {
  for (const char* isa : {"scalar", "avx2", "avx512", "neon"}) {
    setenv("NHL_FAST_CPU_ISA", isa, 1);
    try {
      nhl::active_isa();
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", isa, error.what());
      continue;
    }
    body();
    std::printf("%s: %lld rounds\n", isa, static_cast<long long>(rounds));
  }
}
