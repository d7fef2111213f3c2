#include "kernels.h"

#include "../../common/isa.h"

namespace nhl::hamming {

const Kernels& active_kernels() {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512: return avx512_kernels();
    case Isa::avx2: return avx2_kernels();
#elif defined(__aarch64__)
    case Isa::neon: return neon_kernels();
#endif
    default: return scalar_kernels();
  }
}

}  // namespace nhl::hamming
