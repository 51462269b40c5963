"""What the verbs share in which an operator decides about a model: ask for it, and tell what serves then."""

from __future__ import annotations

import argparse
from typing import Any

from edged.ctl import exits, tables
from edged.ctl.client import connect

_SECONDS = 180.0
"""Going back loads a model, and has it answer."""


def decide(args: argparse.Namespace, verb: str, what: str, **more: Any) -> int:
    """Ask the daemon, and print `what` was decided and what serves now."""
    answer = connect(args.runtime_dir).call(verb, timeout=_SECONDS, model=args.model, **more)
    if args.json:
        tables.show_json(answer)
    else:
        serving = answer["version"] or ("the factory's version" if answer["factory"] else "nothing")
        tables.show([tables.plain(f"{args.model} {what}; {serving} serves")])
    return exits.DONE
