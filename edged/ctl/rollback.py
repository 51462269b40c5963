"""Go back to the version that served before, at once and without a network. What it goes back from is refused then."""

from __future__ import annotations

import argparse

from edged.core.update_answers import ROLLBACK
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how far."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--to", default="", metavar="VERSION", help='a version that once served here, its digest, or "factory"'
    )


def run(args: argparse.Namespace) -> int:
    """Do it."""
    return decide(args, ROLLBACK, "is rolled back", to=args.to)
