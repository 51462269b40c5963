"""Print all metrics in the text format of Prometheus."""

from __future__ import annotations

import argparse

from edged.core.answers import METRICS
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    metrics = connect(args.runtime_dir).call(METRICS)
    if args.json:
        tables.show_json(metrics)
    else:
        print(metrics["text"], end="")
    return exits.DONE
