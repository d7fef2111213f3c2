// Everything that is compiled once for each instruction set: the including file sets the target, kLanes (floats a
// vector) and kAccumulators (vectors that fit into registers besides a few others).
#include "vector.inl"

#include "product.inl"

#include "rows.inl"

#include "center.inl"

#include "penalties.inl"

#include "pair_functions.inl"

#include "pairs.inl"

#include "batch.inl"

#include "listwise.inl"

namespace nhl::step {
namespace {

constexpr Kernels make_kernels() {
#define NHL_CENTER(name, type) {center<type, false>, center<type, true>},
#define NHL_PENALTY(name, type) penalty<type>,
#define NHL_PAIRS(name, type) pair_kernel<type>(),
  return {product,
          transpose,
          {NHL_CENTER_FUNCTIONS(NHL_CENTER)},
          {NHL_PENALTIES(NHL_PENALTY)},
          {NHL_PAIR_FUNCTIONS(NHL_PAIRS)},
          {triplets<false>, triplets<true>},
          {softmax<false>, softmax<true>},
          cascade,
          gram_dots,
          weigh,
          dot,
          add_scaled,
          finite,
          straight,
          listwise_targets,
          listwise,
          view_gap};
#undef NHL_CENTER
#undef NHL_PENALTY
#undef NHL_PAIRS
}

}  // namespace
}  // namespace nhl::step
