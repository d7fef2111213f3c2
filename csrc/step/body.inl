// Everything that is compiled once for each instruction set: the including file sets the target, kLanes (floats a
// vector) and kAccumulators (vectors that fit into registers besides a few others).
#include "vector.inl"

#include "product.inl"

#include "elementwise.inl"

#include "pairs.inl"

#include "batch.inl"

namespace nhl::train {
namespace {

constexpr Kernels make_kernels() {
  return {product,
          transpose,
          {pointwise<CentralSimilarity>, pointwise<Polarization<false>>, pointwise<Polarization<true>>},
          {penalty<Absolute>, penalty<LogCosh>, penalty<Square>, penalty<Sign>},
          {pairs<Contrastive>, pairs<Likelihood<false>>, pairs<Likelihood<true>>, pairs<Attraction>, pairs<Locality>,
           pairs<Cauchy>},
          triplets,
          softmax,
          cascade,
          gram_dots,
          weigh,
          dot,
          add_scaled,
          finite};
}

}  // namespace
}  // namespace nhl::train
