"""Blocks of times: the head's step, search, evaluation and the index, on a CPU and on a card."""

from __future__ import annotations

import csv
import json
import textwrap

from bench.common.record import RESULTS, markdown

CALL = "2026-11-27-h200"  # the call on a card whose numbers are shown
INDEX_CALL = "2026-11-27-h200-filter"
# (items, queries, k) of the searches on a card that are shown.
SEARCHES = (
    *((10**6, 1, 10), (10**6, 64, 10), (10**6, 1000, 10), (10**6, 1000, 1000)),
    *((10**7, 1, 10), (10**7, 64, 10), (10**7, 1000, 10)),
    *((10**8, 1, 10), (10**8, 16, 10), (10**8, 200, 10), (10**8, 1000, 100)),
)
PROTOCOLS = {"cifar10": "CIFAR-10", "imagenet100": "ImageNet100", "coco": "COCO (80 labels)"}


def stored(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def head_step() -> str:
    return markdown(
        ["loss", "literal procedure, ms", "nhl_fast, ms", "times faster"],
        [
            [row["loss"], f"{row['literal_ms']:,.1f}", f"{row['nhl_fast_ms']:.2f}", f"{row['speedup']:.1f}"]
            for row in stored("head_step")["rows"]
        ],
    )


def loops() -> str:
    """The step, an epoch and an evaluation beside the loops of the public code bases; a note until it was run."""
    if not (RESULTS / "loops.json").exists():
        return "Not measured yet."
    document, lines = stored("loops"), []
    for row in document["rows"]:
        theirs = (row["published_ms"], row["single_ms"])
        times = [f"{ms:,.1f} ({ms / row['nhl_fast_ms']:.1f})" if ms else "" for ms in theirs]
        lines.append([row["part"], row["case"], f"{row['nhl_fast_ms']:,.2f}", *times])
    table = markdown(
        ["part", "of", "nhl_fast, ms", "published procedure, ms (times ours)", "a model a length, ms (times ours)"],
        lines,
    )
    return f"{table}\n\n{machine(document)}"


def search() -> str:
    return markdown(
        ["bits", "queries", "k", "nhl_fast, ms", "faiss, ms", "times faster"],
        [
            [row["bits"], row["queries"], row["k"], f"{row['nhl_fast_ms']:.2f}", f"{row['faiss_ms']:.2f}",
             f"{row['faiss_over_nhl_fast']:.1f}"]
            for row in stored("hamming_alone")["rows"]
        ],
    )  # fmt: skip


def evaluation() -> str:
    rows = stored("hamming_cpu")["rows"]
    lines = []
    for part, told in PROTOCOLS.items():
        ours, loop = (row for row in rows if row["part"] == part)
        sizes, ranked, _ = ours["case"].split(", ")
        queries, items = map(int, sizes.split(" x "))
        top = int(ranked.removeprefix("K "))
        lines.append(
            [told, f"{queries:,} x {items:,}", "whole ranking" if top == items else f"first {top:,}",
             f"{ours['ms'] / 1000:.2f}", f"{loop['nhl_fast_is_faster_by']:.0f}"]
        )  # fmt: skip
    table = markdown(["protocol", "queries x items", "ranked", "nhl_fast, s", "times faster"], lines)
    return f"{table}\n\n{machine(stored('hamming_cpu'))}"


def measures() -> str:
    """What NDCG and the rules of ties cost."""
    document = stored("measures")
    return f"{measures_table(document, 0)}\n\n{machine(document)}"


def measures_table(document: dict, digits: int) -> str:
    return markdown(
        ["protocol", "ties, measures", "ms", "times the first"],
        [
            [PROTOCOLS[r["protocol"]], r["case"], f"{r['ms']:,.{digits}f}", f"{r['of_the_first']:.2f}"]
            for r in document["rows"]
        ],
    )


def one_query() -> str:
    """One query of few codes: the index, the function and faiss."""
    document, found = stored("one_query"), {}
    for row in document["rows"]:
        found.setdefault(row["items"], {})[row["name"]] = f"{row['us']:.1f}"
    names = list(dict.fromkeys(row["name"] for row in document["rows"]))
    table = markdown(
        ["codes", *(f"{name}, us" for name in names)],
        [[f"{items:,}", *(times.get(name, "") for name in names)] for items, times in found.items()],
    )
    return f"{table}\n\n{machine(document)}"


def funnel() -> str:
    """Searches in stages beside the exact scan of an index."""
    document = stored("funnel")
    shown = [(f"{of}_{kind}", n) for of in ("one", "all") for kind, n in (("ms_a_query", 2), ("times_the_scan", 1))]
    lines = [
        [f"{r['bits']:,}", r["funnel"], f"{r['of_exact_recall']:.1%}", *(f"{r[key]:.{n}f}" for key, n in shown)]
        for r in document["rows"]
    ]
    columns = ["one query, ms", "times the scan", "of 1,000 queries, ms each", "times the scan"]
    table = markdown(["bits", "funnel", "of the scan's recall@10", *columns], lines)
    return f"{table}\n\n{document['rows'][0]['items']:,} items. {machine(document)}"


def stream() -> str:
    document = stored("stream")
    rows = document["rows"]
    table = markdown(
        ["a pass over a cold file", "reading the file, s", "the same in memory, s", "stream, s", "of the slower"],
        [
            [row["call"], f"{row['disk_s']:.2f}", f"{row['warm_s']:.2f}", f"{row['stream_s']:.2f}",
             f"{row['of_the_slower_one']:.0%}"]
            for row in rows
        ],
    )  # fmt: skip
    return f"{table}\n\n{rows[0]['items'] / 1e6:,.0f} million codes of 128 bits. {machine(document)}"


def machine(document: dict) -> str:
    """Where and when a result was measured."""
    environment = document["environment"]
    level = f" ({document['instructions']})" if "instructions" in document else ""
    number = {1: "One thread", 2: "Two threads"}.get(environment["threads"], f"{environment['threads']} threads")
    return f"{number} of {_article(environment['cpu'])}{level}, {environment['date']}."


def _article(cpu: str) -> str:
    return f"{'an' if cpu[0] in 'AI' else 'a'} {cpu.replace('(R)', '')}"


def index() -> str:
    document = stored("index_100000000")
    found = {row["measure"]: row for row in document["rows"]}
    seconds = {name: row["value"] for name, row in found.items() if row["unit"] == "s"}
    machine = f"{document['environment']['cpu']}, {document['environment']['date']}"
    codes = f"{document['n'] // 10**6} million {document['bits']}-bit codes ({machine})"
    beyond = 100 * found["peak beyond the codes, all"]["of the codes"]
    text = (
        f"An index of {codes}: built in {seconds['build']:.0f} s, saved in {seconds['save']:.0f} s, mapped in "
        f"{1000 * seconds['map (verify=False)']:.0f} ms, first search {seconds['first search 1, mapped']:.1f} s from "
        f"a cold file and {seconds['search 1, mapped']:.2f} s after; memory beyond the codes at most {beyond:.1f}% "
        "while building and searching."
    )
    return textwrap.fill(text, 118, break_on_hyphens=False)


def steps(call: str) -> dict[tuple, float]:
    """{(loss, contender, whether it was a CUDA graph): ms} of a call, at 64 x 2048 in float32 with distillation."""
    want = {"part": "steps", "n": 64, "d": 2048, "dtype": "float32", "tf32": False, "distill": 1.0}
    return {
        (row["case"], row["contender"], row["graph"]): row["ms"]
        for row in stored(f"gpu/{call}/gpu_check")["rows"]
        if "ms" in row and not row.get("weighed") and all(row.get(key) == value for key, value in want.items())
    }


def gpu_step() -> str:
    found, lines = steps(CALL), []
    for loss in dict.fromkeys(loss for loss, *_ in found):
        ours, literal = found[loss, "nhl_fast triton", True], found[loss, "literal", False]
        compiled = found[loss, "reference, torch.compile", True]
        eager, times = found[loss, "nhl_fast triton", False], f"{literal / ours:,.0f} and {compiled / ours:.1f}"
        lines.append([loss, f"{literal:.1f}", f"{compiled:.3f}", f"{ours:.3f}", times, f"{eager:.2f}"])
    head = ["loss", "literal procedure, ms", "torch.compile, CUDA graph, ms", "nhl_fast, CUDA graph, ms"]
    return markdown([*head, "times faster", "nhl_fast, eager, ms"], lines)


def gpu_search() -> str:
    with open(RESULTS / "gpu" / CALL / "scan_cuda.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["unit"] == "mma" and row["right"] == "True"]
    found = {(int(row["items"]), int(row["queries"]), int(row["k"])): row for row in rows if row["bits"] == "128"}
    return markdown(
        ["codes", "queries", "k", "ms", "pairs a second", "codes read, GB/s"],
        [
            [*(f"{number:,}" for number in case), f"{float(found[case]['graph_ms']):.3f}",
             f"{float(found[case]['giga_pairs_s']) / 1000:.2f} T", f"{float(found[case]['items_gb_s']):,.0f}"]
            for case in SEARCHES
        ],
    )  # fmt: skip


def gpu_index() -> str:
    rows, lines = stored(f"gpu/{INDEX_CALL}/placed_cuda")["rows"], []
    whole = max(row["device_bytes"] for row in rows)
    for row in rows:
        queries = f"{row['queries']:,}{', a filter' if row['filter'] else ''}"
        rates = f"{row['giga_pairs_s'] / 1000:.4f} T", f"{row['codes_gb_s']:,.1f}"
        lines.append([f"{100 * row['device_bytes'] / whole:.0f}%", queries, f"{row['ms']:.2f}", *rates])
    return markdown(["of the codes on the card", "queries", "ms", "pairs a second", "codes read, GB/s"], lines)
