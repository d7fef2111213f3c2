"""Count the tests of bad input, file by file, and write the table in tests/README.md.

    python tests/count_bad_input.py

A test counts where its name says that something is refused (see WORDS).
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WORDS = re.compile(
    r"Bad|bad|damag|hostile|malicious|truncat|foreign|refus|invalid|wrong_|missing_|full_disk|killed|error|reject",
    re.IGNORECASE,
)


def main() -> None:
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=", "--collect-only", "-q", str(HERE)],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        check=True,
    ).stdout
    counts: dict[str, int] = {}
    for line in listing.splitlines():
        path, found, test = line.partition("::")
        if found and WORDS.search(test.split("[")[0]):
            counts[path] = counts.get(path, 0) + 1
    rows = [f"| `{path}` | {number} |" for path, number in sorted(counts.items())]
    table = [
        "| file | tests of bad input and failures |",
        "|---|---|",
        *rows,
        f"| all | {sum(counts.values())} |",
    ]
    readme = HERE / "README.md"
    head = readme.read_text().split("<!-- table")[0]
    mark = "<!-- table: python tests/count_bad_input.py -->"
    readme.write_text(head + mark + "\n\n" + "\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
