// Functions compiled for more than the baseline's instructions: NHL_TARGET("avx2,popcnt"), then functions, then
// NHL_TARGET_END. Standard headers come before it.
#pragma once

#define NHL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define NHL_TARGET(features) NHL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define NHL_TARGET_END NHL_PRAGMA(clang attribute pop)
#else
// GCC 12's own intrinsics pass an undefined vector as the source of a full mask.
#define NHL_TARGET(features)                                  \
  NHL_PRAGMA(GCC push_options) NHL_PRAGMA(GCC target(features)) \
  NHL_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized")
#define NHL_TARGET_END NHL_PRAGMA(GCC pop_options)
#endif
