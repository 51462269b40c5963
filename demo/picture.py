"""Record the terminal of the demo as a picture: `python demo/picture.py OUT.svg`.

Each line appears at its time. A viewer without animation shows all lines at once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PROMPT = "$ make demo"
REST = 5.0
"""Seconds from the last line to the next repetition."""

_WIDTH, _LEFT, _TOP, _LINE = 900, 16, 34, 19


class Line(NamedTuple):
    """Line of the terminal, and the seconds from the start to the line."""

    time: float
    text: str


def record(seconds: float) -> list[Line]:
    """Run the demo and return what it prints."""
    command = [sys.executable, "-u", HERE / "demo.py", "--seconds", f"{seconds:g}"]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        return [Line(time.monotonic() - started, line.rstrip("\n")) for line in demo.stdout]


def draw(lines: Sequence[Line]) -> str:
    """Return the recording as SVG."""
    shown = [Line(0.0, PROMPT), *lines]
    length = shown[-1].time + REST
    height = _TOP + _LINE * len(shown) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13" fill="#e2e8f0">',
        "<title>make demo: a recorded sensor, a broker, edged and a subscriber</title>",
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#0f172a"/>',
    ]
    for number, line in enumerate(shown):
        appear = ""
        if line.time:
            key_times = f"0;{line.time / length:.4f}"
            appear = (
                f'<animate attributeName="opacity" values="0;1" keyTimes="{key_times}" calcMode="discrete" '
                f'dur="{length:.1f}s" repeatCount="indefinite"/>'
            )
        top = _TOP + _LINE * number
        parts.append(f'<text x="{_LEFT}" y="{top}" xml:space="preserve">{escape(line.text)}{appear}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Record, and write the picture."""
    parser = argparse.ArgumentParser(description="Record the demo as an animated SVG picture.")
    parser.add_argument("out", type=Path, metavar="OUT.svg")
    parser.add_argument("--seconds", type=float, default=24.0, help="seconds to record (default: %(default)g)")
    args = parser.parse_args()
    args.out.write_text(draw(record(args.seconds)))


if __name__ == "__main__":
    main()
