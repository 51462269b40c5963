"""Make the daemon read the configuration again. Unchanged parts keep running; an invalid configuration is refused."""

from __future__ import annotations

import argparse

from edged.core.answers import RELOAD
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Reload, and print the changed tables."""
    answer = connect(args.runtime_dir).call(RELOAD, timeout=30.0)
    if args.json:
        tables.show_json(answer)
    else:
        late = "the reload waits for the end of an update; see `edgectl status`"
        later = [f"{table}: takes effect when the daemon is started again" for table in answer["restart"]]
        changed = [name for name in answer["changed"] if name not in answer["restart"]]
        told = [*changed, *later] or ["nothing has changed"]
        doubts = [f"warning: {doubt}" for doubt in answer["warnings"]]
        tables.show(map(tables.plain, [*told, *doubts] if answer["done"] else [late]))
    return exits.DONE
