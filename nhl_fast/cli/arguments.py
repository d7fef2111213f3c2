"""The command `nhl-fast` (also `python -m nhl_fast`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys

from .. import losses
from ..core import check, names
from ..core.version import __version__
from ..retrieval.ties import RULES
from ..training.config import TrainConfig
from ..training.presets import PRESETS
from ..training.run_folder import RunFolder, check_target
from . import advise_arguments, completion, data_options, fit_arguments
from . import resume as resume
from .errors import one_line, silence
from .parser import Help, Parser, losses_text

BACKBONE_HELP = f"what the layer sits on: {', '.join(names.BACKBONES)} (default mlp; of --data folder conv)"


def lengths(text: str) -> tuple[int, ...]:
    """'8,16,32' as (8, 16, 32)."""
    try:
        return tuple(int(part) for part in text.replace(" ", "").split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers with commas, as in 8,16,32, got {text!r}") from None


def weighting(text: str):
    """'dominance', 'uniform', or one number a length."""
    if text in ("dominance", "uniform"):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected dominance, uniform or numbers with commas, got {text!r}"
        ) from None


def option(text: str) -> tuple[str, object]:
    """'name=value', the value read as JSON where it is JSON."""
    name, found, value = text.partition("=")
    if not found or not name:
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def query(text: str) -> int | str:
    """A number as one of the run's own queries, anything else as a path."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def size(text: str) -> float:
    """'2GB', '512MiB' or a number of bytes."""
    units = {"": 1, "b": 1}
    for i, letter in enumerate("kmgt", 1):
        units |= {letter: 1000**i, letter + "b": 1000**i, letter + "ib": 1024**i}
    number = text.strip().lower().rstrip("bikmgt")
    try:
        value = float(number) * units[text.strip().lower()[len(number) :]]
        if not 0 < value < 1e18:
            raise ValueError
        return value
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"expected a size such as 2GB or 512MiB, got {text!r}") from None


def add_training(parser: Parser) -> None:
    group = parser.add_argument_group("training", "settings not given come from the preset")
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        metavar="NAME",
        help="default; paper: those of arXiv 2412.08922; tuned: the best found for each loss; wide: for many classes",
    )
    group.add_argument("--loss", choices=losses.NAMES, help="see below")
    group.add_argument(
        "--loss-option", dest="loss_options", type=option, action="append", metavar="NAME=VALUE", help="see below"
    )
    group.add_argument("--centers", choices=names.CENTERS, help="hash centres")
    group.add_argument(
        "--lengths", dest="code_lengths", type=lengths, metavar="8,16,...", help="code lengths in bits"
    )
    group.add_argument("--distill-weight", type=float, metavar="X", help="weight of the long-short self-distillation")
    group.add_argument(
        "--weighting", type=weighting, metavar="HOW", help="dominance, uniform, or numbers with commas"
    )
    group.add_argument("--backbone", choices=names.BACKBONES, metavar="NAME", help=BACKBONE_HELP)
    group.add_argument("--hidden", type=lengths, metavar="512,...", help="widths of the mlp's hidden layers")
    group.add_argument("--dropout", type=float, metavar="X", help="after each hidden layer of the mlp")
    group.add_argument("--weights", metavar="NAME", help="torchvision's name of pretrained weights")
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the training rows")
    group.add_argument("--batch-size", type=int, metavar="N", help="rows a step")
    group.add_argument("--accumulate", type=int, metavar="N", help="steps whose gradients are added up")
    group.add_argument("--optimizer", choices=names.OPTIMIZERS, help="what moves the weights")
    group.add_argument("--lr", type=float, metavar="X", help="learning rate")
    group.add_argument("--weight-decay", type=float, metavar="X", help="of the optimizer")
    group.add_argument("--schedule", choices=names.SCHEDULES, help="of the learning rate")
    group.add_argument("--validate-every", type=int, metavar="N", help="epochs between validations")
    group.add_argument("--patience", type=int, metavar="N", help="validations without progress before training stops")
    group.add_argument(
        "--amp", choices=names.AMP, metavar="NAME", help="mixed precision of the backbone: bf16, fp16 (default: none)"
    )
    group.add_argument("--compile", action="store_true", default=None, help="torch.compile the backbone")
    group.add_argument("--device", metavar="NAME", help="where to train")
    group.add_argument("--workers", type=int, metavar="N", help="processes that open pictures")
    group.add_argument("--seed", type=int, metavar="N", help="of initial weights, batches and centres")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: what PyTorch takes)")
    group.add_argument("--quiet", action="store_true", help="no progress")
    parser.show_defaults(TrainConfig)
    parser.epilog = losses_text()


