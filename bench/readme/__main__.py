"""Fill the generated blocks of README.md and docs/*.md from bench/results, or tell which are out of date.

    python -m bench.readme --write | --check

A block stands between `<!-- bench: NAME -->` and `<!-- end -->`; bench/readme/blocks.py knows the names.
"""

from __future__ import annotations

import sys

from bench.common import arguments
from bench.common.record import ROOT
from bench.readme.blocks import documents, filled, stale
from nhl_fast.core.files import atomic_write


def main(argv=None) -> int:
    parser = arguments.parser("bench.readme", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write them")
    what.add_argument("--check", action="store_true", help="exit code 1 where one is out of date")
    options = parser.parse_args(argv)
    late = 0
    for path in documents():
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        try:
            made = filled(text, name)
        except ValueError as error:
            parser.error(str(error))
        if made == text:
            continue
        print(f"{name}: {'wrote' if options.write else 'out of date:'} {', '.join(stale(text, made))}")
        if options.write:
            with atomic_write(path, "w") as handle:
                handle.write(made)
        else:
            late += 1
    if late:
        print("python -m bench.readme --write brings them up to date")
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
