// How the CPU's operators run their work: on PyTorch's threads, and no longer than Python's signal handlers let them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../common/executor.h"

namespace nhl {

// Whether a Python signal handler has raised (Ctrl-C, say). Its exception is kept for nhl_fast_raise_kept(), for an
// exception of C++ carries none of Python's.
bool python_stops();

// One call of an operator; it must outlive all work that gets its executor.
struct Call {
  Watch watch{python_stops};
  Executor executor{static_cast<int64_t>(torch::stable::get_num_threads()),
                    [](int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
                      torch::stable::parallel_for(
                          0, count, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
                    },
                    &watch};
};

}  // namespace nhl
