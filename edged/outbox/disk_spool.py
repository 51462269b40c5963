"""A memory spool that also writes things down, so that they outlive the process and the power.

Publisher and sinks see a memory spool, which answers at once. Beside it one thread, the keeper, does all that touches
the disk, and never while it holds the lock: a disk that hangs or fails costs durability and nothing else. Each of its
turns does what is due: it opens the file, commits what is to be saved and deletes what is settled, all in one
transaction, reads the next segments before they are needed, and lets go of what does not fit.

Only "always" waits for the disk: `put` returns when its message is committed, together with whatever else was put
meanwhile, so that a pipeline has told nobody of a result that a power cut could take back. It does not wait for a disk
that fails, hangs or has no budget left: inferring goes on, the health says so, and each such message is counted `late`.

The file may be deleted or replaced while it is open, by `rm` or by a backup put in the folder's place. What is written
then is lost when the process ends. So the keeper looks for that in each turn, at least once a second while anything is
owed, and copies all that it has into a file at the path, which outlives the process again.

A message in memory may have a home, the segment on disk that holds it as well; a segment is deleted when all messages
at home there are settled. Messages beyond what is soon needed are on disk only, and counted as `behind` in their line.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple

import msgspec

from edged.core.health import Health, Status
from edged.core.metrics import LatencyHistogram
from edged.core.record import WallClock
from edged.core.types import Message
from edged.outbox import salvage
from edged.outbox.options import Policy, SpoolOptions
from edged.outbox.segment_file import (
    MAX_SEGMENT,
    MAX_SEGMENT_BYTES,
    SET_ASIDE,
    BytesWritten,
    Connect,
    FileContents,
    Place,
    Segment,
    SegmentFile,
    ShelfError,
    Stamp,
    is_damaged,
    open_database,
    place,
)
from edged.outbox.spool import (
    MAX_PARKED,
    Aside,
    DiskStats,
    Entry,
    MemorySpool,
    OriginQueue,
    Parked,
    SpoolStats,
    count,
    size,
)

log = logging.getLogger("edged.outbox")

SOON = 1000
"""So many messages of a line are held in memory, though they are on disk, because they may be sent soon."""

AT_FIRST = 100
"""So many while there is no connection."""

SMALL = 2500
"""A segment of fewer bytes is written anew with the next messages of its line: that costs no more pages."""

RETRY_SECONDS = 5.0

LONGEST_REST = 600.0

HUNG_SECONDS = 5.0
"""A disk that has not answered for so long is waited for no more, by nobody."""

LOOK_SECONDS = 1.0
"""How often the keeper looks, without being called, for what is due."""

DAY = 86_400.0
_WEAR_EVERY = 600.0
_PACE_SECONDS = 30.0


class StoredSegment(NamedTuple):
    """A segment of which messages are in memory: those of them that are not settled, and how many it was saved with."""

    key: int
    alive: set[int]
    saved: int


class Batch(NamedTuple):
    """Entries of one line that are to be saved together, after those that are in the segment already.

    `resident` says whether these are in memory as well; a parked entry has a segment of its own.
    """

    key: int
    origin: str
    entries: list[Entry]
    before: Sequence[Message] = ()
    resident: bool = False
    parked: Parked | None = None


class Growing(NamedTuple):
    """The last segment of a line, while it is so small that the next messages may join it."""

    key: int
    messages: list[Message]


class DiskSpool(MemorySpool):
    """A spool that keeps its file in `folder`. Its health is `status`, which the keeper alone sets.

    `wall` gives Unix time, for the age of what an earlier boot left behind. `connect` opens a database file.
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
        super().__init__(options, policies, clock=clock)
        self.file = folder / "spool.db"
        self.status = status
        self._wall = wall
        self._connect = connect
        self._boot = boot or _kernel_boot()
        self._tick = Condition(self._lock)
        self._turned = Condition(self._lock)
        self._awaited: set[int] = set()  # entries that somebody waits for until they are on disk
        self._late = 0
        self._commits = LatencyHistogram()
        self._pace = _Pace(clock)
        self._thread = Thread(target=self._run, name="spool", daemon=True)
        self._shelf: SegmentFile | None = None
        self._astray = False  # the open file is not the one at the path, and could not be copied there yet
        self._place: Place | None = None  # of the file that was opened last
        self._looked = False
        self._hungry = True
        self._closing = False
        self._failed = False
        self._anew = False  # a new file was begun, and has not been of use yet
        self._unread = 0  # so many times in a row it could not even be read
        self._next_check = -math.inf
        self._busy_since = math.inf
        self._next_commit = clock() + self.options.commit_seconds
        self._last_key = 0
        self._inherited = 0  # the last key that an earlier process has used
        self._first_id = -(1 << 60)  # of entries that are read from the file
        self._homes: dict[int, StoredSegment] = {}  # by entry
        self._resident: dict[int, StoredSegment] = {}  # by segment
        self._growing: dict[str, Growing] = {}
        self._doomed: set[int] = set()
        self._settled: set[int] | None = None  # entries that were settled while the keeper was saving
        self._recorded: set[int] = set()  # numbers of parked messages of which the disk knows that they are
        self._full = False
        self._file_bytes = 0
        self._aside: tuple[Aside, ...] = ()
        self._wear = _Wear(self._boot, clock)

    def start(self, ready: Callable[[], None]) -> None:
        """See Spool."""
        super().start(ready)
        self._thread.start()

    def put(self, message: Message) -> None:
        """See Spool."""
        with self._lock:
            policy = self._policy(message.origin)
            full = self._full and not self._memory_only
            if policy.drop == "newest" and (full or self.depth >= self.options.messages):
                count(self._drops, message.origin, "full")
                return
            self._pace.count(message.origin)
            if self._is_idle:
                self._tick.notify()
            super().put(message)
            if policy.durability == "always":
                self._await_commit(message)
            elif not self._present and self._clock() >= self._next_commit:
                self._call_keeper()

    def resume(self) -> None:
        """See Spool."""
        super().resume()
        self._call_keeper()

    def take(self, count: int, replays: int | None = None) -> list[Entry]:
        """See Spool."""
        taken = super().take(count, replays)
        with self._lock:
            if self._hungriest(SOON // 2) is not None:
                self._call_keeper()
        return taken

    def release(self) -> None:
        """See Spool."""
        super().release()
        self._call_keeper()

    def retry(self, numbers: Iterable[int] | None = None) -> int:
        """See Spool. What is tried again is saved again when that is due: on disk it was parked."""
        with self._lock:
            for each in self._chosen(numbers):
                if (home := self._homes.pop(each.entry.id, None)) is not None:
                    self._move_out(home, each.entry.id)
            return super().retry(numbers)

    def close(self, seconds: float) -> list[Message]:
        """See Spool."""
        self.release()
        with self._lock:
            self._closing = True
            self._tick.notify()
            self._turned.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        with self._lock:
            entries = sorted(entry for line in self._lines.values() for entry in line.entries())
            return [entry.message for entry in entries if self._astray or entry.id not in self._homes]

    @property
    def stats(self) -> SpoolStats:
        """See Spool."""
        with self._lock:
            unsaved = [message for _, message in self._unsaved()]
            now = self._clock()
            return msgspec.structs.replace(
                super().stats,
                disk=DiskStats(
                    path=str(self.file),
                    file_bytes=self._file_bytes,
                    written=self._wear.written,
                    daily_bytes=self.options.daily_bytes,
                    unsaved=len(unsaved),
                    unsaved_seconds=max((now - message.created for message in unsaved), default=0.0),
                    loss_seconds=self._loss_seconds,
                    loss_messages=self._loss_messages,
                    late=self._late,
                    commit=self._commits.percentiles(),
                    set_aside=self._aside,
                ),
            )

    @property
    def health(self) -> Health:
        """See Spool."""
        if self._hung:
            reason = f"the disk of {self.file} does not answer: messages are kept in memory only"
            return Health("degraded", reason, "look at dmesg, and replace the card", self._busy_since)
        return self.status.health

    # -- with the lock held, on any thread ---------------------------------------------------------------------------

    @property
    def _hung(self) -> bool:
        return self._clock() - self._busy_since > HUNG_SECONDS

    @property
    def _memory_only(self) -> bool:
        """Whether nothing gets to the disk now, so that nobody need wait for it."""
        return self._failed or self._hung or self._over_budget

    @property
    def _loss_seconds(self) -> float | None:
        spills = any(self._policy(origin).durability == "spill" for origin in {*self.policies, *self._lines})
        if self._memory_only:
            return None
        if not spills:
            return 0.0
        commit = self._commits.percentiles()["p99"] or 0.0
        if not self._present:
            return self.options.commit_seconds + commit
        return self.options.spill_seconds + max(self.options.commit_seconds, LOOK_SECONDS) + commit

    @property
    def _loss_messages(self) -> int | None:
        seconds = self._loss_seconds
        if seconds is None:
            return None
        rates = self._pace.rates()
        rate = sum(rate for origin, rate in rates.items() if self._policy(origin).durability == "spill")
        return math.ceil(rate * seconds)

    @property
    def _overfull(self) -> bool:
        """What cannot go to the disk must have room in memory, within the same bounds."""
        return super()._overfull or (self._memory_only and self.depth + len(self._parked) > self.options.messages)

    def _await_commit(self, message: Message) -> None:
        """Wait until what was just put is on disk, if it is there at all and the disk is of use."""
        line = self._line(message.origin)
        entry = (line.fresh or line.tail or (None,))[-1]
        if entry is None or entry.message is not message:
            return
        self._awaited.add(entry.id)
        self._call_keeper()

        def over() -> bool:
            idle = self._closing or not self._thread.is_alive()
            return entry.id not in self._awaited or self._memory_only or idle

        self._turned.wait_for(over, HUNG_SECONDS)
        if entry.id in self._awaited:
            self._awaited.discard(entry.id)
            self._late += 1

    def _call_keeper(self) -> None:
        with self._lock:
            self._hungry = True
            self._tick.notify()

    @property
    def _unreadable(self) -> bool:
        return self._unread > 1 or self._hung

    def _may_send(self, origin: str, entry: Entry) -> bool:
        if self._memory_only:
            return True
        return self._looked and (entry.id in self._homes or self._policy(origin).durability != "always")

    def _forget(self, entry_id: int, message: Message) -> None:
        super()._forget(entry_id, message)
        if self._settled is not None:
            self._settled.add(entry_id)
        self._awaited.discard(entry_id)
        home = self._homes.pop(entry_id, None)
        if home is not None:
            self._move_out(home, entry_id)

    def _move_out(self, home: StoredSegment, entry_id: int) -> None:
        home.alive.discard(entry_id)
        if not home.alive:
            self._resident.pop(home.key, None)
            self._doomed.add(home.key)
            self._growing = {origin: last for origin, last in self._growing.items() if last.key != home.key}

    def _unsaved(self) -> Iterable[tuple[int, Message]]:
        """What is to be on disk some time and is not."""
        for origin, line in self._lines.items():
            if self._policy(origin).durability != "memory":
                for entry in line.entries():
                    if entry.id not in self._homes:
                        yield entry.id, entry.message
        for entry_id, (message, _) in self._flying.items():
            if entry_id not in self._homes and self._policy(message.origin).durability != "memory":
                yield entry_id, message

    # -- the keeper --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        closing = False
        while not closing or (self._anew and self._clock() >= self._next_commit):
            with self._lock:
                if not self._closing:
                    self._tick.wait_for(lambda: not self._is_idle or self._hungry or self._closing)
                    self._tick.wait_for(lambda: self._hungry or self._closing, self._patience())
                closing = self._closing
                self._hungry = False
            self._turn(closing)
        if self._shelf is not None:
            self._shelf.close()

    @property
    def _is_idle(self) -> bool:
        """Whether nothing is owed and nothing is to be done: until a message is put, nothing need be looked at."""
        owed = self.depth or self._parked or self._doomed
        return not owed and self._looked and not self._failed and not self._over_budget

    def _patience(self) -> float:
        """Whatever is put when a commit is due calls; this is for what grows late, and for a commit to come."""
        left = self._next_commit - self._clock()
        return max(0.02, min(left, LOOK_SECONDS)) if left > 0 else LOOK_SECONDS

    def _turn(self, closing: bool) -> None:
        self._busy_since = self._clock()
        unread = self._unread + 1
        try:
            if self._failed and not closing and self._busy_since < self._next_commit:
                if self._shelf is not None:  # it is astray: what is in it can be sent all the same
                    self._fetch(self._shelf)
                return
            if self._shelf is None and self._something_is_there():
                self._open()
            if self._shelf is not None and not self._shelf.is_in_place:
                self._return_to_place(self._shelf)
            if self._failed and self._shelf is not None and not closing:
                with suppress(ShelfError):  # what is full can be read, and what cannot be read be written, all the same
                    self._fetch(self._shelf)
                    unread = 0
            if closing or self._awaited or self._crowded or self._clock() >= self._next_commit:
                self._commit(closing)
            if self._crowded:
                self._let_go()
            if self._shelf is not None and not closing:
                self._fetch(self._shelf)
                if not self._over_budget:
                    self._shelf.shrink()
                self._file_bytes = self._shelf.used_bytes
            self._looked_now()
            self._recovered()
        except ShelfError as error:
            self._unread = unread
            self._trouble(error)
        except Exception as error:
            self._unread = unread
            self._trouble(_bug(error))
        finally:
            self._busy_since = math.inf
            self._wear.look()
            with self._lock:
                self._turned.notify_all()

    def _something_is_there(self) -> bool:
        """Whether the file has, or may have, what is to be sent."""
        if not self._looked:
            return salvage.is_there(self.file)
        return self._is_another or any(line.behind for line in self._lines.values())

    @property
    def _is_another(self) -> bool:
        """Whether the file that was opened last, and is closed, is not the one at the path."""
        return self._place is not None and place(self.file) != self._place

    def _recovered(self) -> None:
        over = self._over_budget
        with self._lock:
            self._failed = self._anew = False
            self._unread = 0
        if over:
            reason = f"{self.options.daily_bytes} bytes were written today, which is all that is allowed"
            self.status.set("degraded", f"{reason}: messages wait in memory only", "raise daily_bytes in [spool]")
        else:
            self.status.set("running")

    def _trouble(self, error: ShelfError) -> None:
        """The file is of no use now. What is in memory is to be saved again; what was on disk only may come back."""
        if self._shelf is not None and not self._astray:  # one that is astray is the only one there is: keep it open
            self._shelf.close()
            self._shelf = None
        with self._lock:
            self._failed = True
            self._busy_since = math.inf  # to read all of a file takes its time: that is no disk that hangs
            self._turned.notify_all()
        self._ready()  # those who had to be on disk first need not be any more
        self._degrade(error)
        pause = RETRY_SECONDS
        if error.doubtful and self._clock() >= self._next_check:
            begun = self._clock()
            if is_damaged(self.file, self._connect):
                error = ShelfError(f"{self.file} is damaged", hint=SET_ASIDE, damaged=True)
                self._degrade(error)
            self._next_check = self._clock() + _rest(self._clock() - begun)
        if error.damaged or error.other:
            begun = self._clock()
            try:
                self._begin_anew(error)
                pause = RETRY_SECONDS if self._anew else 0
                self._anew = True
            except ShelfError as worse:
                self._degrade(worse)
            except Exception as worse:
                self._degrade(_bug(worse))
            if pause:
                pause = _rest(self._clock() - begun)
                self._unread += 1  # nor will it be read for long
        with self._lock:
            self._next_commit = self._clock() + pause
            self._hungry = self._hungry or not pause

    def _degrade(self, error: ShelfError) -> None:
        self.status.set("degraded", f"{error.message}: messages are kept in memory only", error.hint)

    def _begin_anew(self, error: ShelfError) -> None:
        """Move the file out of the way, and go on with what can be read of it. Raises ShelfError."""
        with self._lock:
            doomed = set(self._doomed)
        if error.other:
            aside, saved = salvage.set_aside(self.file, "other"), salvage.Saved({}, set())
        else:
            aside, saved = salvage.replace(self.file, self._connect, doomed)
        log.error("%s; it is now %s, and %d messages of it were saved", error.message, aside, saved.messages)
        with self._lock:
            self._aside = (*self._aside, Aside(str(aside), saved.messages))[-salvage.KEEP_ASIDE :]
            self._place = None
            if self._looked:
                self._go_on_with(saved)

    def _go_on_with(self, saved: salvage.Saved) -> None:
        """Only these are on disk. What is in memory as well is to be saved again, and what is neither is dropped."""
        keys = saved.waiting.keys() | saved.parked
        self._homes = {entry_id: home for entry_id, home in self._homes.items() if home.key in keys}
        self._resident = {key: home for key, home in self._resident.items() if key in keys}
        self._recorded = {number for number, each in self._parked.items() if each.entry.id in self._homes}
        self._doomed &= keys
        self._growing.clear()
        behind: dict[str, int] = {}
        for key in saved.waiting.keys() - self._resident.keys() - self._doomed:
            origin, number = saved.waiting[key]
            behind[origin] = behind.get(origin, 0) + number
        for origin in {*self._lines, *behind}:
            line = self._line(origin)
            if (lost := line.behind - behind.get(origin, 0)) > 0:
                count(self._drops, origin, "damaged", lost)
            line.behind = behind.get(origin, 0)

    def _open(self) -> None:
        """A file that was there before is opened again with all that was known of it, unless it is another one."""
        another = self._is_another
        self._shelf = SegmentFile(self.file, self._connect)
        self._place = self._shelf.place
        if another:
            found = self._shelf.look()
            log.warning("%s was deleted or replaced while it could not be used", self.file)
            with self._lock:
                self._go_on_with(salvage.Saved({}, set()))
                self._shift_keys(found.last_key)
                self._adopt(found)
        elif not self._looked:
            found = self._shelf.look()
            self._wear.take_over(self._shelf.read_wear())
            with self._lock:
                self._adopt(found)
            self._looked_now()

    def _return_to_place(self, old: SegmentFile) -> None:
        """Have all that is in the open file at the path again, beside what is there now. Raises ShelfError."""
        self._astray = True
        error = ShelfError(f"{self.file} was deleted or replaced while it was in use", hint=_LEAVE_ALONE)
        self._degrade(error)
        try:
            if old.place is not None and place(self.file) == old.place:  # only its log is gone, so far not needed
                old.settle()
                old.close()
                self._shelf = SegmentFile(self.file, self._connect)
            else:
                self._shelf = self._copy(old)
                old.close()
        except ShelfError as failure:  # whatever is wrong with what is there now, it is not this file that is damaged
            raise ShelfError(f"{error.message}, and {failure.message}", hint=failure.hint) from failure
        self._place = self._shelf.place
        self._astray = False
        log.warning("%s; %d messages that wait were saved there again", error.message, self.depth)

    def _copy(self, old: SegmentFile) -> SegmentFile:
        """A file at the path with all that is in this one, after whatever is there."""
        old.withdraw_log()
        try:
            new = SegmentFile(self.file, self._connect)
        except ShelfError as error:
            if not (error.damaged or error.other):
                raise
            salvage.set_aside(self.file, "other")
            new = SegmentFile(self.file, self._connect)
        try:
            found = new.look()
            new.take_over(old, found.last_key)
        except BaseException:
            new.close()
            raise
        with self._lock:
            self._shift_keys(found.last_key)
            self._adopt(found)
        return new

    def _shift_keys(self, shift: int) -> None:
        """Each segment has a key that is so much higher. What will be read from the file gets ids of its own."""
        self._resident = {key + shift: home._replace(key=key + shift) for key, home in self._resident.items()}
        self._homes = {entry_id: self._resident[home.key + shift] for entry_id, home in self._homes.items()}
        self._growing = {origin: last._replace(key=last.key + shift) for origin, last in self._growing.items()}
        self._doomed = {key + shift for key in self._doomed}
        self._last_key += shift
        self._inherited += shift
        self._first_id -= 1 << 60

    def _looked_now(self) -> None:
        """What was left behind is known, so that nothing new goes before it."""
        if not self._looked:
            self._looked = True
            self._ready()

    def _adopt(self, found: FileContents) -> None:
        self._last_key = max(self._last_key, found.last_key)  # what is being saved has its key already
        self._inherited = max(self._inherited, found.last_key)
        for origin, waiting in found.waiting.items():
            self._line(origin).behind += waiting
        self._doomed |= {segment.key for segment in found.parked[:-MAX_PARKED]}
        for segment in found.parked[-MAX_PARKED:]:
            for entry in self._move_in(segment):
                self._last_number += 1
                self._recorded.add(self._last_number)
                self._parked[self._last_number] = Parked(self._last_number, entry, segment.reason or "")
                self._bytes += size(entry.message)

    def _move_in(self, segment: Segment) -> list[Entry]:
        """A segment was read: its messages as entries that are at home there."""
        late, estimated = self._lateness(segment.stamp)
        inherited = segment.key <= self._inherited
        entries = [
            Entry((segment.key << 10 | index) + self._first_id, _later(message, late, estimated), inherited)
            for index, message in enumerate(segment.messages)
        ]
        home = StoredSegment(segment.key, {entry.id for entry in entries}, len(entries))
        self._resident[segment.key] = home
        self._homes |= dict.fromkeys(home.alive, home)
        return entries

    def _lateness(self, stamp: Stamp) -> tuple[float, bool]:
        """What to add to a time of a segment to make it one of this boot, and whether that is but an estimate.

        Without a clock that both boots trust, the time between them is unknown and taken for nothing.
        """
        if stamp.boot == self._boot:
            return 0.0, False
        now = self._clock()
        if stamp.wall is not None and self._wall is not None and self._wall.synchronised:
            return now - max(0.0, self._wall.at(now) - stamp.wall) - stamp.monotonic, False
        return self._started - stamp.monotonic, True

    # -- saving ------------------------------------------------------------------------------------------------------

    def _commit(self, closing: bool) -> None:
        if self._over_budget and not closing:
            return
        self._full = self._shelf is not None and self._shelf.used_bytes > self.options.bytes
        with self._lock:
            if (self._full or self._excess > 0) and not self._failed:
                self._let_go()
            batches = self._due(closing)
            doomed = set(self._doomed)
            if not batches and not doomed and not self._too_old:
                return
            self._settled = set()
        self._next_commit = self._clock() + self.options.commit_seconds
        try:
            if self._shelf is None:
                self._open()
            assert self._shelf is not None
            begun = self._clock()
            self._write(self._shelf, batches, doomed, closing)
            self._commits.add(self._clock() - begun)
        except ShelfError:
            with self._lock:  # perhaps it was written all the same
                self._doomed |= {batch.key for batch in batches if not batch.before}
            raise
        finally:
            with self._lock:
                self._settled = None
        self._ready()

    def _write(self, shelf: SegmentFile, batches: list[Batch], doomed: set[int], closing: bool) -> None:
        sizes = []
        with shelf.transaction():
            shelf.remove(doomed)
            lost = self._make_room_on_disk(shelf, {batch.key for batch in batches})
            for batch in batches:
                messages = [*batch.before, *(entry.message for entry in batch.entries)]
                reason = batch.parked.reason if batch.parked else None
                sizes.append(shelf.put(Segment(batch.key, batch.origin, self._stamp(), messages, reason=reason)))
            if closing or self._wear.unsaved_for > _WEAR_EVERY:
                shelf.write_wear(self._wear.save())
        with self._lock:
            self._doomed -= doomed
            for origin, reason, number in lost:
                self._line(origin).behind -= number
                count(self._drops, origin, reason, number)
            for batch, written in zip(batches, sizes, strict=True):
                self._saved(batch, written)
            for origin in {batch.origin for batch in batches}:
                self._trim(self._line(origin))

    def _due(self, closing: bool) -> list[Batch]:
        """What is to be saved now."""
        batches: list[Batch] = []
        spill = not self._present or closing or self._crowded
        for origin, line in self._lines.items():
            durability = self._policy(origin).durability
            if durability == "memory":
                continue
            entries = [entry for entry in self._of(origin, line) if entry.id not in self._homes]
            late = any(self._clock() - entry.message.created > self.options.spill_seconds for entry in entries[:1])
            if durability == "always" or spill or late:
                batches += self._split(origin, entries)
        self._recorded &= self._parked.keys()
        for number, parked in self._parked.items():
            origin = parked.entry.message.origin
            if number not in self._recorded and self._policy(origin).durability != "memory":
                batches.append(Batch(self._new_key(), origin, [parked.entry], parked=parked))
        if closing:
            batches += self._remainders()
        return batches

    def _of(self, origin: str, line: OriginQueue) -> list[Entry]:
        """All of a line that is in memory, in flight or not, in the order in which they were made."""
        flying = [Entry(key, flight.message) for key, flight in self._flying.items() if flight.message.origin == origin]
        return sorted([*flying, *line.entries()], key=lambda entry: entry.message.created)

    def _split(self, origin: str, entries: list[Entry]) -> list[Batch]:
        batches: list[Batch] = []
        room, left = 0, 0
        growing = self._growing.get(origin)
        for entry in entries:
            if room <= 0 or left <= 0:
                if not batches and growing and self._may_grow(growing, entries):
                    resident = growing.key in self._resident
                    batches.append(Batch(growing.key, origin, [], growing.messages, resident))
                else:
                    batches.append(Batch(self._new_key(), origin, []))
                room, left = MAX_SEGMENT, MAX_SEGMENT_BYTES
            batches[-1].entries.append(entry)
            room -= 1
            left -= len(entry.message.payload)
        return batches

    def _may_grow(self, growing: Growing, entries: list[Entry]) -> bool:
        """Only a segment that is wholly in memory, or not at all, may get more messages."""
        home = self._resident.get(growing.key)
        if home is None:
            return not any(entry.id in self._flying for entry in entries)
        return len(home.alive) == home.saved

    def _new_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def _remainders(self) -> list[Batch]:
        """Segments of which something is settled, without that: what comes back was not sent before."""
        batches = []
        for home in self._resident.values():
            if 0 < len(home.alive) < home.saved:
                lines = self._lines.items()
                found = [(origin, e) for origin, line in lines for e in line.entries() if e.id in home.alive]
                if found:
                    batches.append(Batch(home.key, found[0][0], [entry for _, entry in found]))
        return batches

    def _saved(self, batch: Batch, written: int) -> None:
        """A batch is on disk: its messages are at home there, but for those that were settled meanwhile."""
        messages = [*batch.before, *(entry.message for entry in batch.entries)]
        alive = {entry.id for entry in batch.entries} - (self._settled or set())
        self._awaited -= alive
        if batch.parked is not None:
            self._recorded.add(batch.parked.number)
        elif written < SMALL and len(messages) < MAX_SEGMENT:
            self._growing[batch.origin] = Growing(batch.key, messages)
        else:
            self._growing.pop(batch.origin, None)
        if batch.before and not batch.resident:
            line = self._line(batch.origin)
            self._send_behind(line, alive)
            line.behind += len(batch.entries) - len(alive)  # settled too late: they are there, and come once more
            return
        if batch.resident and (old := self._resident.get(batch.key)):
            alive |= old.alive
        for entry_id in alive:
            if (former := self._homes.get(entry_id)) and former.key != batch.key:
                self._move_out(former, entry_id)
        if alive:
            self._doomed.discard(batch.key)
            self._resident[batch.key] = home = StoredSegment(batch.key, alive, len(messages))
            self._homes |= dict.fromkeys(alive, home)
        else:
            self._doomed.add(batch.key)

    def _trim(self, line: OriginQueue) -> None:
        """Hold on disk only what will not be sent soon."""
        if len(line.head) + len(line.tail) + len(line.fresh) <= SOON:
            return
        if self.options.drain == "newest":
            if len(line.fresh) > SOON:
                line.grow_old()
            self._send_behind(line, self._let_go_oldest(line, SOON))
            return
        waiting = {entry.id for queue in (line.tail, line.fresh) for entry in queue}
        keep_until = None if line.behind else SOON - len(line.head)
        behind: set[int] = set()
        for home in self._homes_of(line):
            if keep_until is not None and keep_until > 0:
                keep_until -= len(home.alive)
            elif len(home.alive) == home.saved and home.alive <= waiting:
                keep_until = 0
                behind |= home.alive
                del self._resident[home.key]
        if behind:
            self._send_behind(line, behind)

    def _let_go_oldest(self, line: OriginQueue, keep: int) -> set[int]:
        """The entries of whole segments that are older than all else in memory, but for so many old ones."""
        entries = [*line.head, *line.tail]
        left: set[int] = set()
        while len(left) < len(entries) - keep and (home := self._homes.get(entries[len(left)].id)):
            next_ones = {entry.id for entry in entries[len(left) : len(left) + home.saved]}
            if next_ones != home.alive or len(entries) - len(left) - home.saved < keep:
                break
            left |= home.alive
            del self._resident[home.key]
        return left

    def _homes_of(self, line: OriginQueue) -> Iterator[StoredSegment]:
        """The homes of what is in tail and fresh, the oldest first."""
        entries = (entry for queue in (line.tail, line.fresh) for entry in queue)
        homes = {home.key: home for entry in entries if (home := self._homes.get(entry.id))}
        return iter(homes.values())

    def _send_behind(self, line: OriginQueue, ids: set[int]) -> None:
        """Hold these on disk only. What is at home on disk and older stays in memory, before them."""
        first = not line.behind
        for queue in (line.head, line.tail, line.fresh):
            entries = list(queue)
            queue.clear()
            for entry in entries:
                if entry.id in ids:
                    self._homes.pop(entry.id, None)
                    line.behind += 1
                    line.bytes -= size(entry.message)
                    self._bytes -= size(entry.message)
                    self._waiting -= 1
                elif queue is not line.head and first and entry.id in self._homes and not line.behind:
                    line.head.append(entry)
                else:
                    queue.append(entry)

    # -- reading and letting go --------------------------------------------------------------------------------------

    def _fetch(self, shelf: SegmentFile) -> None:
        """Read what will soon be sent."""
        newest = self.options.drain == "newest"
        while (origin := self._hungriest(SOON if self._present else AT_FIRST)) is not None:
            line = self._line(origin)
            with self._lock:
                taken = {*self._resident, *self._doomed}
            found = shelf.next(origin, taken, newest=newest)
            if found is None:
                line.behind = 0
                continue
            key, number = found
            segment = shelf.read(key)
            with self._lock:
                line.behind -= number
                self._growing.pop(origin, None)
                if segment is None:
                    self._doomed.add(key)
                    count(self._drops, origin, "damaged", number)
                    continue
                entries = self._move_in(segment)
                if newest:
                    line.head.extendleft(reversed(entries))
                else:
                    line.head.extend(entries)
                bytes_ = sum(size(entry.message) for entry in entries)
                line.bytes += bytes_
                self._bytes += bytes_
                self._waiting += len(entries)
            self._ready()

    def _hungriest(self, soon: int) -> str | None:
        """The line on disk that has fewest messages in memory, if there is room for more of it, and it has not enough.

        Half of the memory is for what is not on disk; but something of what is there has to be in memory to be sent.
        """
        with self._lock:
            ahead = {origin: line.ahead(self.options) for origin, line in self._lines.items() if line.behind}
            room = self._bytes < self.options.memory_bytes // 2 or (self._present and not any(ahead.values()))
            origin = min(ahead, key=ahead.__getitem__, default=None)
            return origin if origin is not None and room and ahead[origin] < soon else None

    @property
    def _too_old(self) -> bool:
        return self.options.seconds > 0 and any(line.behind for line in self._lines.values())

    @property
    def _crowded(self) -> bool:
        """Whether there may soon be no room in memory: what is on disk need not be there."""
        return self._bytes > self.options.memory_bytes * 3 // 4

    @property
    def _excess(self) -> int:
        return self.depth - self.options.messages

    def _let_go(self) -> None:
        """Hold on disk only what is there and not under way: so it is found in its order when something must go."""
        with self._lock:
            for line in self._lines.values():
                if self.options.drain == "newest":
                    self._send_behind(line, self._let_go_oldest(line, 0))
                    continue
                waiting = {entry.id for entry in line.entries()}
                homes = {home.key: home for entry in line.entries() if (home := self._homes.get(entry.id))}
                whole = [home for home in homes.values() if len(home.alive) == home.saved and home.alive <= waiting]
                for home in whole:
                    del self._resident[home.key]
                self._send_behind(line, set().union(*(home.alive for home in whole)))

    def _make_room_on_disk(self, shelf: SegmentFile, growing: set[int]) -> list[tuple[str, str, int]]:
        """Delete what is too old or does not fit; whose it was, why, and how many. Within a transaction."""
        with self._lock:
            taken = {*self._resident, *self._doomed, *growing}
        lost = self._remove_outdated(shelf, taken) if self._too_old else []
        with self._lock:
            behind = {origin: line.behind for origin, line in self._lines.items() if line.behind}
            excess = self._excess
        for origin, _, number in lost:
            behind[origin] -= number
            excess -= number
        while excess > 0 or shelf.used_bytes > self.options.bytes:
            if not (victims := [origin for origin in behind if behind[origin] > 0]):
                break
            origin = max(victims, key=lambda each: (-self._policy(each).priority, behind[each]))
            policy = self._policy(origin)
            number, reason = (
                self._thin(shelf, origin, taken, policy.keep_every)
                if policy.drop == "thin"
                else self._remove_one(shelf, origin, taken, newest=policy.drop == "newest")
            )
            if not number:
                behind[origin] = 0
                continue
            lost.append((origin, reason, number))
            behind[origin] -= number
            excess -= number
        return lost

    def _remove_one(self, shelf: SegmentFile, origin: str, taken: set[int], *, newest: bool) -> tuple[int, str]:
        found = shelf.next(origin, taken, newest=newest)
        if found is None:
            return 0, "full"
        self._growing.pop(origin, None)
        shelf.remove([found[0]])
        return found[1], "full"

    def _thin(self, shelf: SegmentFile, origin: str, taken: set[int], keep_every: int) -> tuple[int, str]:
        """Make one segment of several neighbours, with every so-manieth of their messages."""
        neighbours = shelf.least_thinned(origin, taken, keep_every)
        segments = [segment for key, _ in neighbours if (segment := shelf.read(key))]
        messages = [message for segment in segments for message in segment.messages]
        kept = messages[::keep_every] if len(messages) > 1 else []
        self._growing.pop(origin, None)
        shelf.remove([key for key, _ in neighbours])
        if kept:
            shelf.put(segments[0]._replace(messages=kept, level=segments[0].level + 1))
        return sum(number for _, number in neighbours) - len(kept), "thinned"

    def _remove_outdated(self, shelf: SegmentFile, taken: set[int]) -> list[tuple[str, str, int]]:
        found = shelf.outdated(self._boot, self._clock() - self.options.seconds, taken)
        shelf.remove([key for key, _, _ in found])
        return [(origin, "expired", number) for _, origin, number in found]

    # -- wear and time -----------------------------------------------------------------------------------------------

    @property
    def _over_budget(self) -> bool:
        return 0 < self.options.daily_bytes <= (self._wear.written or 0)

    def _stamp(self) -> Stamp:
        now = self._clock()
        known = self._wall is not None and self._wall.synchronised
        return Stamp(self._boot, now, self._wall.at(now) if known and self._wall else None)


class _Wear:
    """Bytes that the keeper's thread has written within a day, as the kernel counts them; `look` runs on that thread.

    A day begins with the first byte and is over 24 hours later; one of an earlier boot goes on as if no time had
    passed between them, which errs on the side of the card.
    """

    def __init__(self, boot: str, clock: Callable[[], float]) -> None:
        self.written: int | None = 0
        self._boot = boot
        self._clock = clock
        self._since = self._saved_at = clock()
        self._before = 0
        self._base: int | None = None

    def look(self) -> None:
        """Count."""
        now = _written_by_this_thread()
        if now is None:
            self.written = None
            return
        if self._base is None or self._clock() - self._since > DAY:
            renewed = self._base is not None
            self._base = now
            if renewed:
                self._before, self._since = 0, self._clock()
        self.written = self._before + now - self._base

    def take_over(self, wear: BytesWritten | None) -> None:
        """Go on with what was counted before."""
        if wear is not None and self._before == 0:
            self._before = wear.bytes
            self._since = wear.since if wear.boot == self._boot else self._clock()

    @property
    def unsaved_for(self) -> float:
        """Seconds since this was last put on record."""
        return self._clock() - self._saved_at

    def save(self) -> BytesWritten:
        """For the record."""
        self._saved_at = self._clock()
        return BytesWritten(self._boot, self._since, self.written or 0)


class _Pace:
    """How many messages a second are put, by origin, in the last half minute or so."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._counts: dict[str, int] = {}
        self._before: dict[str, float] = {}

    def count(self, origin: str) -> None:
        """One was put."""
        self._counts[origin] = self._counts.get(origin, 0) + 1

    def rates(self) -> dict[str, float]:
        """By origin: what it is now, or was in the half minute before if that was more."""
        elapsed = max(1.0, self._clock() - self._since)
        rates = {origin: number / elapsed for origin, number in self._counts.items()}
        either = {origin: max(rates.get(origin, 0.0), self._before.get(origin, 0.0)) for origin in rates | self._before}
        if elapsed > _PACE_SECONDS:
            self._counts, self._before, self._since = {}, rates, self._clock()
        return either


_LEAVE_ALONE = "stop edged before its state folder is changed, deleted or restored"


def _bug(error: Exception) -> ShelfError:
    """One of ours must not end the thread, and with it durability, in silence; but damage may have brought it about."""
    log.error("the spool's keeper failed", exc_info=error)
    return ShelfError(f"{type(error).__name__}: {error}", hint="report this", doubtful=True)


def _rest(seconds: float) -> float:
    """How long to leave a disk alone of which all of a file was read, and perhaps written, for so long and in vain."""
    return min(max(RETRY_SECONDS, 100 * seconds), LONGEST_REST)


def _written_by_this_thread() -> int | None:
    try:
        lines = Path("/proc/thread-self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), None)


def _kernel_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _later(message: Message, seconds: float, estimated: bool) -> Message:
    if not seconds:
        return message
    return msgspec.structs.replace(message, created=message.created + seconds, estimated=estimated)
