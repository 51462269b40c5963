"""The spool: messages wait here until the broker has acknowledged them.

A message is waiting, in flight, parked, or gone:

    put -> waiting -> take -> in flight -> ack -> gone
              ^  ^                |
              |  +---- release ---+------> park -> parked -> drop -> gone
              +------------------------- retry ------+

The messages of one origin (a pipeline) are taken in the order they were put, also after a lost connection has returned
them. Only where the options let new messages overtake are there two such orders, one of new and one of old messages;
drain = "newest" reverses the order of the old ones. A message is old if it was put while there was no connection, or
under an earlier connection. An old message is `replayed` if it may have been sent before, or has waited for more than
REPLAYED_AFTER seconds: a result made while the connection was being set up still counts as news.

Everything is bounded: a message that does not fit is dropped by a rule and counted by origin and reason. Many threads
put; one thread takes, acknowledges, releases and parks.

`MemorySpool` in this file keeps messages in memory only; `DiskSpool` (disk_spool.py) also writes them to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Protocol

import msgspec

from edged.core.health import Health
from edged.core.types import Message
from edged.outbox.backlog import Backlog, Counts, Parked, total
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.origin_queue import Entry


class SetAsideFile(msgspec.Struct, frozen=True):
    """A file that was unusable: its path now, and the number of messages that were saved from it."""

    path: str
    saved: int


class DiskStats(msgspec.Struct, frozen=True, kw_only=True):
    """The file behind a spool. `written` is bytes in the last day, None where the kernel does not count them.

    A power cut now would lose `unsaved` messages, the oldest of them `unsaved_seconds` old. `loss_seconds` is the age
    such a message can reach, and `loss_messages` the number of them by then, at the rate of the last minute; None
    while nothing gets to the disk. Pipelines of durability "memory" are left out. `late` counts messages of "always"
    that were not on disk when their pipeline went on. `commit` is the duration of a commit in seconds, as percentiles
    ("p50", "p90", "p99"; None before the first).
    """

    path: str
    file_bytes: int
    written: int | None
    daily_bytes: int
    unsaved: int
    unsaved_seconds: float
    loss_seconds: float | None
    loss_messages: int | None
    late: int
    commit: dict[str, float | None]
    set_aside: tuple[SetAsideFile, ...]


class SpoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """A spool at one moment.

    `depth` counts messages that wait or are in flight, `on_disk` the part of them on disk only, `bytes` the memory that
    waiting, flying and parked messages take. `oldest` is the age in seconds of the oldest in memory. `dropped` and
    `parked` count since the start; `drops` and `parks` give origin and reason.
    """

    depth: int
    in_flight: int
    on_disk: int
    bytes: int
    oldest: float | None
    dropped: int
    parked: int
    drops: Counts
    parks: Counts
    disk: DiskStats | None = None


class Spool(Protocol):
    """A spool, in memory or on disk, as the publisher and its callers use it."""

    policies: Mapping[str, Policy]
    """Policies by origin. A complete new mapping may be set at any time."""

    @property
    def options(self) -> SpoolOptions:
        """Options of [spool]."""

    def start(self, ready: Callable[[], None]) -> None:
        """Begin. `ready` is called, on any thread, when a message may be taken that could not be before."""

    def put(self, message: Message) -> None:
        """Queue a message; from any thread. Never raises.

        Waits only for the disk, for a few seconds at most, and only if the message's policy is "always".
        """

    def resume(self) -> None:
        """Begin a connection: waiting messages are old, messages put from now on are new."""

    def take(self, count: int, replays: int | None = None) -> list[Entry]:
        """Return up to `count` messages in the order of sending, at most `replays` of them old; they are in flight."""

    def ack(self, ids: Iterable[int]) -> None:
        """Forget messages that the broker has acknowledged. Ids that are not in flight are ignored."""

    def release(self) -> None:
        """End the connection: messages in flight wait again, in their old places."""

    def park(self, entry_id: int, reason: str) -> None:
        """Park a message that the broker will never accept, for an operator to inspect."""

    def parked(self) -> list[Parked]:
        """Return the messages that were parked most recently."""

    def retry(self, numbers: Iterable[int] | None = None) -> int:
        """Queue parked messages again, all of them for None; return their number."""

    def drop(self, numbers: Iterable[int] | None = None) -> int:
        """Drop parked messages, all of them for None; return their number."""

    def close(self, seconds: float) -> list[Message]:
        """Save what is to be saved, within so many seconds. Return the messages that are lost with this object."""

    @property
    def depth(self) -> int:
        """Number of messages that wait or are in flight."""

    @property
    def stats(self) -> SpoolStats:
        """Counts at this moment."""

    @property
    def health(self) -> Health:
        """Health of the memory or disk that holds the messages."""


class MemorySpool:
    """A spool that loses its messages when the process ends; its rules are those of Backlog."""

    def __init__(
        self,
        options: SpoolOptions | None = None,
        policies: Mapping[str, Policy] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backlog = Backlog(options or SpoolOptions(), policies or {})
        self._clock = clock
        self._lock = Lock()
        self._ready: Callable[[], None] | None = None
        self._started = clock()

    @property
    def options(self) -> SpoolOptions:
        """See Spool."""
        return self._backlog.options

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

    def put(self, message: Message) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.put(message, self._clock())

    def resume(self) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.resume()

    def take(self, count: int, replays: int | None = None) -> list[Entry]:
        """See Spool."""
        with self._lock:
            return self._backlog.take(count, replays, self._clock())

    def ack(self, ids: Iterable[int]) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.ack(ids)

    def release(self) -> None:
        """See Spool."""
        with self._lock:
            self._backlog.release()

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
        with self._lock:
            self._backlog.release()
            return [entry.message for entry in self._backlog.entries()]

    @property
    def depth(self) -> int:
        """See Spool."""
        with self._lock:
            return self._backlog.depth

    @property
    def stats(self) -> SpoolStats:
        """See Spool."""
        with self._lock:
            return spool_stats(self._backlog, self._clock())

    @property
    def health(self) -> Health:
        """See Spool."""
        return Health("running", "", "", self._started)


def spool_stats(backlog: Backlog, now: float, disk: DiskStats | None = None) -> SpoolStats:
    """Return the counts of a backlog."""
    oldest = backlog.oldest
    return SpoolStats(
        depth=backlog.depth,
        in_flight=len(backlog.in_flight),
        on_disk=backlog.on_disk,
        bytes=backlog.bytes,
        oldest=None if oldest is None else max(0.0, now - oldest),
        dropped=total(backlog.drops),
        parked=total(backlog.parks),
        drops={origin: dict(counts) for origin, counts in backlog.drops.items()},
        parks={origin: dict(counts) for origin, counts in backlog.parks.items()},
        disk=disk,
    )
