"""Pin a model to the current version: newer versions are refused until `edgectl pin --off`."""

from __future__ import annotations

import argparse

from edged.core.update_answers import PIN
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--off", action="store_true", help="unpin the model")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.off:
        return decide(args, PIN, "is not pinned any more", idle="was not pinned", pinned=False)
    return decide(args, PIN, "is pinned", idle="was pinned already", pinned=True)
