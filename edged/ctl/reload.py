"""Have the daemon read its configuration again. Only what changed is touched; a bad one changes nothing."""

from __future__ import annotations

import argparse

from edged.core.answers import RELOAD
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Ask for it, and print what changed."""
    answer = connect(args.runtime_dir).call(RELOAD, timeout=30.0)
    if args.json:
        tables.show_json(answer)
    else:
        late = "it waits for an update that is under way, and takes effect after that; see `edgectl status`"
        later = [f"{table}: takes effect when the daemon is started again" for table in answer["restart"]]
        changed = [name for name in answer["changed"] if name not in answer["restart"]]
        told = [*changed, *later] or ["nothing has changed"]
        doubts = [f"warning: {doubt}" for doubt in answer["warnings"]]
        tables.show(map(tables.plain, [*told, *doubts] if answer["done"] else [late]))
    return exits.DONE
