"""Confirm a version brought with --confirm-within; an unconfirmed version is rolled back when the time is over."""

from __future__ import annotations

import argparse

from edged.core.update_answers import CONFIRM
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("model", metavar="MODEL")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    return decide(args, CONFIRM, "is confirmed", meanwhile=", and the rest of its probation goes on")
