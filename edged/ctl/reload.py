"""Make the daemon read the configuration again. Unchanged parts keep running; an invalid configuration is refused."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from edged.core.answers import RELOAD, ReloadAnswer
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
        tables.show(map(tables.plain, _lines(answer)))
    return exits.DONE


def _lines(answer: ReloadAnswer) -> Iterator[str]:
    if not answer["done"]:
        yield tables.commands("the reload waits for the end of an update; see `edgectl status`")
        return
    verbs = {**dict.fromkeys(answer.get("added", []), "added"), **dict.fromkeys(answer.get("removed", []), "removed")}
    for name in answer["changed"]:
        if name in answer["restart"]:
            yield f"{name} has changed, and takes effect when the daemon is started again"
        else:
            yield f"{verbs.get(name, 'changed')} {name}"
    if not answer["changed"]:
        yield "nothing has changed"
    for doubt in answer["warnings"]:
        yield f"warning: {doubt}"
