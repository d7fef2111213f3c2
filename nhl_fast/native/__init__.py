"""The compiled libraries (csrc/): loading them, what they offer to the rest of the package, and building them.

They are built at installation, at their first use, or by `python -m nhl_fast.native build`; without `build` it
says what is there. The operators are `torch.ops.nhl_fast.*`: pack, distances, histograms, evaluate, topk, radius.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from pathlib import Path

import torch

from . import builder, fakes
from . import cache as _cache
from .builder import BuildError
from .calls import ops

# The longest codes of each library.
MAX_BITS = {"cpp": 16384, "cuda": 1024}

_PACKAGE = Path(__file__).resolve().parent
_loading = threading.RLock()
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# ----------------------------------------------------------------------------------------------- the libraries


def library_path(kind: str) -> Path:
    """Where library `kind` ("cpp" or "cuda") is, or would be built."""
    return _PACKAGE / builder.LIBRARIES[kind]


_HINT = "build it with: python -m nhl_fast.native build"


def load(kind: str) -> str:
    """Load library `kind`, once a process; the reason why not, or "" where it is ready.

    Where there is none, it is built in a cache of the user first. One warning says why that failed.
    """
    with _loading:  # of two threads one loads
        return _load(kind)


@functools.cache
def _load(kind: str) -> str:
    if kind == "cuda" and (missing := _load("cpp")):
        return missing
    if kind == "cuda" and os.environ.get("NHL_FAST_CUDA") == "0":
        return "NHL_FAST_CUDA=0 leaves it out"
    reason = _load_library(kind)
    if reason:
        engine = "C++" if kind == "cpp" else "CUDA"
        warnings.warn(f"nhl_fast runs without its {engine} engine, on the slower reference: {reason}", stacklevel=4)
    elif kind == "cpp":
        _register_fakes()
        fakes.register()
    return reason


def _renew() -> None:
    """In a forked child, where a thread of the parent that was loading is no more."""
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _load_library(kind: str) -> str:
    path, missing = library_path(kind), ""
    if path.exists():
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            missing = f"{path.name} does not load with PyTorch {torch.__version__}: {_brief(error)}; {_HINT}"
    if not path.exists() or (missing and not builder.in_checkout()):
        try:
            path = _cache.ensure(kind, _targets(kind))
            torch.ops.load_library(str(path))
        except BuildError as error:
            return f"{_brief(error)}; once that is mended, {_HINT}"
        except OSError as error:
            return f"{path} does not load with PyTorch {torch.__version__}: {_brief(error)}; remove it, and {_HINT}"
    elif missing:
        return missing
    try:
        folder = builder.source_dir()
        built = (torch.ops.nhl_fast.source_hash if kind == "cpp" else torch.ops.nhl_fast.cuda_source_hash)()
        if built != builder.source_hash(kind, folder):
            return f"{path.name} was built from other sources than those in {folder}; {_HINT}"
    except (AttributeError, BuildError):
        return f"{path.name} belongs to another version of nhl_fast; {_HINT}"
    return ""


def _targets(kind: str) -> list[str] | None:
    """At first use the CUDA library is compiled for this card alone, unless the environment says for which."""
    if kind != "cuda" or os.environ.get("NHL_FAST_CUDA_ARCHITECTURES"):
        return None
    return ["".join(map(str, torch.cuda.get_device_capability()))]


def _brief(error: Exception) -> str:
    """An error in one line; of a compiler's output the first error."""
    lines = str(error).splitlines()
    told = next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
    return told[:500]


def is_built(kind: str) -> bool:
    """Whether library `kind` is there, so that its first use builds nothing."""
    try:
        return library_path(kind).exists() or _cache.find(kind, _targets(kind)) is not None
    except (BuildError, OSError):
        return False


@functools.cache
def cpu_status() -> tuple[bool, str]:
    """Whether the C++ library serves, and with which instructions, or why not."""
    reason = load("cpp")
    if reason:
        return False, reason
    try:
        return True, f"native library, {torch.ops.nhl_fast.cpu_isa()} instructions, {torch.get_num_threads()} threads"
    except RuntimeError as error:
        return False, str(error).splitlines()[0]


