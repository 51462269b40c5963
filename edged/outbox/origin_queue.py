"""The queue of one origin (a pipeline): messages in memory, in order, and the number of messages on disk only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from edged.core.types import Message
from edged.outbox.options import SpoolOptions

OVERHEAD = 500
"""Approximate bytes of memory of a message beside topic and payload."""


class Entry(NamedTuple):
    """A message in a spool. `replayed`: sent later than made, or perhaps for the second time."""

    id: int
    message: Message
    replayed: bool = False


class QueuedCandidate(NamedTuple):
    """The next message of a queue to be sent, and its position: one end of a deque."""

    owner: OriginQueue
    entry: Entry
    queue: deque[Entry]
    last: bool
    new: bool


class OriginQueue:
    """Messages of one origin: `head`, then `on_disk` messages on disk only, then `tail`, then `fresh`.

    `fresh` holds the new messages, put since the connection was made. `bytes` is the size of the messages in memory.
    With drain = "newest" messages are sent from the end of `tail`, and the messages on disk only are the oldest:
    `on_disk` then comes first.
    """

    def __init__(self) -> None:
        self.head: deque[Entry] = deque()
        self.on_disk = 0
        self.tail: deque[Entry] = deque()
        self.fresh: deque[Entry] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        """Return the number of messages in memory."""
        return len(self.head) + len(self.tail) + len(self.fresh)

    def entries(self) -> Iterable[Entry]:
        """Return all entries in memory, the oldest first."""
        return chain(self.head, self.tail, self.fresh)

    @property
    def created(self) -> float | None:
        """Creation time of the oldest message in memory."""
        front = next(iter(self.entries()), None)
        return None if front is None else front.message.created

    @property
    def newest(self) -> Entry | None:
        """Entry put last, if still waiting."""
        queue = self.fresh or self.tail
        return queue[-1] if queue else None

    def append(self, entry: Entry, needed: int, *, new: bool) -> None:
        """Add the newest entry, of so many bytes."""
        (self.fresh if new else self.tail).append(entry)
        self.bytes += needed

    def put_back(self, entry: Entry, options: SpoolOptions, *, new: bool) -> None:
        """Return an entry to its old place. Of several entries, put back the last one taken first."""
        if new and options.overtaking:
            self.fresh.appendleft(entry)
        elif options.drain == "newest":
            self.tail.append(entry)
        else:
            self.head.appendleft(entry)
        self.bytes += size(entry.message)

    def insert_read(self, entries: list[Entry], options: SpoolOptions) -> int:
        """Insert entries read from disk, behind older and before newer ones; return the bytes of the entries."""
        if options.drain == "newest":
            self.head.extendleft(reversed(entries))
        else:
            self.head.extend(entries)
        read = sum(size(entry.message) for entry in entries)
        self.bytes += read
        return read

    def ahead(self, options: SpoolOptions) -> int:
        """Return the number of old messages in memory to be sent before the messages on disk only."""
        return len(self.head) + (len(self.tail) if options.drain == "newest" else 0)

    def end_fresh(self) -> None:
        """Make the new messages old, after the loss of the connection."""
        self.tail.extend(self.fresh)
        self.fresh.clear()

    def candidate(self, options: SpoolOptions, *, replays: bool, overtaking: bool = False) -> QueuedCandidate | None:
        """Return the message to send next. Without `replays` only a new message may be sent.

        `overtaking`: messages do not wait for older messages on disk only.
        """
        if options.overtaking and self.fresh:
            return QueuedCandidate(self, self.fresh[0], self.fresh, False, True)
        if options.drain == "newest":
            queue = self.tail or self.head
            return QueuedCandidate(self, queue[-1], queue, True, False) if queue and replays else None
        if self.head and replays:
            return QueuedCandidate(self, self.head[0], self.head, False, False)
        if self.head or (self.on_disk and not overtaking):
            return None
        if self.tail:
            return QueuedCandidate(self, self.tail[0], self.tail, False, False) if replays else None
        return QueuedCandidate(self, self.fresh[0], self.fresh, False, True) if self.fresh else None

    def pop_oldest(self) -> Entry:
        """Remove and return the oldest entry in memory."""
        return self.take_from(self.head or self.tail or self.fresh)

    def pop_newest(self) -> Entry:
        """Remove and return the newest entry in memory."""
        return self.take_from(self.fresh or self.tail or self.head, last=True)

    def thin(self, keep_every: int) -> list[Entry]:
        """Keep every `keep_every`th message of `tail` and `fresh`; return the others."""
        gone: list[Entry] = []
        for queue in (self.tail, self.fresh):
            entries = list(queue)
            queue.clear()
            queue.extend(entries[::keep_every])
            gone += (entry for index, entry in enumerate(entries) if index % keep_every)
        self.bytes -= sum(size(entry.message) for entry in gone)
        return gone

    def take_from(self, queue: deque[Entry], *, last: bool = False) -> Entry:
        """Remove and return the first or last entry of a deque."""
        entry = queue.pop() if last else queue.popleft()
        self.bytes -= size(entry.message)
        return entry


def size(message: Message) -> int:
    """Return the approximate bytes of memory of a message."""
    return len(message.payload) + len(message.topic) + OVERHEAD
