"""The script that completes commands in fish, which shtab does not know."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from .parser import Parser

# True where the command is the one given or, without one, where none is there yet.
HEAD = """\
function __nhl_fast_command
    set -l words (commandline -opc)
    test (count $argv) = 0; and test (count $words) = 1; and return
    test (count $argv) = 1; and test (count $words) -gt 1; and test $words[2] = $argv[1]
end
complete -c nhl-fast -f
"""


def script(parser: Parser, folders: Collection[str], files: Collection[str]) -> str:
    """The script; arguments of the names `folders` are completed with folders, those of `files` with files."""
    lines = [_line("", _switches(action), action.help) for action in parser.actions if action.option_strings]
    for name, command in parser.commands.items():
        lines.append(_line("", f"-a {name}", (command.description or "").partition("\n")[0]))
        for action in command.actions:
            words = f"{_switches(action)} {_values(action, folders, files)}".strip()
            if words:
                lines.append(_line(f" {name}", words, action.help))
    return (HEAD + "".join(lines)).rstrip()


def _line(command: str, words: str, told: str | None) -> str:
    said = f" -d {_quoted(' '.join(told.split()))}" if told else ""
    return f"complete -c nhl-fast -n '__nhl_fast_command{command}' {words}{said}\n"


def _switches(action: argparse.Action) -> str:
    return " ".join(f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in action.option_strings)


def _values(action: argparse.Action, folders: Collection[str], files: Collection[str]) -> str:
    """How what follows an option, or stands alone, is completed."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        found = f"-a {_quoted(' '.join(map(str, action.choices)))}"
    elif action.dest in folders and action.type is not int:
        found = "-a '(__fish_complete_directories (commandline -ct))'"
    elif action.dest in files and action.type is not int:
        return "-r -F" if action.option_strings else "-F"
    else:
        found = ""
    return f"-x {found}".strip() if action.option_strings else found


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
