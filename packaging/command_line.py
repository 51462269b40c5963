"""Options and verbs of the commands, read from argparse and the table of verbs, for manual and completion."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Option(NamedTuple):
    """Option or fixed word; `value` is "" for an option without a value."""

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str


class Command(NamedTuple):
    """Command or verb: usage, summary in one line, description, and options."""

    usage: str
    summary: str
    prose: str
    words: tuple[Option, ...]
    options: tuple[Option, ...]


class CommandLine(NamedTuple):
    """Command lines of `edged` and `edgectl`; `common` are options before or after a verb."""

    edged: Command
    common: tuple[Option, ...]
    verbs: Mapping[str, Command]
    exits: Mapping[int, str]


def read() -> CommandLine:
    """Read the command lines of the checkout, with the defaults of a service on a board."""
    for name in ("XDG_RUNTIME_DIR", *(name for name in os.environ if name.startswith(("EDGED_", "EDGECTL_")))):
        os.environ.pop(name, None)
    sys.path.insert(0, str(ROOT))
    from edged.__main__ import argument_parser
    from edged.ctl import exit_codes as exits
    from edged.ctl.main import VERBS, common_options, verb_parser

    common = _command(common_options(), "").options
    verbs = {verb: _command(verb_parser(verb), summary, leave_out=common) for verb, (_, summary) in VERBS.items()}
    return CommandLine(_command(argument_parser(), "inference daemon"), common, verbs, exits.MEANINGS)


def _command(parser: argparse.ArgumentParser, summary: str, leave_out: tuple[Option, ...] = ()) -> Command:
    found = [_option(parser, action) for action in parser._actions if action.help != argparse.SUPPRESS]
    words = tuple(option for option in found if not option.names)
    options = tuple(option for option in found if option.names and option not in leave_out and "-h" not in option.names)
    usage = " ".join([*(_shown(option) for option in options), *(word.value for word in words)])
    return Command(usage, summary, parser.description or "", words, options)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    choices = tuple(map(str, action.choices or ()))
    value = ""
    if action.nargs != 0:
        value = "{" + ",".join(choices) + "}" if choices else str(action.metavar or action.dest.upper())
    if not action.option_strings:
        value = {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} ..."}.get(str(action.nargs), value)
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return Option(tuple(action.option_strings), value, choices, text)


def _shown(option: Option) -> str:
    return f"[{' '.join([option.names[-1], option.value]).strip()}]"
