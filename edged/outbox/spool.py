"""The spool: messages wait for the broker's acknowledgement.

A message is waiting, in flight, parked, or gone:

    put -> waiting -> take -> in flight -> ack -> gone
              ^  ^              ^ |
              |  |     enter ---+ |
              |  +---- release ---+------> park -> parked -> drop -> gone
              +------------------------- retry ------+

The messages of one origin (a pipeline) are taken in the order of `put`, also after a lost connection has returned some.
If the options let new messages overtake, new and old messages each have an order of their own; drain = "newest"
reverses the order of the old ones. A message is old if put without a connection, or during an earlier connection. An
old message is `replayed` if perhaps sent before, or after waiting for more than REPLAYED_AFTER seconds: a result made
during the set-up of a connection still counts as news.

All storage is bounded: a message beyond the bounds is dropped by a rule, and counted by origin and reason. Many threads
put; one thread at a time enters, takes, acknowledges, releases and parks.

`MemorySpool` keeps messages in memory only; `DiskSpool` (disk_spool.py) also writes them to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Protocol

import msgspec

from edged.core.health import Health
from edged.core.types import Message
from edged.outbox.backlog import Backlog, Counts, Parked, oldest, total
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.origin_queue import Entry


class SetAsideFile(msgspec.Struct, frozen=True):
    """An unusable file: its present path, and the number of messages saved from it."""

    path: str
    saved: int


class DiskStats(msgspec.Struct, frozen=True, kw_only=True):
    """The file behind a spool. `written` is bytes in the last day, None if the kernel keeps no count.

    A power cut now would lose `unsaved` messages, the oldest of them `unsaved_seconds` old. `loss_seconds` is the
    highest age of such a message, and `loss_messages` the number of them by then, at the rate of the last minute; None
    while the disk takes no messages. Pipelines of durability "memory" are left out. `late` counts messages of "always"
    not yet on disk as their pipeline went on. `commit` is the duration of a commit in seconds, as percentiles ("p50",
    "p90", "p99"; None before the first).
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

    `depth` counts messages waiting or in flight, `on_disk` those on disk only, `bytes` the memory of all messages,
    parked ones included. `oldest` is the age in seconds of the oldest message in memory. `dropped` and `parked` count
    since the start; `drops` and `parks` give origin and reason.
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
    """A spool, in memory or on disk, as used by the publisher."""

    policies: Mapping[str, Policy]
    """Policies by origin. A complete new mapping may be set at any time."""

    @property
    def options(self) -> SpoolOptions:
        """Options of [spool]."""

    def start(self, ready: Callable[[], None]) -> None:
        """Start the spool. `ready` is called, on any thread, after messages have become available for `take`."""

    def put(self, message: Message) -> None:
        """Queue a message; from any thread. Never raises.

        Waits only for the disk, for a few seconds at most, and only if the message's policy is "always".
        """

    def enter(self, message: Message) -> int | None:
        """Put a message straight into flight, from any thread, and return its id; None, and nothing done, unless `put`
        and `take` would give just this message, at once.
        """

    def resume(self) -> None:
        """Begin a connection: waiting messages are old, messages put from now on are new."""

    def take(self, count: int, replays: int | None = None) -> list[Entry]:
        """Return up to `count` messages, at most `replays` of them old, in the order of sending; they are in flight."""

    def ack(self, ids: Iterable[int]) -> None:
        """Forget messages acknowledged by the broker. Ids not in flight are ignored."""

    def release(self) -> None:
        """End the connection, and return messages in flight to their old places."""

    def park(self, entry_id: int, reason: str) -> None:
        """Park a message refused by the broker for good, for an operator to inspect."""

    def parked(self) -> list[Parked]:
        """Return the latest parked messages."""

    def retry(self, numbers: Iterable[int] | None = None) -> int:
        """Queue parked messages again, all if None; return the number of messages."""

    def drop(self, numbers: Iterable[int] | None = None) -> int:
        """Drop parked messages, all if None; return the number of messages."""

    def close(self, seconds: float) -> list[Message]:
        """Save all messages to be kept, within so many seconds. Return the messages lost with this object."""

    @property
    def depth(self) -> int:
        """Number of messages waiting or in flight."""

    @property
    def stats(self) -> SpoolStats:
        """Counts at present."""

    @property
    def health(self) -> Health:
        """Health of the memory or disk used."""


class MemorySpool:
    """A spool without a disk: its messages end with the process. Backlog holds the rules."""

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

    def enter(self, message: Message) -> int | None:
        """See Spool."""
        with self._lock:
            return self._backlog.enter(message, self._clock())

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
    since = oldest(backlog)
    return SpoolStats(
        depth=backlog.depth,
        in_flight=len(backlog.in_flight),
        on_disk=backlog.on_disk,
        bytes=backlog.bytes,
        oldest=None if since is None else max(0.0, now - since),
        dropped=total(backlog.drops),
        parked=total(backlog.parks),
        drops={origin: dict(counts) for origin, counts in backlog.drops.items()},
        parks={origin: dict(counts) for origin, counts in backlog.parks.items()},
        disk=disk,
    )
