"""Try a quarantined accelerator again. `edgectl models` lists accelerators, states and reasons."""

from __future__ import annotations

import argparse

from edged.core.answers import RELEASE
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("accelerator", metavar="ACCELERATOR")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    answer = connect(args.runtime_dir).call(RELEASE, accelerator=args.accelerator)
    if args.json:
        tables.show_json(answer)
    else:
        idle = f"{args.accelerator} has no fault; the release changed nothing"
        told = f"{args.accelerator} is tried again; see the state: edgectl models"
        tables.show([tables.plain(told if answer["changed"] else idle)])
    return exits.DONE
