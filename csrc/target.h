// Functions compiled for more than the baseline's instructions: NHL_TARGET("avx2,popcnt"), then functions, then
// NHL_TARGET_END. Standard headers come before it.
#pragma once

#define NHL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define NHL_TARGET(features) NHL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define NHL_TARGET_END NHL_PRAGMA(clang attribute pop)
#else
#define NHL_TARGET(features) NHL_PRAGMA(GCC push_options) NHL_PRAGMA(GCC target(features))
#define NHL_TARGET_END NHL_PRAGMA(GCC pop_options)
#endif
