"""Pictures and samples from the output of a program. The reader starts an ended or hanging program again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from edged.api import Chunk, DeviceError, Obstacle
from edged.core.framing import Decoder, Stretch
from edged.core.picture_stream import NO_PICTURE, PictureSplitter, ppm_header
from edged.core.types import Picture
from edged.pictures.raw import RawPicture
from edged.sources.newest_picture import NewestPicture
from edged.system.program import Program


class ProgramPictures:
    """Pictures from a program. `faults` counts discarded input by reason.

    A program without a picture for `limit` seconds counts as hung; 0 for never.
    """

    def __init__(
        self,
        program: Program,
        splitter: PictureSplitter,
        decode: Callable[[bytes], Picture],
        *,
        rate: float | None,
        limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.faults = splitter.faults
        self._program = program
        self._splitter = splitter
        self._newest = NewestPicture(rate, decode, splitter.faults)
        self._limit = limit
        self._clock = clock
        self._heard = clock()

    @property
    def refused(self) -> str:
        """The beginning of the last discarded input, escaped."""
        return self.faults.last

    @property
    def obstacle(self) -> Obstacle | None:
        """The reason for output without pictures."""
        if self.faults.keys() != {NO_PICTURE}:
            return None
        return Obstacle(f"{self._program.name} writes no pictures", "check the command and the format")

    def read(self, timeout: float) -> Chunk | None:
        """Return the newest picture; None if none has arrived, or if the rate allows none yet.

        Raises:
            DeviceError: the program has ended, after the last picture was returned, or hangs.
        """
        deadline = self._clock() + timeout
        while True:
            now = self._clock()
            until = deadline if self._newest.due is None else min(deadline, self._newest.due)
            if last := self._take(max(until - now, 0.0)):
                return last
            now = self._clock()
            if self._limit and now - self._heard > self._limit:
                raise self._program.failure(f"has written no picture for {self._limit:g} s")
            chunk = self._newest.take(now)
            if chunk or now >= deadline:
                return chunk

    def close(self) -> None:
        """End the program."""
        self._program.close()

    def _take(self, pause: float) -> Chunk | None:
        """Take over all that has arrived, or arrives within `pause` seconds; return the last picture of all."""
        pictures: list[bytes] = []
        try:
            for piece in self._program.output(pause):
                pictures += self._splitter.feed(piece)
        except DeviceError:
            self._newest.offer([*pictures, *self._splitter.end()], self._clock())
            if last := self._newest.take(math.inf):
                return last
            raise
        if pictures:
            self._heard = self._clock()
            self._newest.offer(pictures, self._heard)
        return None


class ProgramSamples:
    """Samples in lines or frames from a program. `faults` counts discarded input by reason.

    A program without output for `limit` seconds counts as hung; 0 for never.
    """

    def __init__(
        self, program: Program, decoder: Decoder, *, limit: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._program = program
        self._decoder = decoder
        self._limit = limit
        self._clock = clock
        self._heard = clock()
        self._ready: deque[Stretch] = deque()

    @property
    def faults(self) -> dict[str, int]:
        """The number of faults, by reason."""
        return self._decoder.faults

    @property
    def refused(self) -> str:
        """The beginning of the last discarded line or frame, escaped."""
        return self._decoder.faults.last

    @property
    def obstacle(self) -> Obstacle | None:
        """The reason for output without samples."""
        return self._decoder.obstacle

    def read(self, timeout: float) -> Chunk | None:
        """Return the samples written, None without a complete sample.

        Raises:
            DeviceError: the program has ended, after all samples were returned, or hangs.
        """
        deadline = self._clock() + timeout
        while not self._ready:
            self._take(max(deadline - self._clock(), 0.0))
            now = self._clock()
            if self._limit and now - self._heard > self._limit:
                raise self._program.failure(f"has written nothing for {self._limit:g} s")
            if not self._ready and now >= deadline:
                return None
        stretch = self._ready.popleft()
        return Chunk(stretch.samples, self._heard, stretch.lost)

    def close(self) -> None:
        """End the program."""
        self._program.close()

    def _take(self, pause: float) -> None:
        try:
            for piece in self._program.output(pause):
                self._heard = self._clock()
                self._ready.extend(self._decoder.decode(piece))
        except DeviceError:
            if not self._ready:
                raise


def ppm_picture(data: bytes) -> Picture:
    """Return the raw picture of a part from a PpmSplitter."""
    header = ppm_header(data)
    assert header is not None
    pixels = np.frombuffer(data, np.uint8, offset=header.end)
    return RawPicture(pixels.reshape(header.height, header.width, 3), "rgb")
