"""Clear the retained messages of another device at the broker, for example of a board with a dead card.

The running daemon clears the topics, with its connection and topic prefix. Home Assistant forgets the device, too.
"""

from __future__ import annotations

import argparse

from edged.core.answers import FORGET_DEVICE
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect

_SECONDS = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("device", metavar="NAME", help="[device] name, as in the topics of the device")


def run(args: argparse.Namespace) -> int:
    """Clear the topics, and print the cleared topics."""
    answer = connect(args.runtime_dir).call(FORGET_DEVICE, timeout=_SECONDS, device=args.device)
    if args.json:
        tables.show_json(answer)
    else:
        cleared = answer["topics"]
        tables.show([f"{args.device} is forgotten; cleared were:", *(f"  {tables.plain(topic)}" for topic in cleared)])
    return exits.DONE
