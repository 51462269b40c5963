"""Clear what the broker retains of another device, which will never come back: a board whose card died, for instance.

The daemon does so over its own connection, under its own topic prefix; Home Assistant forgets the device as well.
"""

from __future__ import annotations

import argparse

from edged.core.answers import FORGET_DEVICE
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect

_SECONDS = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which device."""
    parser.add_argument("device", metavar="NAME", help="its [device] name, as it stands in its topics")


def run(args: argparse.Namespace) -> int:
    """Ask for it, and print what was cleared."""
    answer = connect(args.runtime_dir).call(FORGET_DEVICE, timeout=_SECONDS, device=args.device)
    if args.json:
        tables.show_json(answer)
    else:
        cleared = answer["topics"]
        tables.show([f"{args.device} is forgotten; cleared were:", *(f"  {tables.plain(topic)}" for topic in cleared)])
    return exits.DONE
