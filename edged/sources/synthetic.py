"""Generate waves and noise in place of a sensor, equal on every run, for tests and demonstrations."""

import time
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edged.api import Chunk, Source, SourceConfig, SourceInfo
from edged.sources.columns import Channels, Rate, Units, row


class SyntheticSource(SourceConfig, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "synthetic": made-up samples at a steady rate.

    Keys:
        channels: Names of the channels.
        units: Units of the channels, one for each.
        rate (Hz): Samples a second.
        chunk (samples): Samples delivered at a time.
        waveform: Shape of the signal: "sine", "noise" or "constant".
        frequency (Hz): Frequency of the sine in the first channel; twice as much in the second, and so on.
        amplitude: Largest value of the signal.
        seed: Start of the random numbers; the same seed makes the same noise.
    """

    channels: Annotated[Channels, Meta(min_length=1)]
    units: Units = ()
    rate: Rate = 100.0
    chunk: Annotated[int, Meta(ge=1, le=10_000)] = 10
    waveform: Literal["sine", "noise", "constant"] = "sine"
    frequency: Annotated[float, Meta(ge=0, le=1e6)] = 1.0
    amplitude: Annotated[float, Meta(ge=-1e30, le=1e30)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=1 << 32)] = 0

    def describe(self) -> SourceInfo:
        """Describe the samples from the options."""
        return row(self.channels, self.units, self.rate)

    def open(self) -> Source:
        """Begin at the first sample."""
        return Synthesizer(self)


class Synthesizer:
    """Generate samples at the times due."""

    def __init__(
        self,
        options: SyntheticSource,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.faults: dict[str, int] = {}
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._random = np.random.default_rng(options.seed)
        self._given = 0
        self._start = clock()

    def read(self, timeout: float) -> Chunk | None:
        """Return the next chunk when due."""
        count = self._options.chunk
        due = self._start + (self._given + count) / self._options.rate
        wait = due - self._clock()
        if wait > 0:
            self._sleep(min(wait, timeout))
            if wait > timeout and self._clock() < due:  # a busy machine may have slept longer
                return None
        samples = self._made(count).astype(np.float32)
        self._given += count
        return Chunk(samples, due)

    def close(self) -> None:
        """Do nothing; a synthesizer holds no device."""

    def _made(self, count: int) -> NDArray[np.float64]:
        options = self._options
        shape = (count, len(options.channels))
        if options.waveform == "constant":
            return np.full(shape, options.amplitude)
        if options.waveform == "noise":
            return options.amplitude * self._random.standard_normal(shape)
        seconds = np.arange(self._given, self._given + count) / options.rate
        hertz = options.frequency * np.arange(1, shape[1] + 1)
        return options.amplitude * np.sin(2 * np.pi * np.outer(seconds, hertz))
