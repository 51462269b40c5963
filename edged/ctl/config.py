"""Check the configuration, or show the configuration in effect.

`check` needs no daemon: the files are read, and the models in them are checked, also against the sources. The exit code
is 0 for a valid configuration and 1 otherwise; settings without an effect, or without an effect yet, are warnings.
`show` prints the effective configuration as TOML, with defaults filled in and secrets masked; with --origin, each value
has a comment with the file of origin.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path

from msgspec.structs import asdict

from edged.config.check import Checked, check
from edged.config.load import effective, load
from edged.config.options import Config
from edged.core.errors import ControlError, quantity
from edged.core.tables import Problem, TablePath, dotted
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.local_model import models_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("action", choices=("check", "show"), help="look for errors, or print the effective settings")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="main file (default: as with --config)")
    parser.add_argument("--origin", action="store_true", help="with show: add the file of origin to each value")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.origin and args.action == "check":
        raise ControlError("--origin goes with show", hint="edgectl config show --origin")
    paths = [args.file] if args.file else [Path(file) for file in args.config]
    return _check(paths, args) if args.action == "check" else _show(paths, args.origin, args.json)


def _check(paths: list[Path], args: argparse.Namespace) -> int:
    found = check(paths, models_of(args))
    if args.json:
        tables.show_json(to_json(found))
    else:
        tables.show(lines(found))
        if found.config:
            tables.show([f"{', '.join(map(str, paths))}: valid: {summary(found.config)}"])
    return exits.BAD if found.problems else exits.DONE


def to_json(found: Checked) -> dict[str, object]:
    """Return the answer of `edgectl config check --json`."""
    return {
        "valid": not found.problems,
        "problems": list(map(asdict, found.problems)),
        "warnings": list(map(asdict, found.warnings)),
    }


def lines(found: Checked) -> Iterator[str]:
    """Yield the problems and the warnings, for people."""
    for problem in found.problems:
        yield from _block(problem)
    for warning in found.warnings:
        yield from _block(warning, "warning: ")


def _block(problem: Problem, kind: str = "") -> Iterator[str]:
    yield f"{kind}{tables.plain(problem.file)}: {tables.plain(problem.path)}"
    yield f"    found    {tables.plain(problem.found)}"
    yield f"    allowed  {tables.plain(problem.allowed)}"
    for line in problem.hint.splitlines():
        yield f"    -> {tables.plain(line)}"


def summary(config: Config) -> str:
    """Return the number of pipelines, sources, models and sinks of a configuration."""
    parts: dict[str, Sized] = {name: getattr(config, f"{name}s") for name in ("pipeline", "source", "model", "sink")}
    return ", ".join(quantity(len(part), name) for name, part in parts.items())


def _show(paths: list[Path], with_origins: bool, as_json: bool) -> int:
    config = load(paths)
    table = effective(config)
    if as_json:
        tables.show_json({"config": table, "origins": {dotted(place): file for place, file in config.origins.items()}})
    else:
        tables.show(toml(table, (lambda place: config.origins.get(place, "default")) if with_origins else None))
    return exits.DONE


def toml(
    table: Mapping[str, object], origin: Callable[[TablePath], str] | None = None, place: TablePath = ()
) -> Iterator[str]:
    """Yield a table of plain values as lines of TOML; `origin` returns a comment for each value.

    Empty tables are left out.
    """
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    if place and values:
        yield f"[{'.'.join(map(_key, place))}]"
    for key, value in values.items():
        comment = f"  # {tables.plain(origin((*place, key)))}" if origin else ""
        yield f"{_key(key)} = {toml_value(value)}{comment}"
    if values:
        yield ""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from toml(value, origin, (*place, key))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: object) -> str:
    """Return a plain value in TOML, on a single line."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(map(toml_value, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
        case _:
            return repr(value)
