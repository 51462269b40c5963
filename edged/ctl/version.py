"""Print the versions of edgectl, of the running daemon and of the packages for inference, for bug reports."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from edged import __version__
from edged.core.answers import STATUS_VERSION
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import UnreachableError, connect

_PACKAGES = ("ai-edge-litert", "tflite-runtime", "numpy", "msgspec", "paho-mqtt", "pyserial", "systemd-python")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the versions. A stopped daemon is no error here."""
    versions = {
        "edgectl": __version__,
        "edged": _daemon(args.runtime_dir),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: _installed(name) for name in _PACKAGES},
    }
    if args.json:
        tables.show_json(versions)
    else:
        tables.show(f"{name:15} {found or '-'}" for name, found in versions.items())
    return exits.DONE


def _daemon(runtime_dir: str | None) -> str | None:
    try:
        return connect(runtime_dir).call(STATUS_VERSION)["version"]
    except UnreachableError:
        return None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
