"""What an index holds: packed codes with ids, and every way to change them."""

from __future__ import annotations

import operator

import numpy as np
import torch

from ..core import check, fork
from ..core.arrays import as_tensor
from ..retrieval.codes import num_bytes
from . import file
from . import ids as index_ids
from .arguments import check_codes, check_kept_vectors
from .ids import check_distinct, check_ids
from .pages import empty
from .placement import Placed, Placement, check_devices
from .segments import Segment, copied, copy_rows, merge
from .state import State

_MAIN_MEMORY = (torch.device("cpu"),)


def place_of(device, device_bytes, length: int) -> Placement | None:
    """The placement that the arguments of `NestedIndex.to` ask for, or None for main memory alone."""
    if device is None:
        if device_bytes is not None:
            raise ValueError("device_bytes: expected a device beside it, got none")
        return None
    devices = check_devices(device)
    if devices == _MAIN_MEMORY and device_bytes is None and not isinstance(device, (list, tuple)):
        return None
    return Placement.of(devices, device_bytes, num_bytes(length))


def _placed(state: State, placement: Placement | None) -> tuple[State, Placed | None]:
    return state, None if placement is None else placement.place(state)


class Items:
    """Codes with ids; see `NestedIndex`, which is the public class."""

    def __init__(self, length: int, device=None, *, device_bytes: int | None = None):
        self._length = check.positive_int(length, "length")
        if self._length > file.MAX_LENGTH:
            raise ValueError(f"length: expected at most {file.MAX_LENGTH} bits, got {self._length}")
        self._placement = place_of(device, device_bytes, self._length)
        self._held = _placed(State(), self._placement)
        self._writing = fork.Lock()

    @property
    def _state(self) -> State:
        return self._held[0]

    @_state.setter
    def _state(self, state: State) -> None:
        if self._placement is None:
            self._held = state, None
            return
        before = self._held[1]
        placed = self._placement.place(state, before)
        self._held, before = (state, placed), None
        if placed.streamed:  # there may be room now that what lay there before is gone
            self._held = state, self._placement.place(state, placed)

    def __getstate__(self) -> dict:
        state = self._state
        held = {
            "length": self._length,
            "next_id": state.next_id,
            "segments": [(s.codes.numpy(), s.first, s.ids, s.alive) for s in state.segments],
        }
        return held if state.kept is None else {**held, "vectors": [s.vectors.numpy() for s in state.segments]}

    def __setstate__(self, stored: dict) -> None:
        self.__init__(stored["length"])
        parts = stored["segments"]
        vectors = stored.get("vectors", [None] * len(parts))
        segments = (
            Segment(as_tensor(codes), *rest, vectors=as_tensor(v)) for (codes, *rest), v in zip(parts, vectors)
        )
        self._state = State(tuple(segments), stored["next_id"])

    def __copy__(self) -> Items:
        out = type(self)(self._length)
        out._placement, out._held = self._placement, self._held
        return out

    def __deepcopy__(self, memo) -> Items:
        return self.__copy__()

    # ---------------------------------------------------------------------------------------------- what is there

    @property
    def length(self) -> int:
        """Code length in bits."""
        return self._length

    @property
    def state(self) -> State:
        """What the index holds at this moment: a value, which later changes leave as it is."""
        return self._state

    def __len__(self) -> int:
        return self._state.count

    def __contains__(self, id_) -> bool:
        try:
            id_ = operator.index(id_)
        except TypeError:
            return False
        if not 0 <= id_ < index_ids.LIMIT:
            return False
        wanted = np.array([id_], np.int64)
        return any(len(segment.find(wanted)[0]) for segment in self._state.segments)

    def __repr__(self) -> str:
        where = "" if self._placement is None else f", device={', '.join(map(str, self.devices))}"
        kept = self._state.kept
        beside = "" if kept is None else f", vectors={kept.shape[1]} {str(kept.dtype).removeprefix('torch.')}"
        return f"NestedIndex(length={self._length}, items={len(self)}{beside}{where})"

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where searches run (see `to`); their results are on the first. `device("cpu")` alone for main memory."""
        return _MAIN_MEMORY if self._placement is None else self._placement.devices

    @property
    def device_nbytes(self) -> int:
        """Bytes of all devices, counted as `to` says of `device_bytes`; 0 where it lives in main memory alone."""
        placed = self._held[1]
        return 0 if placed is None else placed.nbytes

    @property
    def ids(self) -> torch.Tensor:
        """All ids in ascending order, int64 (n,)."""
        return torch.from_numpy(self._state.ids())

    @property
    def nbytes(self) -> int:
        """Bytes held for codes, ids, vectors, masks and prefixes (those that a funnel's first stage has asked for).

        What lies in a mapped file and what belongs to removed items is included.
        """
        return self._state.nbytes

    @property
    def bytes_per_item(self) -> float:
        """`nbytes` over the number of items; 0.0 for an empty index."""
        state = self._state
        return state.nbytes / max(1, state.count)

    @check.memory
    def reconstruct(self, ids) -> torch.Tensor:
        """The packed rows of `ids` (any order, repeats allowed): uint8 (len(ids), ceil(length / 8)).

        Raises:
            TypeError, ValueError: ids are not a sequence of integers of at least 0.
            KeyError: an id is not in the index.
        """
        ids = check_ids(ids, "ids")
        return self._state.rows(ids, num_bytes(self._length))

    @check.memory
    def reconstruct_vectors(self, ids) -> torch.Tensor:
        """The kept vectors of `ids` (any order, repeats allowed): (len(ids), d), in the dtype in which they are kept.

        Raises:
            TypeError, ValueError: ids are not a sequence of integers of at least 0, or the index keeps no vectors.
            KeyError: an id is not in the index.
        """
        ids, state = check_ids(ids, "ids"), self._state
        if state.kept is None:
            raise ValueError(f"ids: expected an index that keeps vectors (add(codes, vectors=...)), got {self!r}")
        return state.vectors(ids)

    # ---------------------------------------------------------------------------------------------------- changes

    @check.memory
    def add(self, codes, ids=None, *, vectors=None) -> torch.Tensor:
        """Add items.

        Args:
            codes: (n, ceil(length / 8)) packed uint8 rows; they are copied.
            ids: n distinct integers from 0 to 2**63 - 1 in any order, none of them in the index; None for
                running ids.
            vectors: (n, d) float32, float16 or int8 to keep beside the codes (they are copied), for
                `search(rescore=(queries' vectors, None))`. All items of an index have vectors of one width and
                dtype, or none has.

        Returns:
            The ids, int64 (n,), in the order of the codes.

        Raises:
            TypeError, ValueError: an argument does not fit, or an id is taken; nothing is added.
        """
        rows, vectors = self._checked(codes, vectors)
        if ids is None:
            return self._add_running(copy_rows(rows, self._length), None if vectors is None else copied(vectors))
        ids = check_distinct(ids, len(rows))
        added = self._segments_of(rows, ids, vectors)
        with self._writing:
            self._state = self._state.adding(ids, added)
        return torch.from_numpy(ids)

    def _checked(self, codes, vectors) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = check_codes(codes, self._length, self.devices)
        vectors = check_kept_vectors(vectors, len(rows), self.devices)
        if len(rows):
            self._state.check_kept(vectors, "vectors")
        return rows, vectors

    def _add_running(self, rows: torch.Tensor, vectors: torch.Tensor | None, name: str = "vectors") -> torch.Tensor:
        with self._writing:
            first = self._state.next_id
            self._state = self._state.running_on(rows, vectors, name)
        ids = torch.from_numpy(empty((len(rows),), np.int64))
        return torch.arange(len(rows), out=ids).add_(first)

    @check.memory
    def remove(self, ids, missing: str = "raise") -> int:
        """Remove the items of `ids` (distinct, any order).

        Args:
            missing: what ids that are not in the index do: "raise", or "ignore".

        Returns:
            How many items went.

        Raises:
            TypeError, ValueError: ids are not distinct integers of at least 0.
            KeyError: an id is not in the index; nothing is removed.
        """
        ids = check_distinct(ids)
        check.one_of(missing, "missing", ("raise", "ignore"))
        with self._writing:
            if missing == "ignore":
                ids = self._state.held(ids)
            if missing == "raise" or len(ids):
                self._state = self._state.replacing(ids)
        return len(ids)

    @check.memory
    def update(self, ids, codes, *, vectors=None) -> None:
        """Replace the codes of items that are in the index: row i of `codes` becomes the code of ids[i].

        Args:
            ids: distinct integers, any order.
            codes: (len(ids), ceil(length / 8)) packed uint8 rows; they are copied.
            vectors: (len(ids), d), their vectors, where the index keeps some.

        Raises:
            TypeError, ValueError: an argument does not fit.
            KeyError: an id is not in the index; nothing is changed.
        """
        rows, vectors = self._checked(codes, vectors)
        ids = check_distinct(ids, len(rows))
        added = self._segments_of(rows, ids, vectors)
        with self._writing:
            self._state = self._state.replacing(ids, added)

    @check.memory
    def merge(self, other: Items, renumber: bool = False) -> torch.Tensor:
        """Add all items of another index of the same length; `other` stays as it is.

        Args:
            renumber: give them running ids, in the order of their own; else they keep their ids, and where codes are
                not copied the two share them (neither changes in place).

        Returns:
            The ids that they have here, int64, in the order of `other.ids`.

        Raises:
            TypeError, ValueError: `other` is no index, of another length or with other vectors, or an id is taken;
                nothing is added.
        """
        if not isinstance(other, Items):
            raise TypeError(f"other: expected a NestedIndex, got {check.describe(other)}")
        if other.length != self._length:
            raise ValueError(f"other: expected an index of {self._length} bits, got {other!r}")
        check.flag(renumber, "renumber")
        theirs = other.state
        if not theirs.count:
            return torch.empty(0, dtype=torch.int64)
        self._state.check_kept(theirs.kept, "other")
        if renumber:
            merged = merge(theirs.segments)
            return self._add_running(merged.codes, merged.vectors, "other")
        ids = theirs.ids()
        with self._writing:
            self._state = self._state.adding(ids, theirs.segments, theirs.next_id, "other")
        return torch.from_numpy(ids)

    @check.memory
    def compact(self) -> None:
        """Make one part of all, without what is left of removed items; nothing else changes.

        Searches are fastest then, and masks of ids that were interleaved cost no sort. It copies the codes, those of
        a mapped file into memory, but where there is nothing to do.
        """
        with self._writing:
            state = self._state
            if len(state.segments) > 1 or any(segment.alive is not None for segment in state.segments):
                self._state = State((merge(state.segments),), state.next_id)

    def reset(self) -> None:
        """Remove everything; running ids start at 0 again."""
        with self._writing:
            self._state = State()

    @check.memory
    def to(self, device, *, device_bytes: int | None = None) -> Items:
        """The same items, to be searched on a device; neither index changes with the other.

        Main memory (or the mapped file) goes on holding everything: a device has copies of what fits, and the rest is
        streamed to it through pinned memory, block by block, in every search. What searches find is on the (first)
        device, and equal to what main memory gives, to the last id. Changes, ids and files are matters of main
        memory; a change copies what is new to the devices. A search whose codes are all there does not wait for the
        device, with queries there and no `allow` or one from `filter` (`range_search` does, for the result's size).

        Args:
            device: "cuda", a device, or a list of CUDA devices, among which the items are divided; "cpu" for main
                memory alone. With `device_bytes`, or in a list, CPUs go the ways of devices: a rehearsal.
            device_bytes: what the index may take of each device: codes, ids that are no run (8 bytes an item), a byte
                an item for removals, and the blocks of what is streamed. Results, filters and the work of a search
                come on top. None for 80% of what is free now.

        Raises:
            TypeError, ValueError: an argument does not fit.
            RuntimeError: PyTorch sees no CUDA device.
        """
        if device is None:
            raise TypeError("device: expected a device such as 'cpu' or 'cuda', got None")
        placement = place_of(device, device_bytes, self._length)
        out = type(self)(self._length)
        out._placement, out._held = placement, _placed(self._state, placement)
        return out

    def copy(self) -> Items:
        """The same as `copy.copy`: it takes no time, and neither changes with the other."""
        return self.__copy__()

    def _segments_of(self, rows: torch.Tensor, ids: np.ndarray, vectors: torch.Tensor | None) -> tuple[Segment, ...]:
        """Rows with distinct ids as one segment, or none."""
        if not len(rows):
            return ()
        order = None if (ids[1:] > ids[:-1]).all() else ids.argsort()
        rows = copy_rows(rows, self._length, order)
        vectors = None if vectors is None else copied(vectors, order)
        return (Segment.of(rows, ids.copy() if order is None else ids[order], vectors),)
