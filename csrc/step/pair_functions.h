// The pair functions: their names, and what they are functions of. Each one's struct is in pair_functions.inl.
#pragma once

#include "names.h"

#define NHL_PAIR_FUNCTIONS(X)   \
  X(contrastive, Contrastive)   \
  X(likelihood, Likelihood)     \
  X(locality, Locality)         \
  X(cauchy, Cauchy)             \
  X(attraction, Attraction)     \
  X(graded, Graded)             \
  X(margin, Margin)

namespace nhl::step {

constexpr int kMostConstants = 2;  // of a pair function

enum class PairFunction : int { NHL_PAIR_FUNCTIONS(NHL_ENTRY) kinds };
constexpr const char* kPairFunctions[] = {NHL_PAIR_FUNCTIONS(NHL_TEXT)};

// The one number x of two rows u, v of b outputs that a pair function sees.
enum class Geometry : int {
  product,   // <u, v> / 2, counted reference / b times where there is a reference length
  distance,  // |u - v|^2 / 2
  cosine,    // <u, v> / (|u| |v|)
};

// Which pairs count, and how much.
enum class Counting : int {
  all,      // each once
  kinds,    // similar pairs and others with a weight of their own
  similar,  // similar pairs once, others not at all
  weighed,  // by the rows' weights; a pair is similar in part
  ways
};

}  // namespace nhl::step
