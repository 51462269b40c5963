"""Forget the rejection of a version, to allow another try. `edgectl models` lists rejected versions and reasons."""

from __future__ import annotations

import argparse

from edged.core.update_answers import CLEAR_REJECTION
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("digest", metavar="DIGEST", help="digest of the version, or the beginning")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    return decide(args, CLEAR_REJECTION, f"accepts the version {args.digest} again", digest=args.digest)
