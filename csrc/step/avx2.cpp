// AVX2 and FMA: 16 registers of 8 lanes; 12 hold sums.
#include "../common/target.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

NHL_TARGET("avx2,fma")

namespace nhl::step {
namespace {
constexpr int64_t kLanes = 8;
constexpr int kAccumulators = 12;
constexpr bool kFused = true;
}  // namespace
}  // namespace nhl::step

#define NHL_MAX _mm256_max_ps
#define NHL_MIN _mm256_min_ps
#include "body.inl"

namespace nhl::step {

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = make_kernels();
  return kernels;
}

}  // namespace nhl::step

NHL_TARGET_END
#endif
