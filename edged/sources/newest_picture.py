"""The newest picture of a camera, given out at most at the wanted rate, and the options of all cameras."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from edged.api import Chunk
from edged.core.source_health import DROPPED
from edged.core.types import Picture

PictureRate = Annotated[float, Meta(gt=0, le=1000)]
Timeout = Annotated[float, Meta(gt=0, le=3600)]


class NewestPicture:
    """Holder of the newest picture, in place of every older picture.

    A picture is given out as soon as `rate` allows. `faults` counts pictures replaced when already due: the reader came
    too late. Pictures held back by the rate alone are no faults.
    """

    def __init__(self, rate: float | None, decode: Callable[[bytes], Picture], faults: Counter[str]) -> None:
        self._period = 1.0 / rate if rate else 0.0
        self._decode = decode
        self._faults = faults
        self._due = 0.0
        self._held: tuple[bytes, float] | None = None

    @property
    def due(self) -> float | None:
        """Return the time for a held picture to be given out; None without a picture."""
        return self._due if self._held else None

    def offer(self, pictures: Sequence[bytes], now: float) -> None:
        """Take over pictures arrived together, oldest first."""
        if pictures:
            if now >= self._due and (dropped := len(pictures) - 1 + (self._held is not None)):
                self._faults[DROPPED] += dropped
            self._held = pictures[-1], now

    def take(self, now: float) -> Chunk | None:
        """Return the newest picture if due."""
        if self._held is None or now < self._due:
            return None
        data, arrived = self._held
        self._held = None
        self._due += self._period
        if self._due < now:  # late by more than a period, or the first picture
            self._due = now + self._period
        return Chunk(np.frombuffer(data, np.uint8)[np.newaxis], arrived, picture=self._decode(data))
