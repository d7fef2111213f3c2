// Calls past PyTorch's dispatcher, whose boxes take longer than a search of a thousand codes.
#include <cstdint>
#include <exception>

#include "../hamming/hamming.h"

// One query's `topk`, on this thread, to its end; arguments as there, checked by the caller. Whether it is done.
extern "C" __attribute__((visibility("default"))) bool nhl_fast_topk_one(const uint8_t* query, const uint8_t* items,
                                                                          int64_t count, int64_t stride, int64_t bits,
                                                                          int64_t k, int64_t base, int32_t* distances,
                                                                          int64_t* ids) {
  try {
    const nhl::Executor alone{1, nullptr};
    nhl::hamming::topk({query, 1, 0}, {items, count, stride}, bits, k, base, nullptr, distances, ids, alone);
    return true;
  } catch (const std::exception&) {
    return false;  // the operator tells the reason
  }
}
