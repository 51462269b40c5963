"""The plan of a transaction: the messages to be saved, divided into segments. No lock, no clock, no disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from edged.core.types import Message
from edged.outbox.backlog import Backlog, Parked, held
from edged.outbox.origin_queue import Entry
from edged.outbox.segment_file import MAX_SEGMENT, MAX_SEGMENT_BYTES
from edged.outbox.segment_table import Growing, SegmentTable


class Batch(NamedTuple):
    """Entries of one origin to be saved in one segment, behind the messages `before` already in the segment.

    `resident`: the messages before are in memory as well. `parked`: the entry is parked, and alone in its segment.
    """

    key: int
    origin: str
    entries: list[Entry]
    before: Sequence[Message] = ()
    resident: bool = False
    parked: Parked | None = None

    @property
    def messages(self) -> list[Message]:
        """Messages of the segment, old and new."""
        return [*self.before, *(entry.message for entry in self.entries)]


def due_batches(
    backlog: Backlog, table: SegmentTable, recorded: Collection[int], now: float, *, spill: bool, closing: bool
) -> list[Batch]:
    """Return the batches to be saved now.

    `spill`: save messages of durability "spill" at once, not only after `spill_seconds`. `recorded` are the numbers of
    messages already parked on disk. `closing`: the spool sends no more messages.
    """
    batches: list[Batch] = []
    for origin in backlog.queues:
        durability = backlog.policy(origin).durability
        if durability == "memory":
            continue
        entries = [entry for entry in held(backlog, origin) if entry.id not in table]
        entries.sort(key=lambda entry: entry.message.created)
        late = any(now - entry.message.created > backlog.options.spill_seconds for entry in entries[:1])
        if durability == "always" or spill or late:
            batches += _split(backlog, table, origin, entries)
    for number, parked in backlog.parked.items():
        origin = parked.entry.message.origin
        if number not in recorded and backlog.policy(origin).durability != "memory":
            batches.append(Batch(table.new_key(), origin, [parked.entry], parked=parked))
    return [*batches, *_remainders(backlog, table)] if closing else batches


def _split(backlog: Backlog, table: SegmentTable, origin: str, entries: list[Entry]) -> list[Batch]:
    """Divide entries into segments; the first entries join the last segment if possible."""
    batches: list[Batch] = []
    room, left = 0, 0
    growing = table.growing.get(origin)
    for entry in entries:
        if room <= 0 or left <= 0:
            if not batches and growing and _may_grow(backlog, table, growing, entries):
                batches.append(Batch(growing.key, origin, [], growing.messages, growing.key in table.by_key))
            else:
                batches.append(Batch(table.new_key(), origin, []))
            room, left = MAX_SEGMENT, MAX_SEGMENT_BYTES
        batches[-1].entries.append(entry)
        room -= 1
        left -= len(entry.message.payload)
    return batches


def _may_grow(backlog: Backlog, table: SegmentTable, growing: Growing, entries: list[Entry]) -> bool:
    """Return True if messages may be added to a segment, because all or none of its messages are in memory."""
    segment = table.by_key.get(growing.key)
    if segment is None:
        return not any(entry.id in backlog.in_flight for entry in entries)
    return segment.is_whole


def _remainders(backlog: Backlog, table: SegmentTable) -> Iterator[Batch]:
    """Yield resident segments without their settled messages, to prevent a second delivery."""
    waiting = [entry for queue in backlog.queues.values() for entry in queue.entries()]
    for segment in table.by_key.values():
        if not segment.is_whole and (entries := [entry for entry in waiting if entry.id in segment.alive]):
            yield Batch(segment.key, entries[0].message.origin, entries)
