"""The parser's manners: a wrong word gets the near one in one line, and help says each setting's default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from typing import NoReturn

# What each loss is, and its options (--loss-option NAME=VALUE). Said here, as help is shown without PyTorch.
LOSSES = {
    "csq": (
        "central similarity quantization: cross-entropy with the class's hash centre",
        "centers quantization seed",
    ),
    "dpn": ("deep polarized network: a hinge beyond a margin on the centre's side", "centers margin ternary seed"),
    "dsh": ("deep supervised hashing: contrastive, squared distances to a bank", "margin alpha balance"),
    "dhn": ("deep hashing network: likelihood of pairs with a bank", "alpha reference_bits balance"),
    "dbdh": ("deep balanced discrete hashing: dhn on clamped outputs", "alpha clamp reference_bits balance"),
    "dtsh": ("deep triplet-supervised hashing", "margin quantization clamp reference_bits"),
    "lcdsh": ("locality-constrained deep supervised hashing", "eta clamp reference_bits"),
    "dch": (
        "deep Cauchy hashing: Cauchy likelihood of a relaxed distance",
        "gamma quantization max_cosine reference_bits",
    ),
    "mdsh": (
        "momentum deep supervised hashing with hash centres",
        "centers external_bank pair_from_epoch quantization reference_bits seed",
    ),
    "shcir": ("softmax over centres, single-label data only", "centers quantization reference_bits seed"),
    "dpsh": (
        "deep pairwise-supervised hashing: dhn's likelihood, outputs pulled to their signs",
        "alpha reference_bits balance",
    ),
    "hashnet": (
        "hashing by continuation: pairs weighed by rarity, a tanh that sharpens",
        "beta continuation reference_bits",
    ),
    "orthocos": ("OrthoHash: cosines with the class's centre, less a margin", "centers margin scale seed"),
    "orthoarc": ("OrthoHash: angles with the class's centre, and a margin", "centers margin scale seed"),
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with room for an option and its text in one line."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=118)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}{self._near(message)}; see {self.prog} --help\n")

    def refuse_unknown(self, words: list[str]) -> NoReturn:
        """End with what was given that is no option of this command."""
        word = words[0]
        if word.startswith("-"):
            known = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"no such option: {word}{_suggest(word.partition('=')[0], known)}")
        self.error(f"not expected: {' '.join(words)}")

    def show_defaults(self, config: type) -> None:
        """Add the defaults of a dataclass's fields to the help of the options that set them."""
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        for action in self._actions:
            default = defaults.get(action.dest)
            if (
                default is None
                or default is False
                or default is dataclasses.MISSING
                or "(default" in (action.help or "")
            ):
                continue
            if action.choices is not None:
                action.metavar = "NAME"
                action.help = f"{action.help}: {', '.join(action.choices)}"
            text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            action.help = f"{action.help or ''} (default {text})".strip()

    def _near(self, message: str) -> str:
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message, re.DOTALL)
        return _suggest(found[1], re.findall(r"[\w-]+", found[2])) if found else ""


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def losses_text() -> str:
    """One line a loss and one of its options."""
    lines = ["losses (their options are set with --loss-option NAME=VALUE):"]
    for name, (what, options) in LOSSES.items():
        lines += [f"  {name:8} {what}", f"         options: {', '.join(options.split())}"]
    return "\n".join(lines)
