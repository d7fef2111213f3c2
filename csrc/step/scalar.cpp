// Whatever vectors the compiler has without being asked: 4 lanes on x86-64 and aarch64.
#include "kernels.h"

namespace nhl::step {
namespace {
constexpr int64_t kLanes = 4;
constexpr int kAccumulators = 12;
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif
}  // namespace
}  // namespace nhl::step

#include "body.inl"

namespace nhl::step {

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = make_kernels();
  return kernels;
}

}  // namespace nhl::step
