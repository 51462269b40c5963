"""List the pipelines, with source, model, counters, latency and last result."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice

from edged.core.answers import PIPELINES, PipelineAnswer, ResultAnswer
from edged.core.errors import some
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect

_COLUMNS = ("SOURCE", "MODEL", "SINKS", ">WINDOWS", ">PREDICTIONS", ">DROPPED", ">ERRORS", ">P50 ms", ">P99 ms", "LAST")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    pipelines = connect(args.runtime_dir).call(PIPELINES)
    if args.json:
        tables.show_json(pipelines)
    else:
        tables.show(lines(pipelines))
    return exits.DONE


def lines(pipelines: list[PipelineAnswer]) -> Iterator[str]:
    """Yield the table of pipelines."""
    return tables.parts("PIPELINE", _COLUMNS, [_row(pipeline) for pipeline in pipelines])


def outcome(record: ResultAnswer) -> str:
    """Return a short description of a result."""
    match record["kind"]:
        case "classification":
            return f"{record.get('label')} {_number(record.get('score'))}"
        case "anomaly":
            return f"{'anomalous' if record.get('anomalous') else 'normal'} {_number(record.get('score'))}"
        case _:
            values = record.get("values", [])
            named = values.items() if isinstance(values, dict) else enumerate(values)
            return some(
                [f"{name} {_number(value)}" for name, value in islice(named, 5)], 4, of=record.get("count", len(values))
            )


def _row(pipeline: PipelineAnswer) -> tables.Row:
    latency = pipeline["latency"]
    cells = [
        pipeline["source"],
        f"{pipeline['model']} {pipeline['version']}".rstrip(),
        ",".join(pipeline["sinks"]),
        str(pipeline["windows"]),
        str(pipeline["predictions"]),
        str(pipeline["dropped"]),
        str(pipeline["errors"]),
        tables.milliseconds(latency and latency["p50"]),
        tables.milliseconds(latency and latency["p99"]),
        outcome(pipeline["last"]) if pipeline["last"] else "-",
    ]
    return tables.Row(pipeline["name"], pipeline["health"], cells)


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3g}"
