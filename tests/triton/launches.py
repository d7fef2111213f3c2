"""What a call launches on a device: Triton kernels by name, and PyTorch operators that run a kernel there."""

import contextlib

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "triton launch: "
# Leaves of the trace that only make or describe tensors.
FREE = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::as_strided", "aten::view",
    "aten::_unsafe_view", "aten::reshape", "aten::detach", "detach", "aten::alias", "aten::slice", "aten::select",
    "aten::unsqueeze", "aten::squeeze", "aten::expand", "aten::permute", "aten::transpose", "aten::t",
    "aten::split_with_sizes", "aten::narrow", "aten::result_type", "aten::lift_fresh", "aten::resolve_conj",
    "aten::resolve_neg", "aten::to", "aten::contiguous", "aten::is_nonzero", "aten::set_", "aten::resize_",
    "aten::view_as",
}  # fmt: skip


@contextlib.contextmanager
def _marked_launches():
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import GridExecutor

    def wrap(owner, attribute):
        original = getattr(owner, attribute)

        def launch(self, *args, **kwargs):
            with record_function(MARK + self.fn.__name__):
                return original(self, *args, **kwargs)

        setattr(owner, attribute, launch)
        return lambda: setattr(owner, attribute, original)

    undo = [wrap(GridExecutor, "__call__"), wrap(JITFunction, "run")]
    try:
        yield
    finally:
        for function in undo:
            function()


def _leaves(event):
    name = event.name
    if name.startswith(MARK):
        yield name.removeprefix(MARK)
    elif event.cpu_children:
        for child in event.cpu_children:
            yield from _leaves(child)
    elif name.startswith("aten::") and name not in FREE:
        yield name


def launches(function) -> list[str]:
    """Names of what `function` launches, in order; memory filled by the poisoning of the tests is left out."""
    poison = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with _marked_launches(), profile(activities=[ProfilerActivity.CPU]) as trace:
            function()
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = poison
    found = []
    for event in trace.events():
        if event.cpu_parent is None and event.device_type == DeviceType.CPU:
            found += _leaves(event)
    return found
