"""`nhl-fast completion SHELL`: a script that completes commands, options and their values. No PyTorch here."""

from __future__ import annotations

import json

from ..core.extras import require
from . import fish
from .parser import Parser

SHELLS = ("bash", "zsh", "tcsh", "fish")
FOLDERS = ("run", "runs", "out", "resume", "root", "images")
FILES = ("data", "path", "labels", "query_codes", "database_codes", "query_labels", "database_labels", "input")
FILES += ("output", "query", "queries", "codes", "table", "embeddings", "texts")


def add(command) -> None:
    """Add the command to the parser; `command` makes one."""
    sub = command(
        "completion",
        "a script that completes in your shell",
        "Print a script that completes commands, options, their values and files.\n\n"
        "  nhl-fast completion bash > ~/.local/share/bash-completion/completions/nhl-fast\n"
        "  nhl-fast completion zsh > ~/.zfunc/_nhl-fast      # with fpath+=~/.zfunc before compinit in ~/.zshrc\n"
        "  nhl-fast completion fish > ~/.config/fish/completions/nhl-fast.fish",
    )
    sub.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def said(args, parser: Parser) -> str:
    """What the command prints."""
    text = script(parser, args.shell)
    return json.dumps({"shell": args.shell, "script": text}) if args.json else text


def script(parser: Parser, shell: str) -> str:
    """The script of a shell; ImportError, with what to install, where shtab, which fish does not need, is missing."""
    if shell == "fish":
        return fish.script(parser, FOLDERS, FILES)
    require("shtab", "completion", "shell completion")
    import shtab

    parser.complete_with(dict.fromkeys(FOLDERS, shtab.DIRECTORY) | dict.fromkeys(FILES, shtab.FILE))
    return shtab.complete(parser, shell)
