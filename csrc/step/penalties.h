// Penalties on the outputs, by name: means over the rows.
#pragma once

#include "names.h"

// Those that are means over the bits, of a function of one output.
#define NHL_PENALTIES(X) \
  X(absolute, Absolute)  \
  X(log_cosh, LogCosh)   \
  X(square, Square)      \
  X(sign, SignGap)       \
  X(cube, Cube)

namespace nhl::step {

enum class Penalty : int {
  NHL_PENALTIES(NHL_ENTRY) bitwise,
  balance = bitwise,  // (mean over the bits of u)^2
  cauchy,             // log(1 + d / gamma), d the relaxed distance of |u| and 1; gamma and cap as those of the pairs
  none,
};
constexpr const char* kPenalties[] = {NHL_PENALTIES(NHL_TEXT) "balance", "cauchy", "none"};

}  // namespace nhl::step
