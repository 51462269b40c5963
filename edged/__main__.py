"""`edged`, the daemon's command: read the arguments, configure the log, run.

0   stopped cleanly (SIGTERM, SIGINT)
1   could not run: another daemon has the runtime or the state folder, or `--check` found a model that does not work
2   the command line is wrong
78  the configuration is wrong (EX_CONFIG of sysexits.h)
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from edged import __version__

EX_CONFIG = 78

_IN_USE = "stop the other program, or choose another state folder: --state-dir DIR"


def main() -> None:
    """Run the daemon, or check the configuration."""
    args = argument_parser().parse_args()
    args.config = args.config or [Path(os.environ.get("EDGED_CONFIG", "/etc/edged/edged.toml"))]
    from edged.system.later import import_msgspec

    import_msgspec()
    from edged.api import ConfigError, EdgedError
    from edged.app.state_lock import StateLock
    from edged.models.store import FACTORY, Store
    from edged.system import log

    log.set_up("info")
    models = args.state_dir / "models"
    store = Store(FACTORY, models, unpacked=args.state_dir / "unpacked")
    try:
        if args.check:  # without the lock: a daemon may run with the same state folder
            from edged.app import check

            check.check(args.config, Store(FACTORY, models), print)
        else:
            from edged.app import daemon

            with StateLock(args.state_dir, "edged", args.runtime_dir, hint=_IN_USE) as lock:
                daemon.run(args.config, args.runtime_dir, lock, store)
    except EdgedError as error:
        logging.getLogger("edged").error("%s", error)
        sys.exit(EX_CONFIG if isinstance(error, ConfigError) else 1)
    except Exception as error:
        if not log.scarcity(error):
            raise
        logging.getLogger("edged").error("cannot run on", exc_info=error)
        sys.exit(1)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    environ = os.environ
    parser = argparse.ArgumentParser(
        prog="edged", description="Inference daemon: sensors in, predictions out.", formatter_class=_HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"edged {__version__}")
    parser.add_argument(
        "--check", action="store_true", help="check the configuration, test each model on its golden samples, and exit"
    )
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="FILE",
        help="configuration file; conf.d/*.toml in the same folder are read too (EDGED_CONFIG; /etc/edged/edged.toml)",
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        default=environ.get("EDGED_RUNTIME_DIR") or _runtime_dir(),
        help="folder of the control socket (EDGED_RUNTIME_DIR; %(default)s)",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=environ.get("EDGED_STATE_DIR", "/var/lib/edged"),
        help="folder of the files that outlive the daemon (EDGED_STATE_DIR; %(default)s)",
    )
    return parser


class _HelpFormatter(argparse.HelpFormatter):
    """Formatter with the width of $COLUMNS or 80: argparse would import shutil to ask the terminal."""

    def __init__(self, prog: str) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=(int(columns) if columns.isdecimal() else 80) - 2)


def _runtime_dir() -> str:
    """Return /run/edged for root, and a folder of the user's own for a run from a checkout."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    return f"{own}/edged" if own and os.geteuid() else "/run/edged"


if __name__ == "__main__":
    main()
