"""The parser's manners: a wrong word gets the near one in one line, and help says each setting's default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from typing import NoReturn

from .. import losses


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

    @property
    def actions(self) -> list[argparse.Action]:
        """What may be given, options and others."""
        return list(self._actions)

    @property
    def commands(self) -> dict[str, Parser]:
        """The parsers of the commands, by name."""
        return next((dict(a.choices) for a in self._actions if isinstance(a.choices, dict)), {})

    def complete_with(self, rules: dict) -> None:
        """How shtab completes the arguments, by name, of this parser and those of its commands."""
        for command in self.commands.values():
            command.complete_with(rules)
        for action in self._actions:
            if action.dest in rules and action.type is not int:
                action.complete = rules[action.dest]

    def _near(self, message: str) -> str:
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message, re.DOTALL)
        return _suggest(found[1], re.findall(r"[\w-]+", found[2])) if found else ""


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def losses_text() -> str:
    """One line a loss and one of its options."""
    lines = ["losses (their options are set with --loss-option NAME=VALUE):"]
    for name, (what, options) in losses.descriptions().items():
        lines += [f"  {name:8} {what}", f"           options: {', '.join(o for o in options if o != 'num_train')}"]
    return "\n".join(lines)
