"""Find the configuration and the state folder for verbs without a daemon.

The command line comes first, then the environment, then the paths of a running daemon, then the paths of the system.
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
"""Verbs with the paths of a running daemon. `tune` and `devices allow` write as root, and so trust no socket."""

_SECONDS = 3.0


def settle(args: argparse.Namespace) -> None:
    """Fill in `config` and `state_dir` unless given."""
    if not args.config and (said := os.environ.get("EDGED_CONFIG")):
        args.config = [said]
    args.state_dir = args.state_dir or os.environ.get("EDGED_STATE_DIR")
    reads = args.verb in READERS and getattr(args, "action", "") != "allow"
    known = _known(args.runtime_dir) if reads and not (args.config and args.state_dir) else None
    args.config = args.config or (known and known["files"]) or [SYSTEM_CONFIG]
    args.state_dir = args.state_dir or (known and known.get("state_dir")) or SYSTEM_STATE_DIR


def _known(runtime_dir: str | None) -> ConfigAnswer | None:
    """Return the configuration of a running daemon; None without a daemon."""
    try:
        return connect(runtime_dir).call(STATUS_CONFIG, timeout=_SECONDS)["config"]
    except EdgedError:
        return None
