#include "kernels.h"

#include "../common/isa.h"

namespace nhl::step {

const Kernels& active_kernels() {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512: return avx512_kernels();
    case Isa::avx2:
      if (__builtin_cpu_supports("fma")) return avx2_kernels();
      [[fallthrough]];
#endif
    default: return scalar_kernels();
  }
}

}  // namespace nhl::step
