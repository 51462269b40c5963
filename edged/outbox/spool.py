"""Where messages wait until the broker has them.

A message is waiting, in flight, parked, or gone:

    put -> waiting -> take -> in flight -> ack -> gone
              ^  ^                |
              |  +---- release ---+------> park -> parked -> drop -> gone
              +------------------------- retry ------+

The messages of one origin (a pipeline) are taken in the order they were put, also when a lost connection has sent them
back; only if the options let new ones overtake are there two such orders, one of the new and one of the old, and the
latter is turned round if the newest is to be drained first. Old is what was put while there was no connection, or when
another one was lost. Of the old, a message is `replayed` if it may have been sent before, or has waited for longer than
REPLAYED_AFTER seconds: what was made while a connection came about is news.

Everything is bounded: what does not fit is dropped by a rule and counted by origin and reason. Many threads put; one
takes, acknowledges, releases and parks.

`MemorySpool` is the whole of it without a disk; `DiskSpool` in disk.py is a memory spool that also writes things down.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from threading import RLock
from typing import NamedTuple, Protocol

import msgspec

from edged.core.health import Health
from edged.core.types import Message
from edged.outbox.options import Policy, SpoolOptions

OVERHEAD = 500
"""What a message takes in memory beside its topic and payload, about, in bytes."""

MAX_PARKED = 100

REPLAYED_AFTER = 1.0

Counts = dict[str, dict[str, int]]
"""By origin, then by reason."""


class Entry(NamedTuple):
    """A message in a spool. `replayed`: it is not sent when it was made, but later, or perhaps again."""

    id: int
    message: Message
    replayed: bool = False


class Taken(NamedTuple):
    """A message in flight, and whether it was new when it was taken."""

    message: Message
    new: bool


class Parked(NamedTuple):
    """A message that the broker will not have; operators call it by its number."""

    number: int
    entry: Entry
    reason: str


class Aside(msgspec.Struct, frozen=True):
    """A file that could not be used any more, where it is now, and how many of its messages were saved."""

    path: str
    saved: int


class DiskStats(msgspec.Struct, frozen=True, kw_only=True):
    """The file behind a spool. `written` is bytes in the last day, None where the kernel does not count them.

    `unsaved` messages would be lost if the power went now, the oldest of them `unsaved_seconds` old. `loss_seconds` is
    how old they get at most, and `loss_messages` how many of them there are then, at the pace of the last minute; None
    while nothing gets to the disk. Pipelines of durability "memory" are left out of all this. `late` counts messages of
    "always" that were not on disk when their pipeline went on. `commit` is how long a commit takes, in seconds, as
    percentiles ("p50", "p90", "p99"; None before the first).
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
    set_aside: tuple[Aside, ...]


class SpoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """A spool at one moment.

    `depth` counts messages that wait or are in flight, `on_disk` those of them that are on disk only, `bytes` what
    they and the parked ones take. `oldest` is the age in seconds of the oldest in memory. `dropped` and `parked` count
    since the start; `drops` and `parks` say whose and why.
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
    """What the publisher and its callers need of a spool, in memory or on disk."""

    options: SpoolOptions
    policies: Mapping[str, Policy]
    """By origin. May be replaced at any time, by a complete one."""

    def start(self, ready: Callable[[], None]) -> None:
        """Begin. `ready` is called, on any thread, when there is something to take that was not there before."""

    def put(self, message: Message) -> None:
        """Take a message over; from any thread. Never raises.

        Waits for nothing but the disk, for a few seconds at most, and only if the message's policy is "always".
        """

    def resume(self) -> None:
        """There is a connection: what waits by now is old, and what is put from now on is new."""

    def take(self, count: int, replays: int | None = None) -> list[Entry]:
        """Up to `count` messages in the order of sending, at most `replays` of them old; they are in flight then."""

    def ack(self, ids: Iterable[int]) -> None:
        """The broker has these; forget them. Ids that are not in flight are none of our business."""

    def release(self) -> None:
        """The connection is gone: whatever is in flight waits again, where it was."""

    def park(self, entry_id: int, reason: str) -> None:
        """The broker will never take this one: put it aside, where it can be looked at."""

    def parked(self) -> list[Parked]:
        """What has been put aside most recently and is still kept, and why."""

    def retry(self, numbers: Iterable[int] | None = None) -> int:
        """Have parked messages wait again, all of them for None; how many."""

    def drop(self, numbers: Iterable[int] | None = None) -> int:
        """Forget parked messages, all of them for None; how many."""

    def close(self, seconds: float) -> list[Message]:
        """Write down what is to be kept, within so many seconds. Returns what will be lost with this object."""

    @property
    def depth(self) -> int:
        """How many messages wait or are in flight."""

    @property
    def stats(self) -> SpoolStats:
        """How things are."""

    @property
    def health(self) -> Health:
        """How the place is where they are kept."""


class MemorySpool:
    """A spool that forgets when the process ends: bounded by `options.messages` and `options.memory_bytes`.

    When something has to go, parked messages go first, then those of the origin of the lowest priority that has most
    bytes waiting, as its policy says. A message in flight is never dropped.
    """

    def __init__(
        self,
        options: SpoolOptions | None = None,
        policies: Mapping[str, Policy] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or SpoolOptions()
        self.policies = policies or {}
        self._clock = clock
        self._lock = RLock()
        self._ready: Callable[[], None] = lambda: None
        self._started = clock()
        self._last_id = 0
        self._last_number = 0
        self._present = False
        self._lines: dict[str, OriginQueue] = {}
        self._flying: dict[int, Taken] = {}  # in the order in which they were taken
        self._parked: dict[int, Parked] = {}
        self._waiting = 0
        self._bytes = 0
        self._drops: Counts = {}
        self._parks: Counts = {}

    def start(self, ready: Callable[[], None]) -> None:
        """See Spool."""
        self._ready = ready

    def put(self, message: Message) -> None:
        """See Spool."""
        with self._lock:
            if size(message) > self.options.memory_bytes:
                count(self._drops, message.origin, "too large")
                return
            line = self._line(message.origin)
            self._expire(line)
            self._last_id += 1
            line.append(Entry(self._last_id, message), new=self._present)
            self._waiting += 1
            self._bytes += size(message)
            while self._overfull and self._make_room():
                pass

    def resume(self) -> None:
        """See Spool."""
        with self._lock:
            self._present = True
            for line in self._lines.values():
                line.grow_old()

    def take(self, count: int, replays: int | None = None) -> list[Entry]:
        """See Spool."""
        taken: list[Entry] = []
        with self._lock:
            for line in self._lines.values():
                self._expire(line)
            left = count if replays is None else replays
            while len(taken) < count:
                turn = self._next(left > 0)
                if turn is None:
                    break
                entry = turn.line.take_from(turn.queue, last=turn.last)
                self._waiting -= 1
                self._flying[entry.id] = Taken(entry.message, turn.new)
                if not turn.new and self._clock() - entry.message.created > REPLAYED_AFTER:
                    entry = entry._replace(replayed=True)
                left -= entry.replayed
                taken.append(entry)
        return taken

    def ack(self, ids: Iterable[int]) -> None:
        """See Spool."""
        with self._lock:
            for entry_id in ids:
                flight = self._flying.pop(entry_id, None)
                if flight is not None:
                    self._forget(entry_id, flight.message)

    def release(self) -> None:
        """See Spool."""
        with self._lock:
            self._present = False
            while self._flying:
                entry_id, (message, new) = self._flying.popitem()
                self._line(message.origin).put_back(Entry(entry_id, message, replayed=True), self.options, new=new)
                self._waiting += 1
            for line in self._lines.values():
                line.grow_old()

    def park(self, entry_id: int, reason: str) -> None:
        """See Spool."""
        with self._lock:
            flight = self._flying.pop(entry_id, None)
            if flight is None:
                return
            self._last_number += 1
            self._parked[self._last_number] = Parked(self._last_number, Entry(entry_id, flight.message), reason)
            count(self._parks, flight.message.origin, reason)
            if len(self._parked) > MAX_PARKED:
                self._forget_parked()

    def parked(self) -> list[Parked]:
        """See Spool."""
        with self._lock:
            return list(self._parked.values())

    def retry(self, numbers: Iterable[int] | None = None) -> int:
        """See Spool."""
        with self._lock:
            chosen = self._chosen(numbers)
            for each in reversed(chosen):
                del self._parked[each.number]
                self._line(each.entry.message.origin).put_back(each.entry, self.options, new=False)
                self._waiting += 1
        self._ready()
        return len(chosen)

    def drop(self, numbers: Iterable[int] | None = None) -> int:
        """See Spool."""
        with self._lock:
            chosen = self._chosen(numbers)
            for each in chosen:
                del self._parked[each.number]
                count(self._drops, each.entry.message.origin, "by hand")
                self._forget(each.entry.id, each.entry.message)
        return len(chosen)

    def close(self, seconds: float) -> list[Message]:
        """See Spool."""
        self.release()
        with self._lock:
            entries = sorted(entry for line in self._lines.values() for entry in line.entries())
            return [entry.message for entry in entries]

    @property
    def depth(self) -> int:
        """See Spool."""
        with self._lock:
            return self._waiting + len(self._flying) + sum(line.behind for line in self._lines.values())

    @property
    def stats(self) -> SpoolStats:
        """See Spool."""
        with self._lock:
            behind = sum(line.behind for line in self._lines.values())
            fronts = [line.created for line in self._lines.values()]
            flying = [flight.message.created for flight in self._flying.values()]
            oldest = min((created for created in (*fronts, *flying) if created is not None), default=None)
            return SpoolStats(
                depth=self._waiting + len(self._flying) + behind,
                in_flight=len(self._flying),
                on_disk=behind,
                bytes=self._bytes,
                oldest=None if oldest is None else max(0.0, self._clock() - oldest),
                dropped=total(self._drops),
                parked=total(self._parks),
                drops={origin: dict(counts) for origin, counts in self._drops.items()},
                parks={origin: dict(counts) for origin, counts in self._parks.items()},
            )

    @property
    def health(self) -> Health:
        """See Spool."""
        return Health("running", "", "", self._started)

    # -- with the lock held ------------------------------------------------------------------------------------------

    def _line(self, origin: str) -> OriginQueue:
        return self._lines.get(origin) or self._lines.setdefault(origin, OriginQueue())

    def _policy(self, origin: str) -> Policy:
        return self.policies.get(origin) or _DEFAULT

    def _next(self, replays: bool) -> Turn | None:
        """Whose turn it is: the highest priority's, then the oldest's."""
        turns = [
            (-self._policy(origin).priority, turn.entry.id, turn)
            for origin, line in self._lines.items()
            if (turn := line.turn(self.options, replays=replays, overtaking=self._unreadable))
            and self._may_send(origin, turn.entry)
        ]
        return min(turns)[2] if turns else None

    @property
    def _unreadable(self) -> bool:
        """Whether what is on disk only cannot be had, so that nothing is to wait for it."""
        return False

    def _may_send(self, origin: str, entry: Entry) -> bool:
        """Whether nothing has to be done for this message first."""
        return True

    def _forget(self, entry_id: int, message: Message) -> None:
        """It is gone for good."""
        self._bytes -= size(message)

    @property
    def _overfull(self) -> bool:
        kept = self._waiting + len(self._flying) + len(self._parked)
        return kept > self.options.messages or self._bytes > self.options.memory_bytes

    def _expire(self, line: OriginQueue) -> None:
        now = self._clock()
        for queue in (line.head, line.tail, line.fresh):
            while queue and self._expired(queue[0].message, now):
                self._drop(line, [line.take_from(queue)], "expired")

    def _expired(self, message: Message, now: float) -> bool:
        age = now - message.created
        return 0 < message.expiry < age or 0 < self.options.seconds < age

    def _make_room(self) -> bool:
        """Let go of something; False if nothing is left that may go."""
        if self._parked:
            self._forget_parked()
            return True
        lines = [(origin, line) for origin, line in self._lines.items() if line.bytes]
        if not lines:
            return False
        origin, line = max(lines, key=lambda item: (-self._policy(item[0]).priority, item[1].bytes))
        policy = self._policy(origin)
        if policy.drop == "thin" and (dropped := line.thin(policy.keep_every)):
            self._drop(line, dropped, "thinned")
        else:
            self._drop(line, [line.pop_newest() if policy.drop == "newest" else line.pop_oldest()], "full")
        return True

    def _drop(self, line: OriginQueue, entries: Iterable[Entry], reason: str) -> None:
        for entry in entries:
            self._waiting -= 1
            count(self._drops, entry.message.origin, reason)
            self._forget(entry.id, entry.message)

    def _forget_parked(self) -> None:
        each = self._parked.pop(min(self._parked))
        self._forget(each.entry.id, each.entry.message)

    def _chosen(self, numbers: Iterable[int] | None) -> list[Parked]:
        wanted = self._parked.keys() if numbers is None else set(numbers)
        return [each for number, each in self._parked.items() if number in wanted]


class Turn(NamedTuple):
    """The message a line would send next, and which end of which of its queues it stands at."""

    line: OriginQueue
    entry: Entry
    queue: deque[Entry]
    last: bool
    new: bool


class OriginQueue:
    """What waits of one origin: `head`, then `behind` messages that are on disk only, then `tail`, then `fresh`.

    `fresh` are the new ones, put since there is a connection. `bytes` is what those in memory take. Where the newest is
    drained first, from the end of `tail`, what is on disk only comes before all else: then `behind` stands first.
    """

    def __init__(self) -> None:
        self.head: deque[Entry] = deque()
        self.behind = 0
        self.tail: deque[Entry] = deque()
        self.fresh: deque[Entry] = deque()
        self.bytes = 0

    def entries(self) -> Iterable[Entry]:
        """All in memory, the oldest first."""
        return chain(self.head, self.tail, self.fresh)

    @property
    def created(self) -> float | None:
        """When the oldest in memory was made."""
        front = next(iter(self.entries()), None)
        return None if front is None else front.message.created

    def append(self, entry: Entry, *, new: bool) -> None:
        """The newest."""
        (self.fresh if new else self.tail).append(entry)
        self.bytes += size(entry.message)

    def put_back(self, entry: Entry, options: SpoolOptions, *, new: bool) -> None:
        """Where it was taken from. Of several, the one that was taken last comes first."""
        if new and options.overtaking:
            self.fresh.appendleft(entry)
        elif options.drain == "newest":
            self.tail.append(entry)
        else:
            self.head.appendleft(entry)
        self.bytes += size(entry.message)

    def ahead(self, options: SpoolOptions) -> int:
        """How many old ones are in memory that go before those that are on disk only."""
        return len(self.head) + (len(self.tail) if options.drain == "newest" else 0)

    def grow_old(self) -> None:
        """What is new is not any more."""
        self.tail.extend(self.fresh)
        self.fresh.clear()

    def turn(self, options: SpoolOptions, *, replays: bool, overtaking: bool = False) -> Turn | None:
        """What is to be sent next, if `replays` or new. `overtaking`: nothing waits for what is on disk only."""
        if options.overtaking and self.fresh:
            return Turn(self, self.fresh[0], self.fresh, False, True)
        if options.drain == "newest":
            queue = self.tail or self.head
            return Turn(self, queue[-1], queue, True, False) if queue and replays else None
        if self.head and replays:
            return Turn(self, self.head[0], self.head, False, False)
        if self.head or (self.behind and not overtaking):
            return None
        if self.tail:
            return Turn(self, self.tail[0], self.tail, False, False) if replays else None
        return Turn(self, self.fresh[0], self.fresh, False, True) if self.fresh else None

    def pop_oldest(self) -> Entry:
        """The oldest in memory."""
        return self.take_from(self.head or self.tail or self.fresh)

    def pop_newest(self) -> Entry:
        """The newest in memory."""
        return self.take_from(self.fresh or self.tail or self.head, last=True)

    def thin(self, keep_every: int) -> list[Entry]:
        """Keep every so-manieth message of those in memory only; returns the others."""
        gone: list[Entry] = []
        for queue in (self.tail, self.fresh):
            entries = list(queue)
            queue.clear()
            queue.extend(entries[::keep_every])
            gone += (entry for index, entry in enumerate(entries) if index % keep_every)
        self.bytes -= sum(size(entry.message) for entry in gone)
        return gone

    def take_from(self, queue: deque[Entry], *, last: bool = False) -> Entry:
        """Remove one end of a queue of this line."""
        entry = queue.pop() if last else queue.popleft()
        self.bytes -= size(entry.message)
        return entry


_DEFAULT = Policy()


def size(message: Message) -> int:
    """What a message takes in memory, in bytes, about."""
    return len(message.payload) + len(message.topic) + OVERHEAD


def count(counts: Counts, origin: str, reason: str, number: int = 1) -> None:
    """Count something, by origin and reason."""
    of = counts.setdefault(origin, {})
    of[reason] = of.get(reason, 0) + number


def total(counts: Counts) -> int:
    """All that was counted."""
    return sum(sum(of.values()) for of in counts.values())
