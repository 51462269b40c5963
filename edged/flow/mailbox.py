"""Mailbox between a reader and a worker: windows wait here, and the oldest are dropped while the worker is behind.

`put` leaves a window without waking a thread. `ring` calls the worker, which takes all waiting windows; another thread
may take them first, so the worker may find none.

All windows of a chunk are accepted. Only `make_room`, called before each chunk, drops windows, and only windows of
earlier chunks: a model that keeps up has handled those, or soon will, for example after a delay of the board or the
process. The worker is behind after `LAG` seconds without catching up; then only `capacity` windows are kept, so that
answers are recent.
"""

from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue

from edged.core.types import Window

LAG = 5.0
"""Seconds for which more than `capacity` windows may wait without progress before the worker is behind."""

GAINING = 0.95
"""Share of the most waiting windows, below which the worker counts as catching up."""

RECOVERY = 10.0
"""Seconds without a dropped window after which the worker no longer counts as behind."""

_LONGEST_GAP = 1.0
"""Most seconds between two chunks that count for `LAG`: a stopped process is not behind."""


class Mailbox:
    """Queue of windows: `make_room` and `put` are for the only reader, `take` is for the thread that has the pipeline's
    turn, iteration for the only worker, the rest for any thread.
    """

    def __init__(self, capacity: int, room: int = 0, *, patient: bool = False) -> None:
        """Set up for `capacity` waiting windows while the worker is behind, and otherwise up to `room`, if larger.

        If `patient`, `put` waits until fewer than `capacity` windows wait, and none is dropped.
        """
        self.dropped = 0
        self.waiting: deque[Window] = deque()
        self._capacity = capacity
        self._room = max(room, capacity)
        self._bell: SimpleQueue[bool] = SimpleQueue()
        self._seats: SimpleQueue[bool] | None = SimpleQueue() if patient else None
        for _ in range(capacity):
            self._leave_seat()
        self._closed = False
        self._came = 0
        self._last_chunk = 0.0
        self._caught_up = 0.0, 0, 0  # when, and the windows put and taken until then
        self._crowded_for = 0.0
        self._most = 0
        self._behind_until = float("-inf")
        self._late_until = float("-inf")
        self._why = ""

    @property
    def depth(self) -> int:
        """Return the number of waiting windows."""
        return len(self.waiting)

    def behind(self, now: float) -> str:
        """Return why windows have been dropped of late, "" if none has."""
        return self._why if now < self._behind_until else ""

    def make_room(self, now: float, *, serving: bool = True) -> bool:
        """Drop excess windows before a chunk is put, and return true if the worker is behind.

        Without a model in service, as in a handover, the worker is not behind.
        """
        if self._seats is not None:
            return False
        before, self._last_chunk = self._last_chunk, now
        depth = len(self.waiting)
        taken = self._came - self.dropped - depth
        self._crowded_for += min(now - before, _LONGEST_GAP)
        self._most = max(self._most, depth)
        gaining = self._crowded_for >= LAG and depth < GAINING * self._most
        if depth <= self._capacity or not serving or gaining:
            self._caught_up = now, self._came, taken
            self._crowded_for, self._most = 0.0, depth
        if not depth:
            return False
        late = serving and (self._crowded_for >= LAG or now < self._late_until)
        dropped = self._drop_down_to(self._capacity if late else self._room)
        if not (dropped and serving):
            return False
        if not self.behind(now):
            self._why = self._figure(now, taken)
        self._behind_until = now + RECOVERY
        if late:  # and not only short of room
            self._late_until = self._behind_until
        return True

    def put(self, window: Window) -> None:
        """Put a window. After `close` the window is discarded."""
        if self._seats is not None:
            self._seats.get()
        if self._closed:
            self._leave_seat()
        else:
            self._came += 1
            self.waiting.append(window)

    def take(self) -> Window | None:
        """Return the oldest window, or None if none waits."""
        try:
            window = self.waiting.popleft()
        except IndexError:
            return None
        if self._seats is not None:
            self._seats.put(True)
        return window

    def ring(self) -> None:
        """Call the worker. A call that the worker has not heard yet is enough."""
        if self._bell.empty():
            self._bell.put(True)

    def __iter__(self) -> Iterator[None]:
        """Yield at each call, for the worker to take all windows, and for the last time after the close."""
        closed = False
        while not closed:
            self._bell.get()
            closed = self._closed
            yield

    def close(self) -> None:
        """Let the worker finish the waiting windows and end; a reader that waits for room stops waiting."""
        self._closed = True
        self.ring()
        self._leave_seat()

    def _leave_seat(self) -> None:
        if self._seats is not None:
            self._seats.put(True)

    def _drop_down_to(self, allowed: int) -> int:
        """Drop the oldest windows, while the worker may take some too, and return the number dropped."""
        dropped = 0
        while self.depth > allowed and self.take() is not None:
            dropped += 1
        self.dropped += dropped
        return dropped

    def _figure(self, now: float, taken: int) -> str:
        since, came, took = self._caught_up
        seconds = max(1, round(now - since))
        return f"behind: it took {taken - took} of the {self._came - came} windows of the last {seconds} s"
