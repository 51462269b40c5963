"""Try an accelerator again that was quarantined because it failed too often. `edgectl models` names it, and why."""

from __future__ import annotations

import argparse

from edged.core.answers import RELEASE
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which one."""
    parser.add_argument("accelerator", metavar="ACCELERATOR")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    answer = connect(args.runtime_dir).call(RELEASE, accelerator=args.accelerator)
    if args.json:
        tables.show_json(answer)
    else:
        idle = f"{args.accelerator} has no fault to be released from; nothing has changed"
        told = f"{args.accelerator} is tried again; edgectl models shows what comes of it"
        tables.show([tables.plain(told if answer["changed"] else idle)])
    return exits.DONE
