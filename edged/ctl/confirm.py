"""Confirm a version that was brought with --confirm-within; without this it is taken back when the time is over."""

from __future__ import annotations

import argparse

from edged.core.update_answers import CONFIRM
from edged.ctl.operator_request import decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    parser.add_argument("model", metavar="MODEL")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    return decide(args, CONFIRM, "is confirmed", meanwhile=", and the rest of its probation goes on")
