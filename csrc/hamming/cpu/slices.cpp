#include "slices.h"

#include <cmath>

#include "../../common/isa.h"

namespace nhl::hamming {

const SliceKernels& active_slices() {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512: return avx512_slices();
    case Isa::avx2: return avx2_slices();
#elif defined(__aarch64__)
    case Isa::neon: return neon_slices();
#endif
    default: return scalar_slices();
  }
}

double round_weight(double weight) {
  int exponent = 0;
  const double fraction = std::frexp(weight, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 48)), exponent - 48);
}

}  // namespace nhl::hamming
