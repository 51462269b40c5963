"""Residency: the places of a disk spool's messages, in memory, on disk and in flight. No clock, no disk, no lock.

The invariant. Each message, from `put` until its end (acknowledged or dropped), is in exactly one of these places:

    in memory, with an id:   waiting in the queue of its origin, in flight, or parked; perhaps stored in a segment too
    on disk only:            in a segment not `in_use`, and counted in `on_disk` of its origin's queue

And each segment in the file is exactly one of these:

    resident:       some of its messages are in memory, and not settled (acknowledged or dropped)
    obsolete:       all of its messages are settled, or saved elsewhere; the next transaction deletes the segment
    on disk only:   no message of the segment is in memory, and `on_disk` counts each

The order within an origin is: head, messages on disk only, tail, fresh (see OriginQueue). So a message is never sent
before an older message on disk only.

To change the file, call `due` for the messages to be written and `begin_save`, and after the transaction `finish_save`
or `fail_save`. Other threads may put, take, acknowledge and drop messages meanwhile; a message settled meanwhile is not
stored. A crash between any two steps loses no message for which `is_saved` was true; an acknowledged message may come
back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from edged.core.types import Message
from edged.outbox.backlog import MAX_PARKED, Backlog
from edged.outbox.disk_quota import Removed
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.origin_queue import Entry, OriginQueue, size
from edged.outbox.save_plan import Batch, due_batches
from edged.outbox.segment_file import MAX_SEGMENT, FileContents, Listing, Segment
from edged.outbox.segment_table import Growing, SegmentTable, StoredSegment

SOON = 1000
"""Number of messages of an origin held in memory, although on disk, to be sent soon."""

AT_FIRST = 100
"""The same without a connection."""

SMALL = 2500
"""A segment of fewer bytes is written again together with the next messages, which costs no more pages of the disk."""


class Residency:
    """The messages of a disk spool and their places. `backlog` holds the messages in memory.

    `awaited` are the ids of messages for which a `put` is waiting until they are saved.
    """

    def __init__(self, options: SpoolOptions, policies: Mapping[str, Policy]) -> None:
        self.backlog = Backlog(options, policies, self._forget)
        self.awaited: set[int] = set()
        self._options = options
        self._table = SegmentTable()
        self._settled: set[int] | None = None  # entries settled since begin_save
        self._rewritten: set[int] = set()  # keys of segments perhaps rewritten by a failed transaction
        self._recorded: set[int] = set()  # numbers of messages parked on disk as well
        self._first_id = -(1 << 60)  # of entries read from the file

    def is_saved(self, entry_id: int) -> bool:
        """Return True if a message in memory is on disk as well."""
        return entry_id in self._table

    def unsaved(self) -> Iterator[tuple[int, Message]]:
        """Yield ids and messages not yet on disk, except those of durability "memory"."""
        for origin, queue in self.backlog.queues.items():
            if self.backlog.policy(origin).durability != "memory":
                yield from ((entry.id, entry.message) for entry in queue.entries() if entry.id not in self._table)
        for entry_id, taken in self.backlog.in_flight.items():
            if entry_id not in self._table and self.backlog.policy(taken.message.origin).durability != "memory":
                yield entry_id, taken.message

    @property
    def in_use(self) -> set[int]:
        """Keys of segments that are resident or obsolete."""
        return self._table.in_use

    @property
    def obsolete(self) -> set[int]:
        """Keys of segments to be deleted by the next transaction."""
        return set(self._table.obsolete)

    @property
    def owes(self) -> bool:
        """True if any message is kept, or a segment must be deleted."""
        return bool(self.backlog.depth or self.backlog.parked or self._table.obsolete)

    @property
    def is_crowded(self) -> bool:
        """True if memory runs short, so that messages on disk should leave memory."""
        return self.backlog.bytes > self._options.memory_bytes * 3 // 4

    @property
    def excess(self) -> int:
        """Number of messages beyond `options.messages`."""
        return self.backlog.depth - self._options.messages

    def _forget(self, entry_id: int) -> None:
        """Record that the disk no longer has a message as it is now, nor will have after a transaction under way."""
        if self._settled is not None:
            self._settled.add(entry_id)
        self.awaited.discard(entry_id)
        self._table.leave(entry_id)

    # -- saving ------------------------------------------------------------------------------------------------------

    def due(self, now: float, *, closing: bool) -> list[Batch]:
        """Return the messages to be saved now; the segments `obsolete` are deleted with the same transaction."""
        self._recorded &= self.backlog.parked.keys()
        spill = not self.backlog.connected or closing or self.is_crowded
        return due_batches(self.backlog, self._table, self._recorded, now, spill=spill, closing=closing)

    def begin_save(self) -> None:
        """Record the start of a transaction."""
        self._settled = set()

    def finish_save(
        self, batches: Sequence[Batch], sizes: Sequence[int], deleted: set[int], lost: list[Removed]
    ) -> None:
        """Record the batches as saved, with their sizes in bytes, and the deleted segments and lost messages as
        gone.
        """
        self._table.obsolete -= deleted
        for each in lost:
            self._table.growing.pop(each.origin, None)
            self.backlog.queue(each.origin).on_disk -= each.messages
            self.backlog.count_drop(each.origin, each.reason, each.messages)
        settled, self._settled = self._settled or set(), None
        for batch, written in zip(batches, sizes, strict=True):
            self._finish(batch, written, settled)
        for origin in {batch.origin for batch in batches}:
            self._trim(self.backlog.queue(origin))

    def fail_save(self, batches: Sequence[Batch]) -> None:
        """Record the failure of a transaction, which may have been written all the same."""
        self._settled = None
        self._table.obsolete |= {batch.key for batch in batches if not batch.before} - self._table.by_key.keys()
        self._rewritten |= {batch.key for batch in batches} & self._table.by_key.keys()

    def _finish(self, batch: Batch, written: int, settled: set[int]) -> None:
        messages = batch.messages
        alive = {entry.id for entry in batch.entries} - settled
        self.awaited -= alive
        if batch.before and not batch.resident:
            queue = self.backlog.queue(batch.origin)
            held_back = self._hold_on_disk(queue, alive)
            queue.on_disk += len(batch.entries) - held_back  # settled or taken too late, and sent once more
        else:
            former = self._table.by_key.get(batch.key) if batch.resident else None
            self._table.store(batch.key, alive | former.alive if former else alive, len(messages))
        if batch.parked is not None:
            self._recorded.add(batch.parked.number)
        elif written < SMALL and len(messages) < MAX_SEGMENT and batch.key not in self._table.obsolete:
            self._table.growing[batch.origin] = Growing(batch.key, messages)
        else:
            self._table.growing.pop(batch.origin, None)

    # -- leaving memory -----------------------------------------------------------------------------------------------

    def shed(self) -> None:
        """Hold all waiting whole segments on disk only, so that room is made in the order of the segments."""
        for queue in self.backlog.queues.values():
            if self._options.drain == "newest":
                self._hold_on_disk(queue, _release_oldest(self._table, queue, 0))
            else:
                waiting = {entry.id for entry in queue.entries()}
                segments = _segments(self._table, queue.entries())
                whole = [each for each in segments if each.is_whole and each.alive <= waiting]
                self._hold_on_disk(queue, set().union(*map(self._table.release, whole)))

    def _trim(self, queue: OriginQueue) -> None:
        """Hold on disk only the messages not to be sent soon."""
        if len(queue) <= SOON:
            return
        if self._options.drain == "newest":
            if len(queue.fresh) > SOON:
                queue.end_fresh()
            self._hold_on_disk(queue, _release_oldest(self._table, queue, SOON))
            return
        entries = [*queue.tail, *queue.fresh]
        waiting = {entry.id for entry in entries}
        keep = 0 if queue.on_disk else SOON - len(queue.head)
        released: set[int] = set()
        for segment in _segments(self._table, entries):
            if keep > 0:
                keep -= len(segment.alive)
            elif segment.is_whole and segment.alive <= waiting:
                released |= self._table.release(segment)
        if released:
            self._hold_on_disk(queue, released)

    def _hold_on_disk(self, queue: OriginQueue, ids: set[int]) -> int:
        """Remove entries from memory, and return their number. Older stored entries move to the head, before the
        removed ones.
        """
        first = not queue.on_disk
        removed = 0
        for each in (queue.head, queue.tail, queue.fresh):
            entries = list(each)
            each.clear()
            for entry in entries:
                if entry.id in ids:
                    removed += 1
                    queue.bytes -= size(entry.message)
                    self.backlog.bytes -= size(entry.message)
                elif each is not queue.head and first and not removed and entry.id in self._table:
                    queue.head.append(entry)
                else:
                    each.append(entry)
        queue.on_disk += removed
        self.backlog.waiting -= removed
        return removed

    # -- reading from the file ---------------------------------------------------------------------------------------

    def hungriest(self, soon: int) -> str | None:
        """Return the origin with messages on disk only and fewest in memory; None if it has `soon` in memory, or memory
        is short.

        Half of the memory is reserved for unsaved messages; but at least one message on disk must be read to be sent.
        """
        ahead = {origin: each.ahead(self._options) for origin, each in self.backlog.queues.items() if each.on_disk}
        if not ahead:
            return None
        starved = self.backlog.connected and not any(ahead.values())
        if self.backlog.bytes >= self._options.memory_bytes // 2 and not starved:
            return None
        origin = min(ahead, key=ahead.__getitem__)
        return origin if ahead[origin] < soon else None

    def fetched(self, origin: str, key: int, number: int, segment: Segment | None) -> None:
        """Record a segment as read. None: the segment is unreadable, and its messages are lost."""
        queue = self.backlog.queue(origin)
        queue.on_disk -= number
        self._table.growing.pop(origin, None)
        if segment is None:
            self._table.obsolete.add(key)
            self.backlog.count_drop(origin, "damaged", number)
            return
        entries = self._to_entries(segment)
        self.backlog.bytes += queue.insert_read(entries, self._options)
        self.backlog.waiting += len(entries)

    def lose(self, origin: str) -> int:
        """Drop the messages of an origin on disk only, after none was found in the file; return the number of
        messages.
        """
        queue = self.backlog.queue(origin)
        lost, queue.on_disk = queue.on_disk, 0
        self.backlog.count_drop(origin, "damaged", lost)
        return lost

    def adopt(self, contents: FileContents) -> None:
        """Take over the messages left in the file by an earlier process."""
        self._table.inherit(contents.last_key)
        for origin, waiting in contents.waiting.items():
            self.backlog.queue(origin).on_disk += waiting
        self._table.obsolete |= {segment.key for segment in contents.parked[:-MAX_PARKED]}
        for segment in contents.parked[-MAX_PARKED:]:
            for entry in self._to_entries(segment):
                self._recorded.add(self.backlog.add_parked(entry, segment.reason or ""))
                self.backlog.bytes += size(entry.message)

    def _to_entries(self, segment: Segment) -> list[Entry]:
        inherited = segment.key <= self._table.inherited
        entries = [
            Entry((segment.key << 10 | index) + self._first_id, message, inherited)
            for index, message in enumerate(segment.messages)
        ]
        self._table.store(segment.key, {entry.id for entry in entries}, len(entries))
        return entries

    def keep_only(self, found: Listing) -> int:
        """Limit the residency to the segments found in the file, and return the number of lost messages.

        Messages of missing segments are saved again if in memory, otherwise lost.
        """
        numbers = {**{key: number for key, (_, number) in found.waiting.items()}, **dict.fromkeys(found.parked, 1)}
        self._table.keep_only(numbers, self._rewritten)
        self._table.last_key = max(self._table.last_key, *numbers, 0)
        self._rewritten.clear()
        self._recorded = {number for number, each in self.backlog.parked.items() if each.entry.id in self._table}
        on_disk: dict[str, int] = {}
        for key in found.waiting.keys() - self._table.in_use:
            origin, number = found.waiting[key]
            on_disk[origin] = on_disk.get(origin, 0) + number
        missing = 0
        for origin in {*self.backlog.queues, *on_disk}:
            queue = self.backlog.queue(origin)
            if (lost := queue.on_disk - on_disk.get(origin, 0)) > 0:
                self.backlog.count_drop(origin, "damaged", lost)
                missing += lost
            queue.on_disk = on_disk.get(origin, 0)
        return missing

    def shift_keys(self, by: int) -> None:
        """Raise the key of every segment. Segments read later give entries with ids of a new range."""
        self._table.shift_keys(by)
        self._first_id -= 1 << 60


def _release_oldest(table: SegmentTable, queue: OriginQueue, keep: int) -> set[int]:
    """Release the oldest segments, if wholly in memory, but leave `keep` old messages."""
    entries = [*queue.head, *queue.tail]
    released: set[int] = set()
    while len(released) < len(entries) - keep and (segment := table.of(entries[len(released)].id)):
        following = {entry.id for entry in entries[len(released) : len(released) + segment.saved]}
        if following != segment.alive or len(entries) - len(released) - segment.saved < keep:
            break
        released |= table.release(segment)
    return released


def _segments(table: SegmentTable, entries: Iterable[Entry]) -> list[StoredSegment]:
    """Return the segments of entries, in the order of the entries."""
    return list({each.key: each for entry in entries if (each := table.of(entry.id))}.values())
