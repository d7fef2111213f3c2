"""The two calls on a card: what runs in which order, and for how long.

A part that ends in "&" is begun, and goes on beside the parts after it until its own turn. What is worth most comes
first: what the card is, the tests that only a card can fail, then times, the most wanted first. Nothing is timed
while another part's processes use the device.
"""

from __future__ import annotations

from typing import NamedTuple


class Call(NamedTuple):
    """Seconds in all, and (part, its seconds of them) in their order; no seconds: the part is begun."""

    seconds: float
    plan: tuple[tuple[str, float | None], ...]


def call(seconds: float, order: str) -> Call:
    """`order`: "part& part:seconds ..."."""
    steps = (word.removesuffix("&").partition(":")[::2] for word in order.split())
    return Call(seconds, tuple((name, float(allowed) if allowed else None) for name, allowed in steps))


# What the build does not need of its time, others have: cut short, it would take the tests with it.
CALLS = {
    "first": call(
        300,
        "build& rates:15 ceilings:6 warm& build:95 tests_device:30 tests_kernels:70 warm:9 steps:75",
    ),
    "second": call(
        470,
        "build& rates:12 ceilings:6 warm& build:80 tests_device:20 warm_tiles& tests_kernels:60 warm:15 "
        "warm_tiles:15 steps:95 scan:35 hamming:47 placed:13 kernels:20 profile:17 tiles:25 tests_rest:10",
    ),
}
