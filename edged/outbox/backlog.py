"""Messages of a spool in memory: waiting, in flight or parked. No lock, no clock, no disk.

The caller passes the time (CLOCK_MONOTONIC seconds), and holds a lock if several threads share a backlog.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec

from edged.core.types import Message
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.origin_queue import Entry, OriginQueue, QueuedCandidate, size

MAX_PARKED = 100

REPLAYED_AFTER = 1.0

Counts = dict[str, dict[str, int]]
"""Numbers by origin, then by reason."""


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A message in flight, of so many `bytes`. `new`: put under the connection it was sent on."""

    message: Message
    bytes: int
    new: bool


class Parked(NamedTuple):
    """A message refused by the broker; `number` identifies it to an operator."""

    number: int
    entry: Entry
    reason: str


class Backlog:
    """Messages in memory, bounded by `options.messages` and `options.memory_bytes`.

    To make room, parked messages are dropped first, then messages of the origin of the lowest priority with most bytes
    waiting, as its policy says. A message in flight is never dropped.

    `forgotten` is called with the id of each message that the disk no longer has as it is now: acknowledged, dropped,
    parked, or queued again. `policies` may be replaced at any time. `connected` is true between `resume` and `release`.
    """

    def __init__(
        self,
        options: SpoolOptions,
        policies: Mapping[str, Policy],
        forgotten: Callable[[int], None] = lambda _entry_id: None,
    ) -> None:
        self.options = options
        self.policies = policies
        self.connected = False
        self.queues: dict[str, OriginQueue] = {}
        self.in_flight: dict[int, Taken] = {}  # in the order of taking
        self.parked: dict[int, Parked] = {}
        self.waiting = 0
        self.bytes = 0
        self.drops: Counts = {}
        self.parks: Counts = {}
        self._forgotten = forgotten
        self._last_id = 0
        self._last_number = 0

    def queue(self, origin: str) -> OriginQueue:
        """Return the queue of an origin, and create it if need be."""
        queue = self.queues.get(origin)
        return self.queues.setdefault(origin, OriginQueue()) if queue is None else queue

    def policy(self, origin: str) -> Policy:
        """Return the policy of an origin."""
        return self.policies.get(origin) or _DEFAULT

    @property
    def on_disk(self) -> int:
        """Number of messages on disk only."""
        return sum(queue.on_disk for queue in self.queues.values())

    @property
    def depth(self) -> int:
        """Number of waiting messages, in memory or on disk, and of messages in flight."""
        return self.waiting + len(self.in_flight) + self.on_disk

    def entries(self) -> list[Entry]:
        """Return all waiting entries in memory, ordered by id."""
        return sorted(entry for queue in self.queues.values() for entry in queue.entries())

    def put(self, message: Message, now: float, *, count_disk: bool = False) -> Entry | None:
        """Queue a message, and drop others to make room. Return its entry, or None if the message itself was dropped.

        `count_disk`: include messages on disk only in the limit `options.messages`, because the disk takes no more.
        """
        needed = size(message)
        if needed > self.options.memory_bytes:
            self.count_drop(message.origin, "too large")
            return None
        queue = self.queue(message.origin)
        self._expire(queue, now)
        self._last_id += 1
        entry = Entry(self._last_id, message)
        queue.append(entry, needed, new=self.connected)
        self.waiting += 1
        self.bytes += needed
        if not self._is_overfull(count_disk):
            return entry
        while self._make_room() and self._is_overfull(count_disk):
            pass
        return entry if queue.newest is entry else None

    def enter(self, message: Message, now: float) -> int | None:
        """Put a message straight into flight, as `put` and `take` would, and return its id. Return None, and do
        nothing, if either would do anything else.
        """
        needed = size(message)
        kept = len(self.in_flight) + len(self.parked) + 1
        if (
            not self.connected
            or self.waiting
            or kept > self.options.messages
            or self.bytes + needed > self.options.memory_bytes
            or any(map(_on_disk, self.queues.values()))
            or _is_expired(message, now, self.options.seconds)
        ):
            return None
        self.queue(message.origin)
        self._last_id += 1
        self.bytes += needed
        self.in_flight[self._last_id] = Taken(message, needed, True)
        return self._last_id

    def resume(self) -> None:
        """Begin a connection: waiting messages are old, messages put from now on are new."""
        self.connected = True
        for queue in self.queues.values():
            queue.end_fresh()

    def take(
        self,
        count: int,
        replays: int | None,
        now: float,
        *,
        may_send: Callable[[Entry], bool] | None = None,
        overtaking: bool = False,
    ) -> list[Entry]:
        """Move up to `count` entries, at most `replays` of them old, into flight, and return them in the order of
        sending.

        An entry refused by `may_send` holds up its origin. `overtaking`: see OriginQueue.candidate.
        """
        for queue in self.queues.values():
            self._expire(queue, now)
        taken: list[Entry] = []
        left = count if replays is None else replays
        while len(taken) < count:
            candidate = self._next(may_send, replays=left > 0, overtaking=overtaking)
            if candidate is None:
                break
            entry = candidate.owner.take_from(candidate.queue, last=candidate.last)
            self.waiting -= 1
            self.in_flight[entry.id] = Taken(entry.message, size(entry.message), candidate.new)
            if not candidate.new and now - entry.message.created > REPLAYED_AFTER:
                entry = entry._replace(replayed=True)
            left -= entry.replayed
            taken.append(entry)
        return taken

    def ack(self, ids: Iterable[int]) -> None:
        """Forget messages in flight; ignore other ids."""
        for entry_id in ids:
            taken = self.in_flight.pop(entry_id, None)
            if taken is not None:
                self._forget(entry_id, taken.bytes)

    def release(self) -> None:
        """End the connection: return every message in flight to its old place."""
        self.connected = False
        while self.in_flight:
            entry_id, taken = self.in_flight.popitem()
            entry = Entry(entry_id, taken.message, replayed=True)
            self.queue(entry.message.origin).put_back(entry, self.options, new=taken.new)
            self.waiting += 1
        for queue in self.queues.values():
            queue.end_fresh()

    def park(self, entry_id: int, reason: str) -> None:
        """Park a message in flight; ignore other ids."""
        taken = self.in_flight.pop(entry_id, None)
        if taken is not None:
            self._forgotten(entry_id)
            _count(self.parks, taken.message.origin, reason)
            self.add_parked(Entry(entry_id, taken.message), reason)
            if len(self.parked) > MAX_PARKED:
                self._forget_parked()

    def add_parked(self, entry: Entry, reason: str) -> int:
        """Park an entry, and return its number."""
        self._last_number += 1
        self.parked[self._last_number] = Parked(self._last_number, entry, reason)
        return self._last_number

    def chosen(self, numbers: Iterable[int] | None) -> list[Parked]:
        """Return the parked messages of these numbers, or all for None."""
        wanted = self.parked.keys() if numbers is None else set(numbers)
        return [each for number, each in self.parked.items() if number in wanted]

    def retry(self, numbers: Iterable[int] | None) -> int:
        """Queue parked messages again, before all others of their origin, and return the number of them."""
        chosen = self.chosen(numbers)
        for each in reversed(chosen):
            del self.parked[each.number]
            self._forgotten(each.entry.id)
            self.queue(each.entry.message.origin).put_back(each.entry, self.options, new=False)
            self.waiting += 1
        return len(chosen)

    def drop(self, numbers: Iterable[int] | None) -> int:
        """Drop parked messages, and return the number of them."""
        chosen = self.chosen(numbers)
        for each in chosen:
            del self.parked[each.number]
            self.count_drop(each.entry.message.origin, "by hand")
            self._forget(each.entry.id, size(each.entry.message))
        return len(chosen)

    def count_drop(self, origin: str, reason: str, number: int = 1) -> None:
        """Count dropped messages."""
        _count(self.drops, origin, reason, number)

    def _next(
        self, may_send: Callable[[Entry], bool] | None, *, replays: bool, overtaking: bool
    ) -> QueuedCandidate | None:
        """Return the candidate of the highest priority, and of several the oldest."""
        candidates = [
            (-self.policy(origin).priority, candidate.entry.id, candidate)
            for origin, queue in self.queues.items()
            if (candidate := queue.candidate(self.options, replays=replays, overtaking=overtaking))
            and (may_send is None or may_send(candidate.entry))
        ]
        return min(candidates)[2] if candidates else None

    def _is_overfull(self, count_disk: bool) -> bool:
        kept = self.waiting + len(self.in_flight) + len(self.parked) + (self.on_disk if count_disk else 0)
        return kept > self.options.messages or self.bytes > self.options.memory_bytes

    def _expire(self, queue: OriginQueue, now: float) -> None:
        for each in (queue.head, queue.tail, queue.fresh):
            while each and _is_expired(each[0].message, now, self.options.seconds):
                self._drop([queue.take_from(each)], "expired")

    def _make_room(self) -> bool:
        """Drop at least one message; return False if every message must stay."""
        if self.parked:
            self._forget_parked()
            return True
        queues = [(origin, queue) for origin, queue in self.queues.items() if queue.bytes]
        if not queues:
            return False
        origin, queue = max(queues, key=lambda item: (-self.policy(item[0]).priority, item[1].bytes))
        policy = self.policy(origin)
        if policy.drop == "thin" and (dropped := queue.thin(policy.keep_every)):
            self._drop(dropped, "thinned")
        else:
            self._drop([queue.pop_newest() if policy.drop == "newest" else queue.pop_oldest()], "full")
        return True

    def _drop(self, entries: Iterable[Entry], reason: str) -> None:
        for entry in entries:
            self.waiting -= 1
            self.count_drop(entry.message.origin, reason)
            self._forget(entry.id, size(entry.message))

    def _forget_parked(self) -> None:
        each = self.parked.pop(min(self.parked))
        self._forget(each.entry.id, size(each.entry.message))

    def _forget(self, entry_id: int, released: int) -> None:
        self.bytes -= released
        self._forgotten(entry_id)


_DEFAULT = Policy()
_on_disk = attrgetter("on_disk")


def held(backlog: Backlog, origin: str) -> Iterator[Entry]:
    """Yield the entries of an origin in memory: first in flight, then waiting."""
    for entry_id, taken in backlog.in_flight.items():
        if taken.message.origin == origin:
            yield Entry(entry_id, taken.message)
    yield from backlog.queue(origin).entries()


def oldest(backlog: Backlog) -> float | None:
    """Return the creation time of the oldest message in memory."""
    waiting = (queue.created for queue in backlog.queues.values())
    flying = (taken.message.created for taken in backlog.in_flight.values())
    return min((created for created in (*waiting, *flying) if created is not None), default=None)


def _is_expired(message: Message, now: float, limit: int) -> bool:
    age = now - message.created
    return 0 < message.expiry < age or 0 < limit < age


def total(counts: Counts) -> int:
    """Return the sum of all counts."""
    return sum(sum(of.values()) for of in counts.values())


def _count(counts: Counts, origin: str, reason: str, number: int = 1) -> None:
    of = counts.setdefault(origin, {})
    of[reason] = of.get(reason, 0) + number
