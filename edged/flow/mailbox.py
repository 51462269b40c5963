"""The mailbox between a reader and a worker: a fixed number of windows may wait, and the oldest makes room.

A window's samples live in the reader's ring and are overwritten by its next push, so `put` copies them into one of
`capacity + 1` buffers that circulate: free -> waiting -> in the worker's hands -> free. No buffer free means that the
mailbox is full, and that is the only bound there is. `nudge` has an idle worker come round with no window at all.
"""

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edged.core.types import Window


class Mailbox:
    """`put` is for the one reader, iterating for the one worker, `close` for anybody."""

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: DTypeLike, *, patient: bool = False) -> None:
        """`shape` and `dtype` are a window's. `patient`: `put` waits for room instead of dropping the oldest."""
        self.dropped = 0
        self._patient = patient
        self._waiting: SimpleQueue[Window | Literal["nudge"] | None] = SimpleQueue()
        self._free: SimpleQueue[NDArray[Any] | None] = SimpleQueue()
        for _ in range(capacity + 1):
            self._free.put(np.empty(shape, dtype))

    @property
    def depth(self) -> int:
        """How many windows wait."""
        return self._waiting.qsize()

    def put(self, window: Window) -> None:
        """Copy a window in. After `close` it goes nowhere."""
        buffer = self._free.get() if self._patient else self._room()
        if buffer is None:
            self._free.put(None)
            return
        np.copyto(buffer, window.samples)
        self._waiting.put(window._replace(samples=buffer))

    def nudge(self) -> None:
        """Have the worker come round once, if only with None instead of a window."""
        self._waiting.put("nudge")

    def __iter__(self) -> Iterator[Window | None]:
        """Windows as they come, until the mailbox is closed and empty. Each is valid until the next is asked for."""
        while (window := self._waiting.get()) is not None:
            if window == "nudge":
                yield None
            else:
                yield window
                self._free.put(window.samples)

    def close(self) -> None:
        """Let the worker finish what waits and then end; a reader that waits for room stops waiting."""
        self._waiting.put(None)
        self._free.put(None)

    def _room(self) -> NDArray[Any] | None:
        while True:
            try:
                return self._free.get_nowait()
            except Empty:
                pass
            try:
                oldest = self._waiting.get_nowait()
            except Empty:  # the worker took it in between, and gave another back
                continue
            if oldest == "nudge":
                self._waiting.put(oldest)
                continue
            if oldest is None:
                self._waiting.put(None)
                return None
            self.dropped += 1
            return oldest.samples
