"""List the pipelines, with source, model, counters, latency and last result."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import islice

from edged.core.answers import PIPELINES, OutcomeAnswer, PipelineAnswer, ResultAnswer
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


def outcome(record: OutcomeAnswer) -> str:
    """Return a short description of a result."""
    match record["kind"]:
        case "classification":
            return f"{record.get('label')} {_number(record.get('score'))}"
        case "anomaly":
            return f"{'anomalous' if record.get('anomalous') else 'normal'} {_number(record.get('score'))}"
        case "detection":
            found = [f"{each['label']} {_number(each['score'])}" for each in record.get("objects", [])[:5]]
            return some(found, 4, of=_total(record)) or "nothing"
        case "multilabel":
            return _few(record.get("scores", {})) or "no label"
        case "embedding" if "nearest" in record:
            return f"{record['nearest']} at {_number(record.get('distance'))}"
        case "embedding":
            return "vector"
        case "keypoints":
            verdict = "present" if record.get("visible") else "absent"
            return f"{verdict} {_number(record.get('score'))}, {len(record.get('keypoints', {}))} keypoints"
        case "segmentation":
            return _few(record.get("shares", {}), "%") or "no class"
        case "tensor":
            return f"{record.get('dtype')} {list(record.get('shape', []))}"
        case _:
            values = record.get("values", [])
            named = values if isinstance(values, dict) else {str(index): each for index, each in enumerate(values[:5])}
            return _few(named, of=record.get("count", len(values)))


def outcomes(record: ResultAnswer) -> str:
    """Return a short description of a result with one outcome or several."""
    several = record.get("outcomes", {})
    return "; ".join(f"{name}: {outcome(each)}" for name, each in several.items()) if several else outcome(record)


def _few(values: Mapping[str, float | None], unit: str = "", of: int | None = None) -> str:
    return some(
        [f"{name} {_number(value)}{unit}" for name, value in islice(values.items(), 5)], 4, of=of or len(values)
    )


def _total(record: OutcomeAnswer) -> int:
    """Return the number of objects. Those in no zone are missing from `counts`, and those cut off from `objects`."""
    counted = max((sum(labels.values()) for labels in record.get("counts", {}).values()), default=0)
    return max(counted, len(record.get("objects", [])))


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
        outcomes(pipeline["last"]) if pipeline["last"] else "-",
    ]
    return tables.Row(pipeline["name"], pipeline["health"], cells)


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3g}"
