"""What the verbs share in which an operator decides about a model: ask for it, and tell what serves then."""

from __future__ import annotations

import argparse

from edged.core.protocol import Call
from edged.core.update_answers import ServingAnswer
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect

_SECONDS = 180.0
"""Going back loads a model, and has it answer."""


def decide(
    args: argparse.Namespace,
    call: Call[ServingAnswer],
    what: str,
    *,
    idle: str = "",
    meanwhile: str = "",
    **more: object,
) -> int:
    """Ask the daemon, and print `what` was decided and what serves now.

    `idle` is printed instead if nothing has changed by it, and `meanwhile` as well where a version is under way.
    """
    answer = connect(args.runtime_dir).call(call, timeout=_SECONDS, model=args.model, **more)
    if args.json:
        tables.show_json(answer)
    else:
        told = idle if idle and not answer.get("changed") else what
        told += meanwhile if answer["under_way"] else ""
        serving = "no pipeline uses it" if answer["serving"] is None else f"{answer['version'] or 'nothing'} serves"
        tables.show([tables.plain(f"{args.model} {told}; {serving}")])
    return exits.DONE
