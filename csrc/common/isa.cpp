// Which instruction set serves: cpuid says what the processor has, xgetbv what the system saves.
#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace nhl {
namespace {

bool has(unsigned features, std::initializer_list<int> bits) {
  return std::all_of(bits.begin(), bits.end(), [=](int bit) { return features >> bit & 1; });
}

Isa detect() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::scalar;
  const bool osxsave = c >> 27 & 1, popcnt = c >> 23 & 1;
  if (!popcnt) throw std::runtime_error("nhl_fast: this processor has no popcnt instruction (x86-64-v2)");
  if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::scalar;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6;
  const bool avx2 = b >> 5 & 1;
  // F, DQ, BW, VL and BMI1, BMI2; VBMI, VBMI2, GFNI, VNNI, VPOPCNTDQ: since Ice Lake and Zen 4.
  const bool avx512 = has(b, {16, 17, 30, 31, 3, 8}) && has(c, {1, 6, 8, 11, 14});
  if (zmm && avx2 && avx512) return Isa::avx512;
  if (ymm && avx2) return Isa::avx2;
#elif defined(__aarch64__)
  return Isa::neon;
#endif
  return Isa::scalar;
}

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "neon"};

}  // namespace

bool isa_available(Isa isa) {
  const Isa best = best_isa();
  return isa == Isa::scalar || isa == best || (isa == Isa::avx2 && best == Isa::avx512);
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa active_isa() {
  const char* wanted = std::getenv("NHL_FAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_isa();
  for (int i = 0; i < 4; ++i) {
    if (std::string(wanted) != kNames[i]) continue;
    if (!isa_available(static_cast<Isa>(i)))
      throw std::runtime_error("NHL_FAST_CPU_ISA: " + std::string(wanted) + " is not available on this machine, whose best level is " +
                               isa_name(best_isa()));
    return static_cast<Isa>(i);
  }
  throw std::runtime_error("NHL_FAST_CPU_ISA: expected scalar, avx2, avx512 or neon, got " + std::string(wanted));
}

}  // namespace nhl
