"""The table methods x code lengths, in every format."""

import csv
import io
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhl_fast.paper_table import FORMATS, escape_latex, methods_table

ROWS = [
    {"method": "CSQ", "bits": b, "mAP": value + s / 100, "seed": s}
    for b, value in ((8, 0.5), (16, 0.7))
    for s in range(3)
] + [{"method": "A_&B", "bits": 8, "mAP": 0.6, "seed": 0}, {"method": "A_&B", "bits": 32, "mAP": 0.9, "seed": 0}]


def test_latex():
    text = methods_table(ROWS, "latex", caption="50% of x_1.", label="tab:a", digits=3)
    assert text == "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering",
            r"\caption{50\% of x\_1. Mean $\pm$ sample standard deviation over seeds (their number is in the second "
            r"column). Best in bold.}",
            r"\label{tab:a}",
            r"\begin{tabular}{lcccc}",
            r"\toprule",
            r"& & \multicolumn{3}{c}{mAP at code length (bits)} \\",
            r"\cmidrule(lr){3-5}",
            r"Method & Seeds & 8 & 16 & 32 \\",
            r"\midrule",
            r"CSQ & 3 & 0.510 $\pm$ 0.010 & 0.710 $\pm$ 0.010 & -- \\",
            r"A\_\&B & 1 & \textbf{0.600} & -- & 0.900 \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def test_markdown():
    lines = methods_table(ROWS, "markdown", caption="On x_1.", digits=2).splitlines()
    assert lines[0].startswith(r"mAP. On x\_1. Mean ± ")
    assert lines[2:] == [
        "| Method | Seeds | 8 bits | 16 bits | 32 bits |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| CSQ | 3 | 0.51 ± 0.01 | 0.71 ± 0.01 | – |",
        r"| A\_&B | 1 | **0.60** | – | 0.90 |",
    ]


def test_csv_has_every_digit():
    rows = list(csv.DictReader(io.StringIO(methods_table(ROWS, "csv"))))
    values = [0.5, 0.51, 0.52]
    assert rows[0]["method"] == "CSQ"
    assert float(rows[0]["mAP_8"]) == pytest.approx(np.mean(values), abs=1e-15)
    assert float(rows[0]["mAP_8_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert rows[0]["mAP_32"] == rows[1]["mAP_16"] == rows[1]["mAP_8_std"] == ""
    one = [{"method": "m", "bits": 8, "mAP": 0.1 + 0.2}]
    assert methods_table(one, "csv") == "method,seeds,mAP_8\nm,1,0.30000000000000004\n"


def test_percent():
    lines = methods_table(ROWS, "markdown", percent=True).splitlines()
    assert lines[0].startswith("mAP (%). Mean ± ")
    assert lines[4:] == ["| CSQ | 3 | 51.00 ± 1.00 | 71.00 ± 1.00 | – |", r"| A\_&B | 1 | **60.00** | – | 90.00 |"]
    assert r"mAP (\%) at code length" in methods_table(ROWS, "latex", percent=True)
    assert "| CSQ | 3 | 51.0 ± 1.0 |" in methods_table(ROWS, "markdown", percent=True, digits=1)
    row = next(csv.DictReader(io.StringIO(methods_table(ROWS, "csv", percent=True))))
    assert float(row["mAP_percent_8"]) == pytest.approx(51)
    assert float(row["mAP_percent_8_std"]) == pytest.approx(1)
    # Bold follows what is printed in percent, too.
    close = [{"method": m, "bits": 8, "mAP": v} for m, v in (("a", 0.50001), ("b", 0.50004), ("c", 0.4989))]
    assert methods_table(close, "markdown", percent=True).count("**50.00**") == 2
    with pytest.raises(TypeError, match="percent: expected True or False"):
        methods_table(ROWS, percent="yes")


def test_bold_follows_what_is_printed():
    rows = [{"method": m, "bits": 8, "mAP": v} for m, v in (("a", 0.50001), ("b", 0.50004), ("c", 0.4999))]
    assert methods_table(rows, "markdown").count("**0.5000**") == 2
    assert methods_table(rows, "markdown", digits=5).count("**0.50004**") == 1
    assert "**" not in methods_table(rows[:1], "markdown")
    assert "bold" not in methods_table(rows[:1], "markdown")
    assert "One seed." in methods_table(rows, "markdown")


def test_seeds_are_said():
    rows = ROWS[:6]
    assert "over 3 seeds." in methods_table(rows, "latex")
    assert "Seeds" not in methods_table(rows, "latex")
    assert "| 2–3 |" in methods_table([*rows[:5], *ROWS[6:]], "markdown")
    renamed = [{**row, "mAP@5": row["mAP"]} for row in rows]
    assert "mAP@5 at code length" in methods_table(renamed, "latex", metric="mAP@5")


NAMES = st.text(string.printable + "é±–𝛌", min_size=1, max_size=12)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_any_name_stays_in_its_cell(names):
    rows = [{"method": name, "bits": b, "mAP": 0.5} for name in names for b in (8, 16)]
    back = list(csv.reader(io.StringIO(methods_table(rows, "csv"), newline="")))
    assert [line[0] for line in back[1:]] == [" ".join(name.split()) for name in names]
    body = methods_table(rows, "markdown").split("\n")[4:-1]
    assert len(body) == len(names)
    for line in body:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 4
    body = re.search(r"\\midrule\n(.*)\n\\bottomrule", methods_table(rows, "latex"), re.DOTALL)[1].split("\n")
    assert len(body) == len(names)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 2


@given(st.text(max_size=30))
def test_latex_escapes_leave_no_special_character(text):
    escaped = escape_latex(text)
    commands = r"\\text(?:backslash|asciitilde|asciicircum|less|greater|bar|quotedbl)\{\}"
    known = commands + r"|\\[{}&%$#_]|\$\\(?:pm|lambda)\$"
    assert not set(re.sub(known, "", escaped)) & set('\\{}&%$#_~^<>|"\n')


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "rows: expected at least one"),
        ("abc", TypeError, "rows: expected a sequence"),
        ([{"method": "a", "bits": 8}], ValueError, r"rows\[0\]: expected .*'mAP'"),
        ([{"method": "a", "bits": 0, "mAP": 0.5}], ValueError, "bits"),
        ([{"method": "a", "bits": 8.5, "mAP": 0.5}], TypeError, "bits"),
        ([{"method": 7, "bits": 8, "mAP": 0.5}], TypeError, "method"),
        ([{"method": "a", "bits": 8, "mAP": float("nan")}], ValueError, "mAP"),
        ([{"method": "a", "bits": 8, "mAP": "0.5"}], TypeError, "mAP"),
        ([{"method": "a", "bits": 8, "mAP": 0.5, "seed": 1}] * 2, ValueError, "seed 1 of 'a' at 8 bits comes twice"),
    ],
)
def test_bad_rows(rows, error, message, format):
    with pytest.raises(error, match=message):
        methods_table(rows, format)


def test_bad_format_and_digits():
    with pytest.raises(ValueError, match="format: expected one of 'latex'"):
        methods_table(ROWS, "pdf")
    with pytest.raises(ValueError, match="digits"):
        methods_table(ROWS, digits=-1)
