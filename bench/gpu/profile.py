"""Where the time of a step or a search goes: microseconds of every kernel of one call, from PyTorch's profiler.

python -m bench.gpu.profile [--losses csq,dsh]
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import torch

from bench.common import arguments
from bench.common.losses import NAMES
from bench.step.device import OURS, Problem
from nhl_fast import native

CASES = [
    *((name, 64, 2048, {}) for name in ("csq", "dhn", "dch", "dtsh", "shcir")), ("csq", 256, 2048, {}),
    ("csq", 4096, 768, {"distill": 0.0}), ("csq", 32768, 2048, {"distill": 0.0}),
    ("csq", 32768, 2048, {"distill": 0.0, "dtype": torch.bfloat16}),
]  # fmt: skip
# (queries, items, k) of searches over 128 bits.
SEARCHES = [(1, 10**6, 10), (64, 10**6, 10), (1000, 10**6, 10), (1000, 10**6, 1000), (1, 10**7, 10)]
STEPS = 20


def kernels(step) -> dict[str, float]:
    """Microseconds a step of every kernel."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    found = defaultdict(float)
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[event.name] += event.device_time_total / STEPS
    return dict(found)


def show(title: str, found: dict[str, float]) -> None:
    print(f"{title}: {sum(found.values()):.1f} us in kernels")
    for name, us in sorted(found.items(), key=lambda item: -item[1])[:14]:
        print(f"    {us:9.2f}  {name[:90]}")


def main() -> None:
    parser = arguments.parser("bench.gpu.profile", __doc__)
    parser.add_argument("--losses", type=arguments.some_of(NAMES), help=f"of {', '.join(NAMES)}; and no searches")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device")
    for loss, rows, d, wanted in CASES:
        if options.losses and loss not in options.losses:
            continue
        found = kernels(Problem(loss, rows, d, **wanted).step(OURS))
        told = " ".join(f"{key}={str(value).removeprefix('torch.')}" for key, value in wanted.items())
        show(f"{loss} {rows} x {d} {told}", found)
    if options.losses or not native.cuda_status()[0]:
        return
    for queries, items, k in SEARCHES:
        codes = [torch.randint(0, 256, (n, 16), dtype=torch.uint8, device="cuda") for n in (queries, items)]
        show(f"top {k} of {items}, {queries} queries", kernels(partial(native.topk, *codes, k, 128)))


if __name__ == "__main__":
    main()
