"""How far a computation in float32 may be from the truth: a bound by analysis, the same on every machine.

The truth is the reference in float64, or the same by plainer formulas (`nhl_fast.losses.naive`). What float32 may
lose is worked out in float64, too, and never measured on another float32 computation, whose error depends on the
machine's BLAS. The rules are those of rounding analysis, one operation at a time (u = eps / 2 of the format, x the
operation's exact result):

    a product, quotient, root, sum of two          u |x|
    exp, log, tanh and their like                  4 u |x| ("a few units in the last place")
    a sum of K terms, a product of matrices        u sqrt(K (S^2 / 3 + Q / 6) + Q), S = sum t_i, Q = sum t_i^2
    a bound that a clamp puts in                   u |x|, as every constant
    copies, signs, comparisons, maxima             nothing
    sums and products of whole numbers             nothing

(A sum rounds K partial sums s_k; over all orders of the terms, sum s_k^2 is K (S^2 / 3 + Q / 6) in the mean, and the
terms themselves round by Q. It is about u sqrt(K) sum |t_i| at most, and much less where terms cancel.)

Within `Rounded` the reference errs like that, each result by a random share of its bound, and what follows carries
the errors on: through cancelling differences, norms, exponentials. The root mean square of what comes out, over a
few such runs, is the spread. A right computation stays within `MARGIN` spreads, and half a unit of its own format.
(The worst case, all errors of one sign, is more than sqrt(K) times as wide, and would let defects pass.)

What does not pass: a spread is 1e-7 to 1e-5 of a result in these tests. A wrong sign, or a term that is left out,
moves a result by that term's share of the whole: 1e-2 to 1e-4 for a row, a pair or a feature of these problems.
float16 and TF32 (11 bits) err by 2^13 u a term, bfloat16 by 2^16 u. `test_numeric.py` makes such mistakes in every
loss, and asks that none of them passes.
"""

from __future__ import annotations

import functools
import hashlib
import random

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MARGIN = 4.0
RUNS = 6
# float64's own errors are worked out at this unit, large beside float64's, and scaled: they are linear in it.
FINE = 2.0**-40
# Numbers under this are taken for zero: what is left of a difference of equal numbers near 1, squared.
LEAST = 1e-12


def _names(text: str) -> set[str]:
    return set(text.split())


# Operations (aten names, without the _ of those in place) by how they round; one that is in no set is refused.
_PRODUCTS = _names("mm bmm addmm baddbmm mv addmv")
_SUMS = _names("sum mean cumsum dot")
_OTHER_SUMS = _names("linalg_vector_norm norm logsumexp _softmax _log_softmax _softmax_backward_data")
_OTHER_SUMS |= _names("_log_softmax_backward_data binary_cross_entropy")
_FUNCTIONS = _names("exp expm1 log log1p tanh sigmoid softplus rsqrt pow cosh logaddexp log_sigmoid_forward")
_FUNCTIONS |= _names("log_sigmoid_backward softplus_backward tanh_backward sigmoid_backward")
_FUNCTIONS |= _names("sinh cos sin binary_cross_entropy_backward special_entr")
_CLAMPS = _names("clamp clamp_min clamp_max")
_ROUNDED_ONCE = _names("add sub rsub mul div square sqrt reciprocal addcmul addcdiv lerp")
_WHOLE = _PRODUCTS | _names("sum cumsum dot add sub rsub mul")
_EXACT = _names(
    """
    neg abs sign sgn clone _to_copy copy cat stack index index_select gather where maximum minimum max min amax amin
    triu tril relu fill zero zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones
    new_full new_empty new_empty_strided empty_strided repeat arange masked_fill scatter constant_pad_nd index_put
    _index_put_impl sort topk flip scalar_tensor slice_backward select_backward threshold_backward lift_fresh
    clamp_backward select_scatter slice_scatter squeeze unsqueeze transpose t _unsafe_view
    """
)


def _whole(x) -> bool:
    """Whether an argument holds whole numbers alone (or is none, as a flag or a type)."""
    if isinstance(x, torch.Tensor):
        return not x.is_floating_point() or not x.numel() or bool(x[(0,) * x.ndim] % 1 == 0 and (x % 1 == 0).all())
    return not isinstance(x, float) or x % 1 == 0