@functools.cache
def cuda_status() -> tuple[bool, str]:
    """Whether the CUDA library serves, and on what, or why not."""
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    reason = load("cuda")
    return (False, reason) if reason else (True, f"native library on {torch.cuda.get_device_name()}")


def build(verbose: bool = True) -> list[Path]:
    """Compile the libraries, in a checkout in place, else into the cache; returns the files made.

    Takes effect in the next process.

    Raises:
        BuildError: something is missing or the compiler failed, and what it said.
    """
    made = []
    for kind in builder.wanted(builder.find_torch()):
        if builder.in_checkout():
            progress = _cache.Progress(f"nhl_fast: building {builder.LIBRARIES[kind]}") if verbose else None
            how = "failed"
            try:
                made.append(builder.build(kind, library_path(kind), progress))
                how = "done"
            finally:
                if progress is not None:
                    progress.end(how)
        else:
            targets = _targets(kind) if torch.cuda.is_available() else None
            made.append(_cache.ensure(kind, targets, retry=True))
        if verbose:
            print(f"built {made[-1]}")
    return made


# ---------------------------------------------------------------------------------------------- the operators


def can_pack(x: torch.Tensor) -> bool:
    """Whether `pack` takes this tensor, on its device, here."""
    # A compiler fuses the plain definition with what comes before it.
    if x.dtype not in _FLOATS or torch.compiler.is_compiling():
        return False
    return cpu_status()[0] if x.device.type == "cpu" else x.device.type == "cuda" and cuda_status()[0]


def pack(x: torch.Tensor) -> torch.Tensor:
    """(N, ceil(L / 8)) uint8: `numpy.packbits(x > 0, axis=1)` of a floating-point (N, L) tensor of any strides."""
    return ops.pack(x.detach())


def distances(queries: torch.Tensor, database: torch.Tensor, lengths) -> torch.Tensor:
    """(m, Q, n) int32 distances of packed rows over the first b bits, for every b in `lengths` in one pass."""
    return ops.distances(_rows(queries), _rows(database), list(lengths))


