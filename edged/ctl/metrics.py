"""Everything that is counted, in the text format that Prometheus and its friends read."""

from __future__ import annotations

import argparse

from edged.core.answers import METRICS
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Print it."""
    metrics = connect(args.runtime_dir).call(METRICS)
    if args.json:
        tables.show_json(metrics)
    else:
        print(metrics["text"], end="")
    return exits.DONE
