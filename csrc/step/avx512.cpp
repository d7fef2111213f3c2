// AVX-512: 32 registers of 16 lanes; 24 hold sums.
#include "../common/target.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

NHL_TARGET("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")

namespace nhl::step {
namespace {
constexpr int64_t kLanes = 16;
constexpr int kAccumulators = 24;
constexpr bool kFused = true;
}  // namespace
}  // namespace nhl::step

#define NHL_MAX _mm512_max_ps
#define NHL_MIN _mm512_min_ps
#include "body.inl"

namespace nhl::step {

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels = make_kernels();
  return kernels;
}

}  // namespace nhl::step

NHL_TARGET_END
#endif
