"""Tables of README and docs/development/benchmarks.md from the figures of a run.

`python -m benchmarks.readme build/bench.json` replaces the text between the markers of both files. Every figure in them
comes from this command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs/development/benchmarks.md"

Bench = dict[str, Any]


class Row(NamedTuple):
    """Row of the table in README: label, name of the figure, and number of its target; `unit` follows each number."""

    label: str
    figure: str
    unit: str
    target: int = 0


ROWS = (
    Row("CPU of the process at 100 Hz, of the script's", "CPU of the whole process at 100 Hz", "x"),
    Row("CPU of the process at 1 kHz, of the script's", "CPU of the whole process at 1 kHz", "x"),
    Row("sensor to subscriber at 100 Hz, p50, of the script's", "sensor to subscriber, p50 at 100 Hz", "x"),
    Row("sensor to subscriber at 1 kHz, p99, of the script's", "sensor to subscriber, p99 at 1 kHz", "x"),
    Row("the same on a busy machine", "sensor to subscriber, p99 at 1 kHz beside other work", "x"),
    Row("system calls of a message", "system calls of a message at 100 Hz", ""),
    Row("throughput of a 10 ms model, of bare", "throughput on a model of about 10 ms", "x"),
    Row("CPU until the first inference, of bare", "CPU from the start of the process to its first inference", "x"),
    Row("memory beyond bare", "resident memory", " MB"),
    Row("CPU of an idle daemon", "CPU of an idle process", " ms a second"),
)

PLAIN_LISTS = {
    "stages": "warm CPU of each stage of a message",
    "imports": "imports until the first inference beyond bare, by package",
}
"""Figures with a table of their own in the docs, by marker."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("json", type=Path, help="figures of a run: build/bench.json")
    bench = json.loads(parser.parse_args().json.read_text())
    README.write_text(replaced(README.read_text(), "ratios", ratios(bench)))
    docs = replaced(DOCS.read_text(), "run", described(bench))
    docs = replaced(docs, "targets", targets(bench))
    for marker, name in PLAIN_LISTS.items():
        docs = replaced(docs, marker, plain_list(bench, name))
    DOCS.write_text(docs)
    return 0


def replaced(text: str, marker: str, content: str) -> str:
    """Return the text with other content between the two comments of a marker. Raises ValueError without them."""
    begin, end = f"<!-- benchmarks: {marker} -->", "<!-- benchmarks: end -->"
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"no {begin} and {end}")
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def ratios(bench: Bench) -> str:
    """Return the table of README."""
    return "\n".join(["| | edged | target | |", "|---|---|---|---|", *(_ratio(bench, row) for row in ROWS)])


def _ratio(bench: Bench, row: Row) -> str:
    figure = _figure(bench, row.figure)
    if figure is None or "skipped" in figure:
        return f"| {row.label} | not measured | | |"
    target = figure["targets"][row.target]
    limit = f"at {'least' if target['at_least'] else 'most'} {target['limit']:g}{row.unit}"
    return f"| {row.label} | {target['value']:.2g}{row.unit} | {limit} | {target['verdict'].lower()} |"


def described(bench: Bench) -> str:
    """Return the circumstances of the run."""
    names = ("machine", "kernel", "governor", "load", "python", "ai-edge-litert", "numpy", "paho-mqtt", "mosquitto")
    about = ", ".join(f"{name} {bench[name]}" for name in names)
    medians = f"Medians of {bench['rounds']} rounds, {bench['time']}: {about}."
    return medians + (f"\n\n**Busy machine**: {'; '.join(bench['warnings'])}." if bench["warnings"] else "")


def targets(bench: Bench) -> str:
    """Return the table of all figures but those with a table of their own."""
    rows = (row for figure in bench["results"] if figure["name"] not in PLAIN_LISTS.values() for row in _rows(figure))
    return "\n".join(["| measure | medians | target | reached | |", "|---|---|---|---|---|", *rows])


def _rows(figure: Bench) -> Iterator[str]:
    if "skipped" in figure:
        yield f"| {figure['name']} | skipped: {figure['skipped']} | | | |"
        return
    medians = ", ".join(f"{name} {found['median']:.4g}" for name, found in figure["variants"].items())
    first = f"| {figure['name']}{figure['unit'] and ', ' + figure['unit']} | {medians} |"
    for target in figure["targets"]:
        yield f"{first} {target['promise']} | {target['value']:.3g} | {target['verdict'].lower()} |"
        first = "| | |"
    if not figure["targets"]:
        yield f"{first} | | |"


def plain_list(bench: Bench, name: str) -> str:
    """Return the medians of a figure, a line for each variant."""
    figure = _figure(bench, name)
    if figure is None or "skipped" in figure:
        return "Not measured."
    rows = [f"| {variant} | {found['median']:.1f} |" for variant, found in figure["variants"].items()]
    return "\n".join([f"| {name} | {figure['unit']} |", "|---|---|", *rows])


def _figure(bench: Bench, name: str) -> Bench | None:
    return next((figure for figure in bench["results"] if figure["name"] == name), None)


if __name__ == "__main__":
    sys.exit(main())
