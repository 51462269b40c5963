"""A disk spool: messages survive the end of the process and power cuts.

Publisher and sinks work on the messages in memory and never wait for the disk. `Residency` holds the messages and their
places in memory and on disk; residency.py states the invariant. `Keeper`, a separate thread, does all disk work.

Durability "always" is the exception: `put` returns after the message is committed, together with messages put
meanwhile, so a pipeline never publishes a result that a power cut could take back. `put` does not wait for a disk that
fails, hangs or has used up its budget: inference goes on, the health reports the fault, and the message counts as
`late`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import RLock

from edged.core.health import Health, Status
from edged.core.record import WallClock
from edged.core.types import Message
from edged.outbox.backlog import Parked
from edged.outbox.boot_clock import BootClock
from edged.outbox.keeper import LOOK_SECONDS, Keeper
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.origin_queue import Entry
from edged.outbox.residency import SOON, Residency
from edged.outbox.segment_file import Connect, open_database
from edged.outbox.spool import DiskStats, SpoolStats, spool_stats
from edged.outbox.spool_file import SpoolFile

_RATE_SECONDS = 30.0


class DiskSpool:
    """A spool with its file in `folder`. The keeper alone sets `status`, the spool's health.

    `wall` gives Unix time, for the age of messages from an earlier boot. `connect` opens a database file.
    """

    def __init__(
        self,
        folder: Path,
        options: SpoolOptions | None = None,
        policies: Mapping[str, Policy] | None = None,
        *,
        status: Status,
        wall: WallClock | None = None,
        clock: Callable[[], float] = time.monotonic,
        connect: Connect = open_database,
        boot: str | None = None,
    ) -> None:
        self.file = folder / "spool.db"
        self.options = options or SpoolOptions()
        self._clock = clock
        self._lock = RLock()
        self._residency = Residency(self.options, policies or {})
        self._backlog = self._residency.backlog
        self._keeper = Keeper(
            SpoolFile(self.file, connect),
            self._residency,
            self._lock,
            self.options,
            status=status,
            times=BootClock(boot, clock, wall),
            clock=clock,
        )
        self._rates = _PutRates(clock)
        self._ready: Callable[[], None] | None = None

    @property
    def policies(self) -> Mapping[str, Policy]:
        """See Spool."""
        return self._backlog.policies

    @policies.setter
    def policies(self, policies: Mapping[str, Policy]) -> None:
        self._backlog.policies = policies

    def start(self, ready: Callable[[], None]) -> None:
        """See Spool."""
        self._ready = ready
        self._keeper.start(ready)

    def put(self, message: Message) -> None:
        """See Spool."""
        with self._lock:
            policy = self._backlog.policy(message.origin)
            if policy.drop == "newest" and self._is_full:
                self._backlog.count_drop(message.origin, "full")
                return
            self._rates.count(message.origin)
            self._keeper.wake_if_idle()
            entry = self._backlog.put(message, self._clock(), count_disk=self._keeper.memory_only)
            if policy.durability == "always":
                if entry is not None:
                    self._keeper.await_commit(entry.id)
            elif not self._backlog.connected and self._clock() >= self._keeper.next_commit:
                self._keeper.call()

    def enter(self, message: Message) -> int | None:
        """See Spool."""
        with self._lock:
            policy = self._backlog.policy(message.origin)
            dropping = policy.drop == "newest" and self._is_full
            may_send = self._keeper.has_looked or self._keeper.memory_only
            if dropping or policy.durability == "always" or not may_send:
                return None
            entry_id = self._backlog.enter(message, self._clock())
            if entry_id is not None:
                self._rates.count(message.origin)
                self._keeper.wake_if_idle()
            return entry_id

    def resume(self) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.resume()
            self._keeper.call()

    def take(self, count: int, replays: int | None = None) -> list[Entry]:
        """See Spool."""
        with self._lock:
            may_send = None if self._keeper.memory_only else self._may_send
            overtaking = self._keeper.is_unreadable
            taken = self._backlog.take(count, replays, self._clock(), may_send=may_send, overtaking=overtaking)
            if self._residency.hungriest(SOON // 2) is not None:
                self._keeper.call()
        return taken

    def ack(self, ids: Iterable[int]) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.ack(ids)

    def release(self) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.release()
            self._keeper.call()

    def park(self, entry_id: int, reason: str) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.park(entry_id, reason)

    def parked(self) -> list[Parked]:
        """See Spool."""
        with self._lock:
            return list(self._backlog.parked.values())

    def retry(self, numbers: Iterable[int] | None = None) -> int:
        """See Spool."""
        with self._lock:
            retried = self._backlog.retry(numbers)
        if self._ready is not None:
            self._ready()
        return retried

    def drop(self, numbers: Iterable[int] | None = None) -> int:
        """See Spool."""
        with self._lock:
            return self._backlog.drop(numbers)

    def close(self, seconds: float) -> list[Message]:
        """See Spool."""
        self.release()
        self._keeper.close(seconds)
        with self._lock:
            astray, saved = self._keeper.file.is_astray, self._residency.is_saved
            return [entry.message for entry in self._backlog.entries() if astray or not saved(entry.id)]

    @property
    def depth(self) -> int:
        """See Spool."""
        with self._lock:
            return self._backlog.depth

    @property
    def stats(self) -> SpoolStats:
        """See Spool."""
        with self._lock:
            now = self._clock()
            unsaved = [message.created for _, message in self._residency.unsaved()]
            disk = DiskStats(
                path=str(self.file),
                file_bytes=self._keeper.file_bytes,
                written=self._keeper.wear.written,
                daily_bytes=self.options.daily_bytes,
                unsaved=len(unsaved),
                unsaved_seconds=max((now - created for created in unsaved), default=0.0),
                loss_seconds=(seconds := self._loss_seconds()),
                loss_messages=self._loss_messages(seconds),
                late=self._keeper.late,
                commit=self._keeper.commits.percentiles(),
                set_aside=self._keeper.file.set_aside,
            )
            return spool_stats(self._backlog, now, disk)

    @property
    def health(self) -> Health:
        """See Spool."""
        return self._keeper.health

    @property
    def _is_full(self) -> bool:
        """True if messages to be kept would displace others."""
        full = self._keeper.is_full and not self._keeper.memory_only
        return full or self._backlog.depth >= self.options.messages

    def _may_send(self, entry: Entry) -> bool:
        """Return whether a message may be sent. "always" must be on disk first; until the first look older messages may
        exist.
        """
        if not self._keeper.has_looked:
            return False
        return self._residency.is_saved(entry.id) or self._backlog.policy(entry.message.origin).durability != "always"

    def _loss_seconds(self) -> float | None:
        """Return the highest age of an unsaved message; see DiskStats."""
        if self._keeper.memory_only:
            return None
        origins = {*self.policies, *self._backlog.queues}
        if not any(self._backlog.policy(origin).durability == "spill" for origin in origins):
            return 0.0
        commit = self._keeper.commits.percentiles()["p99"] or 0.0
        if not self._backlog.connected:
            return self.options.commit_seconds + commit
        return self.options.spill_seconds + max(self.options.commit_seconds, LOOK_SECONDS) + commit

    def _loss_messages(self, seconds: float | None) -> int | None:
        if seconds is None:
            return None
        rates = self._rates.by_origin()
        return math.ceil(
            seconds * sum(rate for origin, rate in rates.items() if self._backlog.policy(origin).durability == "spill")
        )


class _PutRates:
    """Messages put per second, by origin, in the last half minute or so."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._counts: dict[str, int] = {}
        self._before: dict[str, float] = {}

    def count(self, origin: str) -> None:
        """Count a message."""
        self._counts[origin] = self._counts.get(origin, 0) + 1

    def by_origin(self) -> dict[str, float]:
        """Return the rates now, or of the half minute before if higher."""
        elapsed = max(1.0, self._clock() - self._since)
        rates = {origin: number / elapsed for origin, number in self._counts.items()}
        higher = {origin: max(rates.get(origin, 0.0), self._before.get(origin, 0.0)) for origin in rates | self._before}
        if elapsed > _RATE_SECONDS:
            self._counts, self._before, self._since = {}, rates, self._clock()
        return higher
