"""List the sources, with rate, samples read, samples lost and faults."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from edged.core.answers import SOURCES, SourceAnswer
from edged.core.errors import some
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect

_COLUMNS = ("KIND", "CHANNELS", ">RATE", ">MEASURED", ">SAMPLES", ">LOST", ">RECONNECTS", "FAULTS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    sources = connect(args.runtime_dir).call(SOURCES)
    if args.json:
        tables.show_json(sources)
    else:
        tables.show(lines(sources))
    return exits.DONE


def lines(sources: list[SourceAnswer]) -> Iterator[str]:
    """Yield the table of sources."""
    return tables.parts("SOURCE", _COLUMNS, [_row(source) for source in sources])


def _row(source: SourceAnswer) -> tables.Row:
    cells = [
        source["kind"],
        some(source["channels"], 8, by=",") or "-",
        _hertz(source["rate"]),
        _hertz(source["measured_rate"]),
        str(source["samples"]),
        str(source["lost"]),
        str(source["reconnects"]),
        ", ".join(f"{count} x {reason}" for reason, count in source["faults"].items()) or "-",
    ]
    refused, ago = source.get("refused"), source.get("refused_ago")  # an older daemon does not say
    when = "" if ago is None else f" {tables.duration(ago)} ago"
    below = [f"      last refused{when}: {tables.plain(refused)}"] if refused else []
    return tables.Row(source["name"], source["health"], cells, below)


def _hertz(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4g} Hz"