def given_settings(args) -> dict:
    """What was given of what `TrainConfig` takes."""
    fields = [f.name for f in dataclasses.fields(TrainConfig)]
    given = {n: getattr(args, n) for n in fields if getattr(args, n, None) is not None}
    if "loss_options" in given:
        given["loss_options"] = dict(given["loss_options"])
    return given


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="nhl-fast",
        description="Nested binary codes: train one model for every code length, evaluate, search.",
    )
    parser.add_argument("--version", action="version", version=f"nhl-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, summary, description=None):
        sub = commands.add_parser(
            name,
            help=summary,
            description=description or summary,
            formatter_class=Help,
        )
        sub.add_argument("--json", action="store_true", help="print JSON in place of text")
        sub.set_defaults(action=name, parser=sub)
        return sub

    def evaluation(sub):
        sub.add_argument("--topk", type=int, help="mAP over the first K of the ranking (default: all of it)")
        sub.add_argument("--ties", choices=tuple(RULES), default="id")
        sub.add_argument("--ndcg", type=lengths, default=(), metavar="10,100,...", help="NDCG of these ranks, too")
        sub.add_argument(
            "--mean-over", choices=names.MEANS_OVER, default="all", help="relevant: queries with a relevant item"
        )

    sub = command(
        "train",
        "train one nested model and evaluate it",
        "Train one nested model, then evaluate it and draw its pictures.\n\n"
        "  nhl-fast train --out runs/digits\n"
        "  nhl-fast train --data cifar10 --root DIR --backbone conv --out runs/cifar\n"
        "  nhl-fast train --data folder --root pictures/ --image-size 64 --out runs/mine  # pictures/CLASS/a.jpg\n"
        "  nhl-fast train --resume runs/cifar              # after a kill\n"
        "  nhl-fast train --resume runs/cifar --epochs 60  # longer",
    )
    sub.usage = "nhl-fast train --out RUN [options]"
    sub.add_argument("--out", metavar="RUN", help="run folder to write: absent or empty")
    sub.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="RUN",
        help="go on with a run (or that of --out) with its own settings and data. Of the options only --epochs, "
        "--patience, --device, --workers, --compile and where the data lies may differ from the run's",
    )
    sub.add_argument("--no-evaluate", action="store_true", help="only train")
    sub.add_argument(
        "--best-per-length",
        action="store_true",
        default=None,
        help="also keep each length's own best weights; codes of different checkpoints are no longer "
        "prefixes of one another",
    )
    evaluation(sub)
    add_training(sub)
    data_options.add(sub)

    sub = command(
        "evaluate",
        "mAP and more at every length, with pictures",
        "Evaluate a run folder, or codes from files.\n\n"
        "  nhl-fast evaluate runs/digits --topk 1000\n"
        "  nhl-fast evaluate --query-codes q.npy --database-codes d.npy --query-labels ql.npy "
        "--database-labels dl.npy",
    )
    sub.add_argument("run", nargs="?", metavar="RUN", help="run folder")
    for name in ("query-codes", "database-codes", "query-labels", "database-labels"):
        sub.add_argument(f"--{name}", metavar="NPY")
    sub.add_argument(
        "--lengths", type=lengths, metavar="8,16,...", help="with codes from files (default: powers of 2)"
    )
    sub.add_argument("--root", help="where the run's data set lies now")
    sub.add_argument("--path", help="where the run's file of features lies now")
    sub.add_argument("--device", help="where the model encodes (default: cpu)")
    sub.add_argument("--workers", type=int, default=0, help="processes that open pictures")
    evaluation(sub)

    sub = command(
        "encode",
        "packed codes of a split or of features",
        "Write packed codes, uint8 rows as numpy.packbits gives them.\n\n"
        "  nhl-fast encode runs/digits --split database -o codes.npy\n"
        "  nhl-fast encode runs/digits --input features.npy -o codes.npy --length 64\n"
        "  nhl-fast encode runs/mine --input pictures/ -o codes.npy     # names in codes.names.txt",
    )
    sub.add_argument("run", metavar="RUN", help="run folder")
    source = sub.add_mutually_exclusive_group()
    source.add_argument("--split", choices=names.SPLITS, default="database")
    source.add_argument(
        "--input",
        metavar="PATH",
        help="inputs (N, ...) in an .npy file or one of features, a picture or a folder of them",
    )
    sub.add_argument("--length", type=int, help="keep the first LENGTH bits only")
    sub.add_argument("-o", "--output", required=True, metavar="NPY")
    sub.add_argument("--root", help="where the run's data set lies now")
    sub.add_argument("--path", help="where the run's file of features lies now")
    sub.add_argument("--device", help="where the model encodes (default: cpu)")
    sub.add_argument("--workers", type=int, default=0, help="processes that open pictures")

    sub = command(
        "search",
        "nearest codes of queries",
        "Search a run's database with pictures or features of yours or some of its queries, or codes from files.\n\n"
        "  nhl-fast search runs/mine --query my.jpg        # or few.npy: rows of what the model takes\n"
        "  nhl-fast search runs/digits --query 0 7 --length 32\n"
        "  nhl-fast search --queries q.npy --codes d.npy -k 100 --length 64 --json",
    )
    sub.add_argument("run", nargs="?", metavar="RUN", help="run folder")
    sub.add_argument(
        "--query",
        type=query,
        nargs="+",
        metavar="Q",
        help="pictures, folders of them or files of features; or numbers of the run's own queries (default: 0)",
    )
    sub.add_argument("--queries", metavar="NPY", help="packed query codes")
    sub.add_argument("--codes", metavar="NPY", help="packed database codes")
    sub.add_argument("--length", type=int, help="code length in bits (default: all)")
    sub.add_argument("-k", type=int, help="how many neighbours (default 10, or all where there are fewer)")
    sub.add_argument("--root", help="where the run's data set lies now")
    sub.add_argument("--path", help="where the run's file of features lies now")
    sub.add_argument("--device", help="where the model encodes (default: cpu)")
    sub.add_argument("--workers", type=int, default=0, help="processes that open pictures")

    sub = command(
        "duplicates",
        "pairs of codes that nearly agree",
        "All pairs of codes (or image hashes) within a Hamming radius of one another.\n\n"
        "  nhl-fast duplicates codes.npy --radius 4 --out pairs.npz\n"
        "  nhl-fast duplicates phash.txt --radius 6                 # hex strings, one a line",
    )
    sub.add_argument(
        "codes", metavar="FILE", help=".npy (packed uint8, bool, uint64, int8 'binary'), or .txt of hex strings"
    )
    sub.add_argument("--radius", type=int, required=True, help="largest distance that counts")
    sub.add_argument("--length", type=int, help="code length in bits (default: all)")
    sub.add_argument(
        "--out", metavar="NPZ", help="write arrays i, j (i < j) and distance there, in no order of pairs"
    )

    sub = command(
        "compare",
        "one nested model against one model a length",
        "Train one nested model and one model for every code length at equal settings; compare mAP and time.",
    )
    sub.usage = "nhl-fast compare [options]"
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help="number of seeds (default 1; 3 for a claim)")
    sub.add_argument("--out", metavar="DIR", help="write compare.json and compare.csv there")
    add_training(sub)
    data_options.add(sub)

    sub = command(
        "report",
        "one HTML page about runs, and tables for papers",
        "Write one HTML page that needs no other file, or a table of methods x code lengths, or both.\n"
        "Runs that differ in the seed alone are one method: mean and standard deviation. The runs are only read.\n\n"
        "  nhl-fast report runs/this-0 runs/this-1 runs/that-0 -o report.html\n"
        "  nhl-fast report runs/* --table table.tex",
    )
    sub.add_argument("runs", nargs="+", metavar="RUN", help="evaluated run folders, folders or files of compare")
    sub.add_argument("-o", "--output", metavar="HTML", help="the page to write")
    sub.add_argument("--table", metavar="FILE", help="the table to write: .tex (booktabs), .md or .csv")
    sub.add_argument("--title", help="heading of the page")
    sub.add_argument("--percent", action="store_true", help="tables of measures in percent")
    sub.add_argument(
        "--projection",
        choices=names.PROJECTIONS,
        help="show the page's codes in the plane: tsne needs nhl-fast[data], umap nhl-fast[umap]",
    )

    advise_arguments.add(command, size)
    fit_arguments.add(command, lengths)
    command("backends", "what is built and active on this machine, and why not")
    completion.add(command)
    return parser


