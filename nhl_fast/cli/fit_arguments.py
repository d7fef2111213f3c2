"""Arguments of `nhl-fast fit`. No PyTorch here."""

from __future__ import annotations

import argparse

from ..core import names


def add(command, lengths) -> None:
    """Add the command: `command(name, summary, description)` gives its parser, `lengths` reads 8,16,32."""
    sub: argparse.ArgumentParser = command(
        "fit",
        "codes for vectors without labels",
        "Fit a nested hash layer to embeddings that have no labels, measure it beside random projections, PCA and\n"
        "ITQ, and keep layer, codes and results in one folder. `encode` and `search` take the folder.\n\n"
        "  nhl-fast fit embeddings.npy --out runs/emb\n"
        "  nhl-fast fit --texts lines.txt --model all-MiniLM-L6-v2 --out runs/texts\n"
        "  nhl-fast fit --images DIR --model resnet18 --out runs/images\n"
        "  nhl-fast fit --resume runs/emb                  # after a kill",
    )
    sub.add_argument(
        "embeddings", nargs="?", metavar="NPY", help="vectors (n, d): .npy (mapped) or .npz (`features`)"
    )
    sub.add_argument("--texts", metavar="FILE", help="texts to embed, one a line (extra: text)")
    sub.add_argument("--images", metavar="DIR", help="folder of pictures to embed (extra: image)")
    sub.add_argument("--model", metavar="NAME", help="sentence-transformers model (a name or folder), or timm's name")
    sub.add_argument("--out", metavar="RUN", help="run folder to write: absent or empty")
    sub.add_argument("--resume", metavar="RUN", help="go on with a fit, with its own settings and vectors")
    sub.add_argument("--method", choices=names.FIT_METHODS, help="how the layer is fitted (default: learned)")
    sub.add_argument("--lengths", dest="code_lengths", type=lengths, metavar="8,16,...", help="code lengths in bits")
    sub.add_argument("--queries", type=int, help="rows held out to measure recall (default 2000)")
    sub.add_argument("-k", type=int, help="true neighbours a query (default 10)")
    sub.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        default=None,
        help="take rows as they are, and inner products in place of cosines",
    )
    sub.add_argument(
        "--no-baselines", dest="baselines", action="store_false", default=None, help="measure the layer alone"
    )
    sub.add_argument("--sample-rows", type=int, help="rows held in memory, that train (default 65536)")
    sub.add_argument("--steps", type=int, help="steps of the optimizer (default 6000)")
    sub.add_argument("--temperature", type=float)
    sub.add_argument("--lr", type=float)
    sub.add_argument(
        "--hidden", type=int, metavar="N", help="a hidden layer of N numbers trains along in front (default: none)"
    )
    sub.add_argument("--seed", type=int)
    sub.add_argument("--quiet", action="store_true", help="no progress")
    sub.add_argument("--device")