def topk(
    queries: torch.Tensor,
    database: torch.Tensor,
    k: int,
    length: int,
    allow: torch.Tensor | None = None,
    base: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest rows of `database` to every query, by (distance, id).

    Args:
        queries, database: packed uint8 rows (Q, bytes), (n, bytes); read in place, a read-only memory map included.
        k: neighbours a query; where fewer are left, the rest of the row is -1.
        length: code length in bits, a prefix of the rows.
        allow: (n,) bool, items to consider; None for all.
        base: the id of the first row, for a database searched in parts.

    Returns:
        (distances (Q, k) int32, ids (Q, k) int64).
    """
    allow = allow if allow is None else allow.contiguous()
    return ops.topk(_rows(queries), _rows(database), k, length, allow, base)


def radius(
    queries: torch.Tensor,
    database: torch.Tensor,
    radius: int,
    length: int,
    allow: torch.Tensor | None = None,
    base: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every row within `radius` of each query: (offsets (Q + 1,), distances, ids), by (distance, id); see `topk`."""
    allow = allow if allow is None else allow.contiguous()
    return ops.radius(_rows(queries), _rows(database), radius, length, allow, base)


def histograms(queries, database, query_labels, database_labels, lengths) -> list[torch.Tensor]:
    """For every length b, (Q, b + 1, 2) int64: [q, d, 1] relevant and [q, d, 0] other items at distance d.

    Labels are int64 class ids or multi-hot rows, in any mixture, as `evaluate` takes them.
    """
    labels = _relevance_labels(query_labels, database_labels)
    counts = ops.histograms(_rows(queries), _rows(database), *labels, list(lengths))
    return _split_counts(counts, len(queries), lengths)


def evaluate(queries, database, query_labels, database_labels, lengths, cutoff: int):
    """(histograms, precision, retrieved, hits, recall): see `ranking.RankSums` for the last four.

    Args:
        queries, database: packed uint8 rows (Q, bytes), (n, bytes).
        query_labels, database_labels: class ids (N,) or multi-hot rows (N, C), in any mixture.
        lengths: strictly increasing code lengths.
        cutoff: K of the precision sums.
    """
    labels = _relevance_labels(query_labels, database_labels)
    counts, *sums = ops.evaluate(_rows(queries), _rows(database), *labels, list(lengths), cutoff)
    return _split_counts(counts, len(queries), lengths), *sums


def _rows(codes: torch.Tensor) -> torch.Tensor:
    """Rows whose bytes are adjacent: the tensor itself unless it is transposed or strided within its rows."""
    return codes if codes.shape[1] == 1 or codes.stride(1) == 1 else codes.contiguous()


def _split_counts(counts: torch.Tensor, num_queries: int, lengths) -> list[torch.Tensor]:
    parts = counts.split([2 * (b + 1) * num_queries for b in lengths])
    return [part.view(num_queries, b + 1, 2) for b, part in zip(lengths, parts)]


def _relevance_labels(query_labels: torch.Tensor, database_labels: torch.Tensor):
    """Both label sets in the form the operators take: the narrowest ids, or sets as words of 64 classes."""
    if query_labels.ndim == 1 and database_labels.ndim == 1:
        both = (query_labels, database_labels)
        if all(t.is_cuda for t in both):  # looking at them would wait for the device
            return tuple(t.long().contiguous() for t in both)
        highest = max((int(t.max()) for t in both if t.numel()), default=0)
        lowest = min((int(t.min()) for t in both if t.numel()), default=0)
        fits = [t for t in (torch.uint8, torch.int16, torch.int32) if lowest >= 0 and highest <= torch.iinfo(t).max]
        return tuple(t.to(fits[0] if fits else torch.int64).contiguous() for t in both)
    classes = next(t.shape[1] for t in (query_labels, database_labels) if t.ndim == 2)
    return label_words(query_labels, classes), label_words(database_labels, classes)


def label_words(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Label sets as bit masks: (N, ceil(C / 64)) int64, class c at bit c % 64 of word c // 64.

    Args:
        labels: class ids (N,) or multi-hot rows (N, C) of any dtype.
        num_classes: C, at least 1.
    """
    if labels.ndim == 1:
        out = torch.zeros(len(labels), -(-num_classes // 64), dtype=torch.int64, device=labels.device)
        labels = labels.long()[:, None]
        return out.scatter_(1, labels // 64, torch.ones_like(labels) << labels % 64)
    bits = torch.nn.functional.pad((labels != 0).to(torch.uint8), (0, -num_classes % 64))
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=labels.device)
    return (bits.view(len(labels), -1, 8) * place).sum(-1, dtype=torch.uint8).view(torch.int64)


@functools.cache
def _register_fakes() -> None:
    """Shapes and dtypes for tracing (torch.compile, opcheck)."""
    fake = torch.library.register_fake

    def bins(lengths, num_queries):
        return sum(2 * (b + 1) for b in lengths) * num_queries

    @fake("nhl_fast::pack")
    def _(x):
        return x.new_empty(x.shape[0], (x.shape[1] + 7) // 8, dtype=torch.uint8)

    @fake("nhl_fast::distances")
    def _(queries, database, lengths):
        return queries.new_empty(len(lengths), queries.shape[0], database.shape[0], dtype=torch.int32)

    @fake("nhl_fast::histograms")
    def _(queries, database, query_labels, database_labels, lengths):
        return queries.new_empty(bins(lengths, queries.shape[0]), dtype=torch.int64)

    @fake("nhl_fast::evaluate")
    def _(queries, database, query_labels, database_labels, lengths, cutoff):
        m, q, n = len(lengths), queries.shape[0], database.shape[0]
        return (
            queries.new_empty(bins(lengths, q), dtype=torch.int64),
            queries.new_empty(m, q, dtype=torch.float64),
            queries.new_empty(m, q, dtype=torch.int64),
            queries.new_empty(m, n, dtype=torch.float64),
            queries.new_empty(m, n, dtype=torch.float64),
        )

    @fake("nhl_fast::topk")
    def _(queries, database, k, length, allow=None, base=0):
        shape = (queries.shape[0], k)
        return queries.new_empty(shape, dtype=torch.int32), queries.new_empty(shape, dtype=torch.int64)

    @fake("nhl_fast::radius")
    def _(queries, database, radius, length, allow=None, base=0):
        found = torch.library.get_ctx().new_dynamic_size()
        return (
            queries.new_empty(queries.shape[0] + 1, dtype=torch.int64),
            queries.new_empty(found, dtype=torch.int32),
            queries.new_empty(found, dtype=torch.int64),
        )