def prepare(args) -> None:
    """Where the data lies, whether progress is shown, and what the commands that train are given, checked."""
    args.places, args.progress = data_options.places(args), not (args.json or getattr(args, "quiet", False))
    if args.command == "fit" and (args.out is None) == (args.resume is None):
        args.parser.error("give either --out RUN, or --resume RUN to go on with a fit")
    if not hasattr(args, "preset"):
        return
    if args.threads is not None:
        cores = os.cpu_count() or 1
        if check.positive_int(args.threads, "--threads") > cores:
            raise ValueError(f"--threads: expected at most {cores}, this machine's cores, got {args.threads}")
    if args.command == "train" and args.resume is not None:
        resume.prepare(args, given_settings(args), data_options.given(args))
        return
    args.data_spec = {"name": "digits", "seed": 0, "validation": 0.1, **data_options.given(args)}
    preset, settings = args.preset or "default", given_settings(args)
    if args.data_spec["name"] == "folder" and "backbone" not in PRESETS[preset]:
        settings.setdefault("backbone", "conv")
    args.config = TrainConfig.preset(preset, **settings)
    data_options.refuse_impossible(args.data_spec)
    if args.command == "train":
        check_target(args.out, resume=False, name="--out")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status (2 for wrong usage, 1 for an error that is said in one line)."""
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    if not words:
        parser.print_help()
        raise SystemExit(2)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        args.parser.refuse_unknown(unknown)
    for name, value in vars(args).items():
        if value == []:  # what argparse makes of --root=--
            args.parser.error(f"argument --{name.replace('_', '-')}: expected one argument")
    if args.command == "train":
        if args.out is None and not isinstance(args.resume, str):
            args.parser.error("give --out RUN, or --resume RUN to go on with a run")
        args.out = args.resume if args.out is None else args.out
    try:
        prepare(args)
        if args.command == "completion":
            print(completion.said(args, parser))
            return 0
        from . import actions as cli_actions  # PyTorch is loaded once the arguments are right

        status = getattr(cli_actions, args.action)(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        silence(sys.stdout)
        return 0
    except KeyboardInterrupt:
        out = args.out or args.resume if args.command in ("train", "fit") else None
        begun = out is not None and RunFolder(out).config.exists()
        hint = f"; go on with: nhl-fast {args.command} --resume {out}" if begun else ""
        print(f"nhl-fast: interrupted{hint}", file=sys.stderr)
        return 130
    except Exception as error:
        places = {action.dest for action in args.parser.actions if not action.option_strings}
        text = data_options.in_flags(one_line(error), vars(args).keys() - places)
        print(f"nhl-fast {args.command}: {text}", file=sys.stderr)
        silence(sys.stdout)
        return 1