@functools.cache
def _pool(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(1 << 20, dtype=torch.float64, generator=generator) - 1


class Rounded(TorchDispatchMode):
    """Within it, operations on float64 tensors err as in a format of this unit (see above)."""

    def __init__(self, seed: int, unit: float = 2.0**-24):
        super().__init__()
        self.unit, self.pool, self.place = unit, _pool(seed), random.Random(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        name = name[:-1] if name.endswith("_") and not name.startswith("__") else name
        before = args[0].clone() if name in _CLAMPS else None
        squares = self._squares(name, func, args, kwargs)
        out = func(*args, **kwargs)
        if name in _EXACT or any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):  # views
            return out
        if name in _WHOLE and all(_whole(a) for a in (*args, *kwargs.values()) if not isinstance(a, (list, tuple))):
            return out
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if not isinstance(x, torch.Tensor) or x.dtype != torch.float64 or x.numel() == 0:
                continue
            error = self._share(x).mul_(self._size(name, args, x, squares, before)).mul_(self.unit)
            x.add_(error.nan_to_num_(0.0, 0.0, 0.0))  # infinity stays what it is
        return out

    def _share(self, x):
        """Random numbers of [-1, 1] in the shape of x: a piece of the pool, over and over where that is too short."""
        count = min(x.numel(), len(self.pool) // 2)
        start = self.place.randrange(len(self.pool) - count + 1)
        share = self.pool[start : start + count].repeat(-(-x.numel() // count))[: x.numel()]
        return share.view(x.shape).to(x.device)

    @staticmethod
    def _squares(name, func, args, kwargs):
        """(K, sum of the squares of the K terms) of a sum or a product of matrices, else None."""
        if name not in _PRODUCTS | _SUMS:
            return None
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if not all(a.dtype == torch.float64 for a in tensors):
            return None
        squares = func(*(a.square() if isinstance(a, torch.Tensor) else a for a in args), **kwargs)
        if name in _PRODUCTS:
            return args[-1].shape[-2 if args[-1].ndim > 1 else 0], squares
        return max(1, args[0].numel() // max(1, 1 if name == "cumsum" else squares.numel())), squares

    @staticmethod
    def _size(name, args, x, squares, before):
        if squares is not None:
            count, q = squares
            # A mean is a sum divided by the count, and so are its errors; q is the mean of the squares.
            share = count if name == "mean" else 1
            return (count * (x.square() / 3 + q / share / 6) + q / share + x.square()).sqrt()
        if name in _CLAMPS:
            return torch.where(x != before, x.abs(), 0.0)
        if name in _FUNCTIONS:
            return 4 * x.abs()
        if name in _OTHER_SUMS:
            return (4 + args[0].shape[-1] ** 0.5) * x.abs()
        if name not in _ROUNDED_ONCE:
            raise NotImplementedError(f"how does {name} round? Put it into one of the sets of {__name__}")
        return x.abs()


class Expected:
    """What a computation should give: the truth, and how far from it a right one may be.

    Args:
        function: gives a dict of float64 tensors, computed by the reference.
        dtype: the format that the computation to be checked calculates in.
        truth: gives the same dict by other means, which lose too many digits for a bound; by default `function`.
    """

    def __init__(self, function, dtype: torch.dtype = torch.float32, truth=None):
        self.truth = {key: x.detach() for key, x in (truth or function)().items()}
        unit = torch.finfo(dtype).eps / 2
        if truth is None or unit >= FINE:
            self.spread = self._spread(function, unit)
        else:  # the truth has float64's errors, too
            both = self._spread(function, unit, 2), self._spread(truth, unit, 2)
            self.spread = {key: sum(spread[key] for spread in both) for key in self.truth}

    def _spread(self, function, unit, runs=RUNS):
        squares = {key: torch.zeros_like(x) for key, x in self.truth.items()}
        for seed in range(runs):
            with Rounded(seed, max(unit, FINE)):
                found = function()
            for key, x in found.items():
                squares[key] += (x.detach() - self.truth[key]).square()
        return {key: (x.sum() / runs).sqrt().item() * unit / max(unit, FINE) for key, x in squares.items()}

    def bound(self, key: str, dtype: torch.dtype = torch.float32, margin: float = MARGIN) -> float:
        """How far in norm a result of format `dtype` may be."""
        return margin * self.spread[key] + torch.finfo(dtype).eps / 2 * self.truth[key].norm().item() + LEAST

    def wrong(self, found: dict, margin: float = MARGIN) -> dict[str, str]:
        """{key: what is wrong with it}."""
        out = {} if found.keys() == self.truth.keys() else {"keys": f"{list(found)}, not {list(self.truth)}"}
        for key, truth in self.truth.items():
            if key in found:
                x = found[key].detach()
                limit, error = self.bound(key, x.dtype, margin), (x.to(truth) - truth).norm().item()
                if x.shape != truth.shape or not error <= limit:
                    out[key] = f"error {error:.3g}, bound {limit:.3g}, norm {truth.norm().item():.3g}, {x.shape}"
        return out

    def check(self, found: dict, what="", margin: float = MARGIN) -> dict:
        """Raise unless every result is as it should be; gives them back."""
        wrong = self.wrong(found, margin)
        assert not wrong, (what, wrong)
        return found


def fingerprint(*things) -> str:
    """A hash of tensors, modules (their attributes, buffers and parameters), sequences, dicts and plain values."""
    digest = hashlib.sha256()

    def add(thing):
        if isinstance(thing, torch.Tensor):
            plain = thing.detach().cpu().contiguous()
            digest.update(repr((plain.dtype, tuple(plain.shape))).encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy())
        elif isinstance(thing, torch.nn.Module):
            add([type(thing).__name__, thing.training, list(thing._parameters.items()), list(thing._buffers.items())])
            add({k: v for k, v in vars(thing).items() if k not in vars(torch.nn.Module())})
            add(list(thing._modules.items()))
        elif isinstance(thing, dict):
            add(list(thing.items()))
        elif isinstance(thing, (list, tuple)):
            digest.update(b"[")
            for part in thing:
                add(part)
            digest.update(b"]")
        else:
            digest.update(repr(thing).encode() + b";")

    add(things)
    return digest.hexdigest()


_EXPECTED: dict[str, Expected] = {}


def expected(function, *inputs, dtype: torch.dtype = torch.float32, truth=None) -> Expected:
    """`Expected` of functions of these inputs, worked out once for each set of them (and the functions' names)."""
    key = fingerprint(function.__qualname__, truth and truth.__qualname__, dtype, *inputs)
    if key not in _EXPECTED:
        _EXPECTED[key] = Expected(lambda: function(*inputs), dtype, truth and (lambda: truth(*inputs)))
    return _EXPECTED[key]
