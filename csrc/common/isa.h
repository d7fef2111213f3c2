// Instruction sets: what this processor has, and which one is in force.
#pragma once

namespace nhl {

// Each processor has `scalar` and the levels of its kind up to its best.
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2, neon = 3 };

// The level in force: the best this processor has, or what NHL_FAST_CPU_ISA names (scalar, avx2, avx512, neon); a
// name that is unknown or unavailable here throws std::runtime_error. The variable is read at every call.
Isa active_isa();
bool isa_available(Isa isa);
const char* isa_name(Isa isa);

}  // namespace nhl
