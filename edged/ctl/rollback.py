"""Go back to the previous version, at once and without a network. The current version is rejected until `forget`."""

from __future__ import annotations

import argparse

from edged.core.update_answers import ROLLBACK
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--to", default="", metavar="VERSION", help='a version in service before, by number or digest, or "factory"'
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    return decide(args, ROLLBACK, "is rolled back", to=args.to)
