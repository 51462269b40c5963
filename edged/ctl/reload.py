"""Have the daemon read its configuration again. Only what changed is touched; a bad one changes nothing."""

from __future__ import annotations

import argparse

from edged.ctl import exits, tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Ask for it, and print what changed."""
    answer = connect(args.runtime_dir).call("reload", timeout=120.0)
    if args.json:
        tables.show_json(answer)
    else:
        tables.show(map(tables.plain, answer["changed"] or ["nothing has changed"]))
    return exits.DONE
