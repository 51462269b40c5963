"""Where messages wait until the broker has them.

A message is waiting, in flight, parked, or gone:

    put -> waiting -> take -> in flight -> ack -> gone
              ^                   |
              +---- release ------+------> park -> parked

A message keeps its id all its life and the messages of one origin (a pipeline) are always taken in the order they
were put, also when a lost connection has sent them back. Everything is bounded: what does not fit is dropped by a rule
and counted by origin and reason. Many threads put; one takes, acknowledges, releases and parks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import NamedTuple, Protocol

import msgspec

from edged.core.types import Message
from edged.outbox.options import Drop

OVERHEAD = 500
"""What a message takes in memory beside its topic and payload, about, in bytes."""

MAX_PARKED = 100

Counts = dict[str, dict[str, int]]
"""By origin, then by reason."""


class Entry(NamedTuple):
    """A message in a spool. Ids only ever go up."""

    id: int
    message: Message


class SpoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """A spool at one moment.

    `depth` counts messages that wait or are in flight, `bytes` what they and the parked ones take. `dropped` and
    `parked` count since the start; `drops` and `parks` say whose and why.
    """

    depth: int
    in_flight: int
    bytes: int
    dropped: int
    parked: int
    drops: Counts
    parks: Counts


class Spool(Protocol):
    """What the publisher and its callers need of a spool, in memory or on disk."""

    def put(self, message: Message) -> None:
        """Take a message over. Never blocks for long and never raises; from any thread."""

    def take(self, count: int) -> list[Entry]:
        """Up to `count` waiting messages, the longest waiting first; they are in flight from now on."""

    def ack(self, ids: Iterable[int]) -> None:
        """The broker has these; forget them. Ids that are not in flight are none of our business."""

    def release(self) -> None:
        """Whatever is in flight waits again, where it was."""

    def park(self, entry_id: int, reason: str) -> None:
        """The broker will never take this one: put it aside, where it can be looked at."""

    def parked(self) -> list[tuple[Message, str]]:
        """What has been put aside most recently and is still kept, and why."""

    @property
    def stats(self) -> SpoolStats:
        """How things are."""


class MemorySpool:
    """A spool that forgets when the process ends.

    At most `max_messages` and `max_bytes`, and nothing older than its own expiry or, unless 0, than `max_seconds`. When
    something has to go, parked messages go first, then those of the origin that has most bytes waiting: its oldest or
    its newest, as `drops` says for it, or else `drop`. A message in flight is never dropped.
    """

    def __init__(
        self,
        *,
        max_messages: int,
        max_bytes: int,
        max_seconds: float = 0,
        clock: Callable[[], float],
        drop: Drop = "oldest",
        drops: Mapping[str, Drop] | None = None,
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._drop = drop
        self._drop_of = dict(drops or {})
        self._clock = clock
        self._lock = Lock()
        self._last_id = 0
        self._queues: dict[str, _Queue] = {}
        self._flying: dict[int, Message] = {}
        self._parked: deque[tuple[Message, str]] = deque()
        self._depth = 0
        self._bytes = 0
        self._drops: Counts = {}
        self._parks: Counts = {}

    def put(self, message: Message) -> None:
        """See Spool."""
        with self._lock:
            if _size(message) > self._max_bytes:
                _count(self._drops, message.origin, "too large")
                return
            queue = self._queues.setdefault(message.origin, _Queue())
            self._expire(queue)
            self._last_id += 1
            queue.append(Entry(self._last_id, message))
            self._depth += 1
            self._bytes += _size(message)
            while self._depth + len(self._parked) > self._max_messages or self._bytes > self._max_bytes:
                self._make_room()

    def take(self, count: int) -> list[Entry]:
        """See Spool."""
        taken: list[Entry] = []
        with self._lock:
            for queue in self._queues.values():
                self._expire(queue)
            while len(taken) < count:
                queue = min(self._queues.values(), key=_Queue.next_id, default=_Queue())
                if not queue.entries:
                    break
                entry = queue.pop_oldest()
                self._flying[entry.id] = entry.message
                taken.append(entry)
        return taken

    def ack(self, ids: Iterable[int]) -> None:
        """See Spool."""
        with self._lock:
            for entry_id in ids:
                message = self._flying.pop(entry_id, None)
                if message is not None:
                    self._forget(message)

    def release(self) -> None:
        """See Spool."""
        with self._lock:
            for entry_id in sorted(self._flying, reverse=True):
                message = self._flying.pop(entry_id)
                self._queues[message.origin].put_back(Entry(entry_id, message))

    def park(self, entry_id: int, reason: str) -> None:
        """See Spool."""
        with self._lock:
            message = self._flying.pop(entry_id, None)
            if message is None:
                return
            self._depth -= 1
            self._parked.append((message, reason))
            _count(self._parks, message.origin, reason)
            if len(self._parked) > MAX_PARKED:
                self._forget_parked()

    def parked(self) -> list[tuple[Message, str]]:
        """See Spool."""
        with self._lock:
            return list(self._parked)

    @property
    def stats(self) -> SpoolStats:
        """See Spool."""
        with self._lock:
            return SpoolStats(
                depth=self._depth,
                in_flight=len(self._flying),
                bytes=self._bytes,
                dropped=_total(self._drops),
                parked=_total(self._parks),
                drops={origin: dict(counts) for origin, counts in self._drops.items()},
                parks={origin: dict(counts) for origin, counts in self._parks.items()},
            )

    def _expire(self, queue: _Queue) -> None:
        now = self._clock()
        while queue.entries and self._expired(queue.entries[0].message, now):
            self._drop_entry(queue.pop_oldest(), "expired")

    def _expired(self, message: Message, now: float) -> bool:
        age = now - message.created
        return 0 < message.expiry < age or 0 < self._max_seconds < age

    def _make_room(self) -> None:
        if self._parked:
            self._forget_parked()
            return
        origin, queue = max(self._queues.items(), key=lambda item: item[1].bytes)
        newest = self._drop_of.get(origin, self._drop) == "newest"
        self._drop_entry(queue.pop_newest() if newest else queue.pop_oldest(), "full")

    def _drop_entry(self, entry: Entry, reason: str) -> None:
        _count(self._drops, entry.message.origin, reason)
        self._forget(entry.message)

    def _forget(self, message: Message) -> None:
        self._depth -= 1
        self._bytes -= _size(message)

    def _forget_parked(self) -> None:
        message, _ = self._parked.popleft()
        self._bytes -= _size(message)


class _Queue:
    """What waits of one origin, and the bytes of it."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.bytes = 0

    def next_id(self) -> float:
        return self.entries[0].id if self.entries else math.inf

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.bytes += _size(entry.message)

    def put_back(self, entry: Entry) -> None:
        self.entries.appendleft(entry)
        self.bytes += _size(entry.message)

    def pop_oldest(self) -> Entry:
        entry = self.entries.popleft()
        self.bytes -= _size(entry.message)
        return entry

    def pop_newest(self) -> Entry:
        entry = self.entries.pop()
        self.bytes -= _size(entry.message)
        return entry


def _size(message: Message) -> int:
    return len(message.payload) + len(message.topic) + OVERHEAD


def _count(counts: Counts, origin: str, reason: str) -> None:
    of = counts.setdefault(origin, {})
    of[reason] = of.get(reason, 0) + 1


def _total(counts: Counts) -> int:
    return sum(sum(of.values()) for of in counts.values())
