"""Have a model stay with the version it has: nothing newer comes in until it is let go of with --off."""

from __future__ import annotations

import argparse

from edged.core.update_answers import PIN
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and whether to let go."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--off", action="store_true", help="let go of it")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.off:
        return decide(args, PIN, "is not pinned any more", idle="was not pinned", pinned=False)
    return decide(args, PIN, "is pinned", idle="was pinned already", pinned=True)
