"""Rules for the order of items at equal distance. Nothing here loads PyTorch: the command line knows them, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class TieRule(NamedTuple):
    """How a tie group is ordered: c items at one distance, t of them relevant, after s nearer items.

    Attributes:
        name: as users give it.
        says: as the caption of a table says it.
        places: (s, t, c) to (start, places), float64 tensors: the group's relevant items stand at the ranks
            start + 1 to start + places. None: the rows of the database decide, and the ranking itself is measured.
        expected: measures are exact means over all orders of t relevant items at those places; else places is t.
    """

    name: str
    says: str
    places: Callable | None
    expected: bool = False

    @property
    def ranked(self) -> bool:
        """Whether the ranking itself is measured: numbers of items at each distance do not tell its order."""
        return self.places is None


RULES = {
    rule.name: rule
    for rule in (
        TieRule("id", "items at equal distance in the order of the database", None),
        TieRule(
            "expected",
            "exact mean over all orders of items at equal distance",
            lambda s, t, c: (s, c),
            expected=True,
        ),
        TieRule("best", "relevant items first among those at equal distance", lambda s, t, c: (s, t)),
        TieRule("worst", "relevant items last among those at equal distance", lambda s, t, c: (s + c - t, t)),
    )
}
