"""Segments on disk with messages in memory, found by key and by message. No lock, no clock, no disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from edged.core.types import Message


class StoredSegment(NamedTuple):
    """A segment on disk with messages in memory: the ids of those messages, and the number of messages written."""

    key: int
    alive: set[int]
    saved: int

    @property
    def is_whole(self) -> bool:
        """True if every message of the segment is in memory."""
        return len(self.alive) == self.saved


class Growing(NamedTuple):
    """The last segment of an origin, if small enough to take the next messages too."""

    key: int
    messages: list[Message]


class SegmentTable:
    """Segments and the entries stored in them.

    An entry is stored in at most one segment. A segment without needed entries becomes `obsolete`, and is deleted with
    the next transaction. Keys only go up; keys up to `inherited` were used by an earlier process.
    """

    def __init__(self) -> None:
        self.by_key: dict[int, StoredSegment] = {}
        self.obsolete: set[int] = set()
        self.growing: dict[str, Growing] = {}
        self.last_key = 0
        self.inherited = 0
        self._by_entry: dict[int, StoredSegment] = {}

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._by_entry

    def of(self, entry_id: int) -> StoredSegment | None:
        """Return the segment of an entry."""
        return self._by_entry.get(entry_id)

    @property
    def in_use(self) -> set[int]:
        """Keys of resident and obsolete segments."""
        return {*self.by_key, *self.obsolete}

    def new_key(self) -> int:
        """Return an unused key."""
        self.last_key += 1
        return self.last_key

    def inherit(self, last_key: int) -> None:
        """Take over a file with this highest key."""
        self.last_key = max(self.last_key, last_key)
        self.inherited = max(self.inherited, last_key)

    def store(self, key: int, ids: set[int], saved: int) -> None:
        """Record a segment as written with `saved` messages, `ids` of them still needed."""
        if (former := self.by_key.pop(key, None)) is not None:
            for entry_id in former.alive:
                del self._by_entry[entry_id]
        for entry_id in ids:
            self.leave(entry_id)
        if ids:
            self.obsolete.discard(key)
            self.by_key[key] = segment = StoredSegment(key, ids, saved)
            self._by_entry |= dict.fromkeys(ids, segment)
        else:
            self._end(key)

    def leave(self, entry_id: int) -> None:
        """Record an entry as gone, or as to be saved anew."""
        segment = self._by_entry.pop(entry_id, None)
        if segment is None:
            return
        segment.alive.discard(entry_id)
        if not segment.alive:
            del self.by_key[segment.key]
            self._end(segment.key)

    def _end(self, key: int) -> None:
        self.obsolete.add(key)
        self.growing = {origin: last for origin, last in self.growing.items() if last.key != key}

    def release(self, segment: StoredSegment) -> set[int]:
        """Record the entries of a segment as removed from memory, and return their ids."""
        del self.by_key[segment.key]
        for entry_id in segment.alive:
            del self._by_entry[entry_id]
        return segment.alive

    def keep_only(self, found: Mapping[int, int], rewritten: Iterable[int]) -> None:
        """Limit the table to the segments on disk: `found` gives the number of messages by key.

        A segment found with another number than written is another segment. Keys among `rewritten` are exempt:
        rewriting such a segment has failed, or perhaps succeeded.
        """
        trusted = set(rewritten)
        self.by_key = {
            key: segment._replace(saved=found[key])
            for key, segment in self.by_key.items()
            if key in found and (key in trusted or found[key] == segment.saved)
        }
        self._by_entry = {entry_id: each for each in self.by_key.values() for entry_id in each.alive}
        self.obsolete &= found.keys()
        self.growing = {
            origin: last for origin, last in self.growing.items() if found.get(last.key) == len(last.messages)
        }

    def shift_keys(self, by: int) -> None:
        """Raise the key of every segment by a number."""
        self.by_key = {key + by: segment._replace(key=key + by) for key, segment in self.by_key.items()}
        self._by_entry = {entry_id: self.by_key[each.key + by] for entry_id, each in self._by_entry.items()}
        self.growing = {origin: last._replace(key=last.key + by) for origin, last in self.growing.items()}
        self.obsolete = {key + by for key in self.obsolete}
        self.last_key += by
        self.inherited += by
