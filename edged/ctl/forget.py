"""Forget that a version was rejected, so that it may be tried again. `edgectl models` shows which were, and why."""

from __future__ import annotations

import argparse

from edged.core.update_answers import CLEAR_REJECTION
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and which version."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("digest", metavar="DIGEST", help="of the version, or how it begins")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    return decide(args, CLEAR_REJECTION, f"may try {args.digest} again", digest=args.digest)
