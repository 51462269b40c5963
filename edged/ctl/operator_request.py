"""Send an operator's decision about a model, and print the version in service afterwards."""

from __future__ import annotations

import argparse

from edged.core.protocol import Call
from edged.core.update_answers import ServingAnswer
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect

_SECONDS = 180.0
"""Seconds for an answer: a rollback loads and tests a model."""


def decide(
    args: argparse.Namespace,
    call: Call[ServingAnswer],
    what: str,
    *,
    idle: str = "",
    meanwhile: str = "",
    **more: object,
) -> int:
    """Send the decision, and print `what` as its result with the version in service.

    `idle` is printed instead if the decision changed nothing, and `meanwhile` as well while an update is under way.
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
