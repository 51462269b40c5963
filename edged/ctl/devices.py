"""Show the accelerators supported by edged, with the devices on this board, and cameras with formats and controls.

The command needs no daemon and opens no accelerator; the file system has the information. Cameras are asked for
formats, sizes, rates and controls, which disturbs no program in use of the camera. A running daemon adds the models on
each accelerator. With --probe, a child process also loads each ready delegate, as a check of the library with this
TFLite runtime; stop the daemon first, since a device has a single user. The exit code is 1 if a loaded delegate fails.

`allow` lets the service open the devices of the configuration, and no others: the devices of sources, plug-ins
included, and accelerators for models. Otherwise the service sees no device. The command writes a drop-in for systemd,
as root; repeat the command after changes of the configuration. --dry-run shows the drop-in.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from edged.backends.delegates import Delegate, DelegateOptions, Survey, delegates, resolve, survey
from edged.core.acceleration import Rules
from edged.core.answers import MODELS, STATUS_VERSION, AcceleratorAnswer
from edged.core.errors import ControlError, EdgedError
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import UnreachableError, connect
from edged.ctl.devices_cameras import camera_lines, camera_rows
from edged.ctl.models import describe_accelerator
from edged.sources.v4l2 import cameras

_COLUMNS = ("DELEGATE", "STATE", "DEVICES", "DESCRIPTION", "LIBRARY")


class ModelUse(TypedDict):
    """A model with an accelerator."""

    name: str
    accelerator: AcceleratorAnswer


class DeviceRow(TypedDict):
    """A device of a delegate, from the file system."""

    id: str
    node: str
    state: str
    problem: str
    hint: str


class DelegateRow(TypedDict):
    """A delegate as `edgectl devices --json` prints it."""

    name: str
    kind: str
    title: str
    state: str
    library: str | None
    devices: list[DeviceRow]
    problem: str
    hint: str
    models: NotRequired[list[ModelUse]]


_DOTS = {"ready": "running", "works": "running", "no device": "stopped", "fails": "failed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument(
        "action", nargs="?", choices=("list", "allow"), default="list", help="list unless told to allow"
    )
    parser.add_argument("--probe", action="store_true", help="load each ready delegate, in a child process")
    parser.add_argument("--dry-run", action="store_true", help="with allow: change nothing, and show the drop-in")
    parser.add_argument(
        "--restart", action="store_true", help="with allow: restart the service, for the change to take effect"
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.action == "list" and (args.dry_run or args.restart):
        raise ControlError("--dry-run and --restart go with allow", hint="edgectl devices allow --dry-run")
    if args.action == "allow" and args.probe:
        raise ControlError("--probe does not go with allow", hint="edgectl devices --probe")
    if args.action == "allow":
        from edged.ctl import devices_allow as allow

        return allow.run(args)
    return _list(args)


def _list(args: argparse.Namespace) -> int:
    configured, rules = _configured([Path(file) for file in args.config])
    if args.probe and daemon_runs(args.runtime_dir):
        raise ControlError(
            "the daemon runs, and may use the devices", hint="stop the daemon first: sudo systemctl stop edged"
        )
    rows = rows_of(map(survey, delegates(configured).values()), rules if args.probe else None)
    used = _used(args.runtime_dir)
    for row in rows:
        row["models"] = [each for each in used if each["accelerator"]["name"] == row["name"]]
    found = camera_rows(cameras())
    if args.json:
        tables.show_json([*rows, *found])
    else:
        tables.show([*lines(rows, configured), *camera_lines(found)])
    return exits.BAD if any(row["state"] == "fails" for row in rows) else exits.DONE


def _used(runtime_dir: str | None) -> list[ModelUse]:
    """Return the models with an accelerator, and the state of each; none without a daemon."""
    try:
        models = connect(runtime_dir).call(MODELS)
    except EdgedError:
        return []
    return [{"name": model["name"], "accelerator": model["accelerator"]} for model in models if model["accelerator"]]


def daemon_runs(runtime_dir: str | None) -> bool:
    """Return whether a daemon has the control socket, whatever the answer."""
    try:
        connect(runtime_dir).call(STATUS_VERSION)
    except UnreachableError:
        return False
    except EdgedError:  # a daemon of another version, or a busy daemon
        return True
    return True


def _configured(files: list[Path]) -> tuple[Mapping[str, DelegateOptions], Rules]:
    """Return the delegates and rules of the configuration, or the defaults without a file."""
    if not files[0].exists():
        return {}, Rules()
    from edged.config.load import load

    config = load(files)
    return config.delegates, config.accelerators


def rows_of(surveys: Iterable[Survey], rules: Rules | None = None) -> list[DelegateRow]:
    """Return the row of each survey; with `rules`, each ready delegate is loaded, and works or fails."""
    return [_row(each, rules) for each in surveys]


def _row(found: Survey, rules: Rules | None) -> DelegateRow:
    delegate, state, problem, hint = found.delegate, str(found.state), found.problem, found.hint
    if state == "ready" and rules is not None:
        state, problem, hint = _probe(delegate, rules)
    return {
        "name": delegate.name,
        "kind": delegate.kind,
        "title": delegate.known.title,
        "state": state,
        "library": found.library,
        "devices": [
            {
                "id": device.id,
                "node": device.node,
                "state": device.state,
                "problem": device.problem,
                "hint": device.hint,
            }
            for device in found.devices
        ],
        "problem": problem,
        "hint": hint,
    }


def _probe(delegate: Delegate, rules: Rules) -> tuple[str, str, str]:
    from edged.backends.probe import probe

    try:
        probe(resolve(delegate), rules)
    except EdgedError as error:
        return "fails", error.message, error.hint
    return "works", "", ""


def lines(rows: list[DelegateRow], configured: Iterable[str]) -> Iterator[str]:
    """Yield the table, with the reason below a present or configured delegate that is not ready."""
    cells = [
        (
            row["name"],
            row["state"],
            ", ".join(device["id"] for device in row["devices"]) or "-",
            row["title"],
            row["library"] or "-",
        )
        for row in rows
    ]
    body = tables.table(_COLUMNS, cells)
    yield f"  {next(body)}"
    for row, line in zip(rows, body, strict=True):
        yield f"{tables.dot(_DOTS.get(row['state'], 'degraded'))} {line}"
        if row["problem"] and (row["devices"] or row["name"] in configured):
            yield f"      {tables.plain(row['problem'])}"
            yield from tables.advice(row["hint"])
        for model in row.get("models", ()):
            yield f"      {tables.plain(model['name'])}: {describe_accelerator(model['accelerator'])}"
