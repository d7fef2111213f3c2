"""Plain text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(rows: Sequence[dict], digits: int = 4) -> str:
    """Equal dicts as an aligned table; floats with `digits` decimals, everything else as it prints."""
    if not rows:
        return ""
    header = list(rows[0])
    cells = [[_cell(row.get(name), digits) for name in header] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(header)]
    lines = ["  ".join(name.rjust(w) for name, w in zip(header, widths))]
    lines.append("  ".join("-" * w for w in widths))
    lines += ["  ".join(cell.rjust(w) for cell, w in zip(line, widths)) for line in cells]
    return "\n".join(lines)


def _cell(value, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return "" if value is None else str(value)
