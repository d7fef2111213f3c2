// How a top-k search looks for its limit: how large a sample, how deep into it, and how many candidates to make room for.
#pragma once

#include <algorithm>
#include <cmath>

#include "engine.h"

namespace nhl::cuda {

struct Plan {
  int64_t stride;  // of the sample; 0: there is none, everything is a candidate
  int64_t wanted;  // items of the sample below the limit
  int64_t most;    // and at most so many, those at the limit's own distance included
  int64_t room;    // candidates a query
};

constexpr int64_t kLeastRoom = 1024;
constexpr int64_t kMostStride = 256;  // beyond, too few of the room's candidates would be seen in the sample

// How many of a sample lie below what has k, or `room`, of the whole below it is nearly Poisson, and the root of such a
// number spreads by a half about its middle. The limit stands `kMargin` away from both: 4.4 deviations, or half way.
inline Plan plan_for(int64_t items, int64_t k, const Context& context) {
  constexpr double kMargin = 2.2;
  if (items <= kLeastRoom) return {0, 0, 0, kLeastRoom};
  // With many neighbours, as large a sample as leaves the margin on both sides within the most candidates.
  const double span = (std::sqrt(static_cast<double>(context.candidates)) - std::sqrt(static_cast<double>(k))) / (2 * kMargin);
  const auto densest = std::clamp<int64_t>(static_cast<int64_t>(span * span), 1, kMostStride);
  const int64_t stride = std::clamp<int64_t>(items / context.sample, 1, densest);
  const auto room_for = [&](int64_t least) {
    int64_t room = kLeastRoom;
    while (room < least && room < context.candidates) room *= 2;
    return room;
  };
  if (stride == 1) return {1, k, room_for(2 * k), room_for(2 * k)};  // the sample is the whole
  const double low = std::sqrt(static_cast<double>(k) / stride);
  const int64_t room = room_for(static_cast<int64_t>((low + 2 * kMargin) * (low + 2 * kMargin) * stride));
  const double high = std::sqrt(static_cast<double>(room) / stride);
  const double root = std::min(low + kMargin, (low + high) / 2), top = std::max(root, high - kMargin);
  const auto wanted = std::max<int64_t>(1, std::llround(root * root));
  return {stride, wanted, std::max(wanted, static_cast<int64_t>(top * top)), room};
}

}  // namespace nhl::cuda
