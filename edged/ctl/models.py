"""What serves: each model with its version and origin, what it runs on, and how it did in its self-test."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from edged.ctl import exits, tables
from edged.ctl.client import connect

_COLUMNS = ("VERSION", "ORIGIN", "PIPELINES", ">SIZE", "RUNS ON", "SELF-TEST")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Print them."""
    models = connect(args.runtime_dir).call("models")
    if args.json:
        tables.show_json(models)
    else:
        tables.show(lines(models))
    return exits.DONE


def lines(models: list[dict[str, Any]]) -> Iterator[str]:
    """The table of the models of a status."""
    return tables.parts("MODEL", _COLUMNS, [_row(model) for model in models])


def _row(model: dict[str, Any]) -> tables.Row:
    cells = [
        model["version"] or "-",
        model["origin"] or "-",
        ",".join(model["pipelines"]) or "-",
        tables.size(model["bytes"]),
        _runner(model["runner"]),
        _proof(model["proof"]),
    ]
    return tables.Row(model["name"], model["health"], cells)


def _runner(runner: dict[str, Any] | None) -> str:
    if runner is None:
        return "-"
    share = f", {runner['delegated']} of {runner['nodes']} nodes" if runner["delegate"] != "cpu" else ""
    threads = f", {runner['threads']} threads" if runner["threads"] > 1 else ""
    return f"{runner['delegate']}{share} ({runner['runtime']}{threads})"


def _proof(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return "-"
    return f"{proof['samples']} samples, ±{proof['worst']:.3g}"
