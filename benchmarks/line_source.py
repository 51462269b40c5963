"""Source plug-in that decodes lines of CSV from memory: a serial sensor without the port.

Lines come in bursts at regular times, one line a read. After a delay no line comes earlier than usual.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.inline import CHANNELS
from benchmarks.processes import recorded_lines
from edged.api import Chunk, Source, SourceConfig, SourceInfo
from edged.core.framing import Signal, csv_decoder


class LineSource(SourceConfig, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "bench-lines".

    Keys:
        burst: Lines that come together.
        every (s): Time from one burst to the next.
    """

    burst: int
    every: float

    def describe(self) -> SourceInfo:
        """Return the channels of the recording."""
        return SourceInfo(shape=(len(CHANNELS),), channels=CHANNELS)

    def open(self) -> Source:
        """Begin with the first line."""
        return _Lines(self)


class _Lines:
    def __init__(self, options: LineSource) -> None:
        self._options = options
        self._lines = [f"{number},{line}\r\n".encode() for number, line in enumerate(recorded_lines())]
        signal = Signal(channels=CHANNELS, sequence="seq", modulus=len(self._lines))
        self._decoder = csv_decoder(signal, ("seq", *CHANNELS), midway=False)
        self._next = 0
        self._due = time.monotonic()

    @property
    def faults(self) -> dict[str, int]:
        return self._decoder.faults

    def read(self, timeout: float) -> Chunk | None:
        line = self._lines[self._next % len(self._lines)]
        if self._next % self._options.burst == 0:
            now = time.monotonic()
            self._due = max(self._due + self._options.every, now)
            time.sleep(self._due - now)
        self._next += 1
        (stretch,) = self._decoder.decode(line)
        return Chunk(stretch.samples, time.monotonic(), stretch.lost)

    def close(self) -> None:
        pass


def install(folder: Path) -> None:
    """Add the plug-in to the packages in a folder, for a process with this folder in PYTHONPATH."""
    package = folder / "edged_benchmarks-0.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: edged-benchmarks\nVersion: 0\n")
    (package / "entry_points.txt").write_text("[edged.sources]\nbench-lines = benchmarks.line_source:LineSource\n")
