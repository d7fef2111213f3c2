"""`python -m nhl_fast.native [status | build]`: what native libraries are there, or compile them."""

import argparse
import sys

import torch

from . import BuildError, build, cpu_status, cuda_status, is_built


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nhl_fast.native", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("status", "build"), default="status")
    if parser.parse_args(arguments).command == "build":
        try:
            build()
        except BuildError as error:
            print(f"nhl_fast: {error}", file=sys.stderr)
            return 1
        return 0
    later = False, "not built yet: it is built at its first use, or now by python -m nhl_fast.native build"
    found = {"cpp": cpu_status() if is_built("cpp") else later}
    found["cuda"] = (
        cuda_status() if not torch.cuda.is_available() or (found["cpp"][0] and is_built("cuda")) else later
    )
    for name, (ready, detail) in found.items():
        print(f"{name:<5} {'yes' if ready else 'no':<4} {detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
