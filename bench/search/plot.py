"""Throughput of the Hamming search, with the measured ceiling drawn in.

    python -m bench.search.plot      # reads and writes hamming_cpu.* in $OUT, or in bench/results

The ceiling is a radius search that finds nothing: the distances, and one comparison each.
"""

from __future__ import annotations

import json

from bench.common import arguments
from bench.common.record import out_folder
from nhl_fast.pictures.style import COLORS, picture

PANELS = (
    ("items", "Database size (items of 128 bits)"),
    ("bits", "Code length (bits)"),
    ("k", "Neighbours asked for (k)"),
    ("queries", "Queries at once"),
)


def series(rows: list[dict], part: str, what: str) -> tuple[list[int], list[float]]:
    found = [(int(r["case"].split()[1]), r) for r in rows if r["part"] == part and r["case"].split()[0] == what]
    return [x for x, _ in found], [r["giga_distances_per_s"] for _, r in found]


def tick(x: int) -> str:
    """1000 as 1k, 1000000 as 1M."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if x >= size and x % size == 0:
            return f"{x // size}{unit}"
    return str(x)


def main() -> None:
    arguments.parser("bench.search.plot", __doc__).parse_args()
    folder = out_folder()
    document = json.loads((folder / "hamming_cpu.json").read_text())
    rows, environment = document["rows"], document["environment"]
    # Shorter random codes do lie within radius 0 of a query.
    ceiling = {bits: rate for bits, rate in zip(*series(rows, "ceiling", "bits")) if bits >= 32}

    def draw(figure):
        for axes, (what, label) in zip(figure.subplots(2, 2).flat, PANELS):
            xs, ys = series(rows, "search", what)
            axes.plot(xs, ys, color=COLORS[0], marker="o", label="search")
            if what == "bits":
                axes.plot(list(ceiling), list(ceiling.values()), color=COLORS[1], linestyle="--", label="ceiling")
            else:
                axes.axhline(ceiling[128], color=COLORS[1], linestyle="--", label="ceiling at 128 bits")
            axes.set_xscale("log", base=2 if what == "bits" else 10)
            axes.set_xticks(xs, [tick(x) for x in xs])
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_xlabel(label)
            axes.set_ylabel("Distances (1e9 a second)")
            axes.legend(loc="best")
        threads = environment["threads"]
        figure.suptitle(
            f"nhl_fast search, {threads} threads of {environment['cpu']}, {environment['date']}", fontsize=11
        )

    print(picture((10, 7), draw, folder / "hamming_cpu.png"))


if __name__ == "__main__":
    main()
