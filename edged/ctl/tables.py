"""Print answers on a terminal: a dot for each part, aligned columns, and a remedy below parts with problems.

Labels, reasons and names may come from a sensor, a model file or a broker, so text is printed without
characters are taken out: a label must not be able to move the cursor.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from edged.core.answers import HealthAnswer

_COLOURS = {"running": "32", "starting": "33", "degraded": "33", "failed": "31", "stopped": "2"}


class Row(NamedTuple):
    """Line of a part: name, health, cells after the name, and lines below."""

    name: str
    health: HealthAnswer
    cells: Sequence[str]
    below: Sequence[str] = ()


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        print(line)


def show_json(value: object) -> None:
    """Print a value for a machine."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def parts(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table of parts. Columns with ">" before the name are numbers, aligned to the right."""
    heads = [title, "STATE", *columns]
    cells = [[row.name, row.health["state"], *row.cells] for row in rows]
    lines = table(heads, cells)
    yield f"  {next(lines)}"
    for row, line in zip(rows, lines, strict=True):
        yield f"{dot(row.health['state'])} {line}"
        yield from remedy(row.health)
        yield from row.below


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, heads first."""
    heads = [column.removeprefix(">") for column in columns]
    cleaned = [[plain(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(map(len, cells)) for cells in zip(*cleaned, strict=True)]
    for row in cleaned:
        padded = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def remedy(health: HealthAnswer) -> Iterator[str]:
    """Yield the reason, the duration and the remedy of a part with problems."""
    if health["state"] == "running" and not health["reason"]:
        return
    if health["reason"]:
        yield f"      {plain(health['reason'])}, for {duration(health['for'])}"
    yield from advice(health["hint"])


def advice(hint: str, indent: str = "      ") -> Iterator[str]:
    """Yield the lines of a remedy."""
    for line in hint.splitlines():
        yield f"{indent}-> {plain(commands(line))}"


def name_daemon(options: Sequence[str]) -> None:
    """Have commands in remedies name the daemon of this command line, by options such as --runtime-dir."""
    _DAEMON[:] = options


def commands(text: str) -> str:
    """Return a text in which the commands that ask a daemon name the daemon of this command line."""
    if not _DAEMON:
        return text
    import shlex  # for few command lines

    begin = shlex.join(["edgectl", *_DAEMON])
    return _ASKING.sub(lambda _: f"{begin} ", text)


_DAEMON: list[str] = []
_ASKING = re.compile(
    r"\bedgectl (?=(?:status|watch|pipelines|sources|models|spool|update-model|jobs?|confirm|rollback|pin|forget"
    r"|release|reload|doctor|prove|tune|config|metrics)\b)"
)


def dot(state: str) -> str:
    """A state at a glance, in colour on a terminal."""
    mark = "○" if state == "stopped" else "●"
    return f"\x1b[{_COLOURS.get(state, '0')}m{mark}\x1b[0m" if _colourful() else mark


def plain(text: str) -> str:
    """Return text on a single line, without control characters."""
    return "".join(char if char.isprintable() else " " if char == "\n" else "�" for char in text)


def duration(seconds: float) -> str:
    """Return a duration in the two largest units: "3 d 4 h", "12 min 5 s"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: int) -> str:
    """Bytes, to three digits: "54.3 MB"."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.3g} {unit}"


def milliseconds(seconds: float | None) -> str:
    """Return a latency in milliseconds; "-" for None."""
    return "-" if seconds is None else f"{seconds * 1000:.2f}"


def _colourful() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
