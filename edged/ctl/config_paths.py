"""Find the configuration and the state folder for the verbs that need no daemon.

They are those of the daemon that answers, if one does, or else the system's. What the command line or the environment
says counts before both.
"""

from __future__ import annotations

import argparse
import os

from edged.core.answers import STATUS_CONFIG, ConfigAnswer
from edged.core.errors import EdgedError
from edged.ctl.client import connect

SYSTEM_CONFIG = "/etc/edged/edged.toml"
SYSTEM_STATE_DIR = "/var/lib/edged"
READERS = ("asyncapi", "bench", "config", "devices", "doctor", "infer", "prove", "support-bundle", "verify")
"""The verbs that ask the daemon. `tune` and `devices allow` write as root, and so take nobody's word."""

_SECONDS = 3.0


def settle(args: argparse.Namespace) -> None:
    """Fill in `config` and `state_dir` where nobody has said them."""
    if not args.config and (said := os.environ.get("EDGED_CONFIG")):
        args.config = [said]
    args.state_dir = args.state_dir or os.environ.get("EDGED_STATE_DIR")
    reads = args.verb in READERS and getattr(args, "action", "") != "allow"
    known = _known(args.runtime_dir) if reads and not (args.config and args.state_dir) else None
    args.config = args.config or (known and known["files"]) or [SYSTEM_CONFIG]
    args.state_dir = args.state_dir or (known and known.get("state_dir")) or SYSTEM_STATE_DIR


def _known(runtime_dir: str | None) -> ConfigAnswer | None:
    """Return what the daemon that answers says of its configuration, or nothing if none answers."""
    try:
        return connect(runtime_dir).call(STATUS_CONFIG, timeout=_SECONDS)["config"]
    except EdgedError:
        return None
