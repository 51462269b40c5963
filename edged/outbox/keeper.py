"""The keeper: the thread of a disk spool that writes, syncs, trims, reads and salvages the file.

Other threads work on the messages in memory, and wait for the disk in `await_commit` only. The keeper never holds the
lock during disk access: a disk that hangs or fails costs durability and nothing else. A turn of the keeper opens the
file, saves and deletes in one transaction, reads the next segments ahead of time, and removes messages from a full
memory.

The keeper takes a turn after each call, and every LOOK_SECONDS as long as messages are kept: the deletion, replacement
or overwriting of the file by another program is noticed within a second. Without messages the keeper sleeps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, RLock, Thread

from edged.core.health import Health, Status
from edged.core.metrics import LatencyHistogram
from edged.outbox.boot_clock import BootClock
from edged.outbox.disk_quota import FileLimits, make_room
from edged.outbox.disk_wear import DiskWear
from edged.outbox.options import SpoolOptions
from edged.outbox.residency import AT_FIRST, SOON, Residency
from edged.outbox.save_plan import Batch
from edged.outbox.segment_file import SET_ASIDE, FileContents, Listing, Segment, SegmentFile, SegmentFileError
from edged.outbox.spool_file import SpoolFile

log = logging.getLogger("edged.outbox")

RETRY_SECONDS = 5.0

LONGEST_REST = 600.0

HUNG_SECONDS = 5.0
"""Threads stop waiting for a disk after this time without an answer."""

LOOK_SECONDS = 1.0
"""Longest time between two turns of the keeper."""

_WEAR_EVERY = 600.0


class Keeper:
    """Keeps the file of a spool. The keeper's thread alone touches the disk and sets `status`.

    `lock` guards `residency`; a method says so if the caller must hold the lock.
    """

    def __init__(
        self,
        file: SpoolFile,
        residency: Residency,
        lock: RLock,
        options: SpoolOptions,
        *,
        status: Status,
        times: BootClock,
        clock: Callable[[], float],
    ) -> None:
        self.file = file
        self.wear = DiskWear(times.boot, clock, options.daily_bytes)
        self.commits = LatencyHistogram()
        self.has_looked = False  # messages of an earlier process are known, and stay ahead of new ones
        self.is_full = False
        self.file_bytes = 0
        self.late = 0
        self.next_commit = clock() + options.commit_seconds
        self._residency = residency
        self._lock = lock
        self._options = options
        self._status = status
        self._times = times
        self._clock = clock
        self._called = Condition(lock)
        self.turned = Condition(lock)
        self._thread = Thread(target=self._run, name="spool", daemon=True)
        self._ready: Callable[[], None] | None = None
        self._has_work = True
        self._is_asleep = False  # until a message is put
        self._is_closing = False
        self._has_failed = False
        self._is_new = False  # a new file was begun, and no turn has succeeded since
        self._unread = 0  # turns in a row without a readable file
        self._next_check = -math.inf
        self._busy_since = math.inf

    def start(self, ready: Callable[[], None]) -> None:
        """Start the thread; see Spool.start for `ready`."""
        self._ready = ready
        self._thread.start()

    def call(self) -> None:
        """Have the keeper take a turn soon."""
        with self._lock:
            self._has_work = True
            self._called.notify()

    def wake_if_idle(self) -> None:
        """Wake the keeper from its sleep without messages. With the lock held, as a message is put."""
        if self._is_asleep:
            self._is_asleep = False
            self._called.notify()

    def await_commit(self, entry_id: int) -> None:
        """Wait until a message is on disk, unless the disk is of no use now. With the lock held."""
        awaited = self._residency.awaited
        awaited.add(entry_id)
        self.call()

        def is_over() -> bool:
            ended = self._is_closing or not self._thread.is_alive()
            return entry_id not in awaited or self.memory_only or ended

        self.turned.wait_for(is_over, HUNG_SECONDS)
        if entry_id in awaited:
            awaited.discard(entry_id)
            self.late += 1

    def close(self, seconds: float) -> None:
        """Save all messages due at the end, and stop the thread; wait at most so many seconds."""
        with self._lock:
            self._is_closing = True
            self._called.notify()
            self.turned.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    @property
    def health(self) -> Health:
        """Health of the file; degraded as well while the disk hangs."""
        if self._is_hung:
            reason = f"the disk of {self.file.path} does not answer: messages are kept in memory only"
            return Health("degraded", reason, "look at dmesg, and replace the card", self._busy_since)
        return self._status.health

    @property
    def memory_only(self) -> bool:
        """True if no message gets to the disk now. Threads then do not wait for the disk."""
        return self._has_failed or self._is_hung or self.wear.is_spent

    @property
    def is_unreadable(self) -> bool:
        """True if messages on disk only cannot be read. Newer messages then do not wait for them."""
        return self._unread > 1 or self._is_hung

    @property
    def _is_hung(self) -> bool:
        return self._clock() - self._busy_since > HUNG_SECONDS

    @property
    def _is_idle(self) -> bool:
        return not self._residency.owes and self.has_looked and not self._has_failed and not self.wear.is_spent

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        closing = False
        while not closing or (self._is_new and self._clock() >= self.next_commit):
            with self._lock:
                if not self._is_closing:
                    self._is_asleep = self._is_idle
                    self._called.wait_for(lambda: not self._is_asleep or self._has_work or self._is_closing)
                    self._is_asleep = False
                    left = self.next_commit - self._clock()
                    pause = max(0.02, min(left, LOOK_SECONDS)) if left > 0 else LOOK_SECONDS
                    self._called.wait_for(lambda: self._has_work or self._is_closing, pause)
                closing = self._is_closing
                self._has_work = False
            self._take_turn(closing)
        if self.file.segments is not None:
            self.file.segments.close()

    def _take_turn(self, closing: bool) -> None:
        self._busy_since = self._clock()
        unread = self._unread + 1
        try:
            if self._has_failed and not closing and self._busy_since < self.next_commit:
                if self.file.segments is not None:  # an astray file can still be read
                    self._fetch(self.file.segments)
                return
            self._find_file(closing)
            if self._has_failed and self.file.segments is not None and not closing:
                with suppress(SegmentFileError):  # a full file can be read, an unreadable one perhaps written
                    self._fetch(self.file.segments)
                    unread = 0
            crowded = self._residency.is_crowded
            if closing or self._residency.awaited or crowded or self._clock() >= self.next_commit:
                self._commit(closing)
            if self._residency.is_crowded:
                with self._lock:
                    self._residency.shed()
            if self.file.segments is not None and not closing:
                self._fetch(self.file.segments)
                if not self.wear.is_spent:
                    self.file.segments.shrink()
                self.file_bytes = self.file.segments.used_bytes
            self._end_first_look()
            self._recover()
        except SegmentFileError as error:
            self._unread = unread
            self._fail(error)
        except Exception as error:
            self._unread = unread
            self._fail(_bug(error))
        finally:
            self._busy_since = math.inf
            self.wear.measure()
            with self._lock:
                self.turned.notify_all()

    def _recover(self) -> None:
        over = self.wear.is_spent
        with self._lock:
            self._has_failed = self._is_new = False
            self._unread = 0
        if over:
            reason = f"{self._options.daily_bytes} bytes were written today, the limit of daily_bytes"
            self._status.set("degraded", f"{reason}: messages wait in memory only", "raise daily_bytes in [spool]")
        else:
            self._status.set("running")

    def _fail(self, error: SegmentFileError) -> None:
        """Leave the file alone for a while; replace a damaged file."""
        self.file.close()
        with self._lock:
            self._has_failed = True
            self._busy_since = math.inf  # reading a whole file is slow, but no hang
            self.turned.notify_all()
        self._announce()  # messages of "always" may be sent from memory now
        self._degrade(error)
        pause = RETRY_SECONDS
        if error.doubtful and self._clock() >= self._next_check:
            begun = self._clock()
            if self.file.is_damaged():
                error = SegmentFileError(f"{self.file.path} is damaged", hint=SET_ASIDE, damaged=True)
                self._degrade(error)
            self._next_check = self._clock() + _rest(self._clock() - begun)
        if error.damaged or error.other:
            begun = self._clock()
            try:
                self._replace_file(error)
                pause = RETRY_SECONDS if self._is_new else 0
                self._is_new = True
            except SegmentFileError as worse:
                self._degrade(worse)
            except Exception as worse:
                self._degrade(_bug(worse))
            if pause:
                pause = _rest(self._clock() - begun)
                self._unread += 1  # nor can the file be read for a while
        with self._lock:
            self.next_commit = self._clock() + pause
            self._has_work = self._has_work or not pause

    def _degrade(self, error: SegmentFileError) -> None:
        self._status.set("degraded", f"{error.message}: messages are kept in memory only", error.hint)

    def _announce(self) -> None:
        if self._ready is not None:
            self._ready()

    # -- the file ----------------------------------------------------------------------------------------------------

    def _find_file(self, closing: bool) -> None:
        """Open the file if messages are to be read from the disk, and handle changes by other programs."""
        if self.file.segments is None:
            if self.has_looked:
                with self._lock:
                    on_disk = self._residency.backlog.on_disk
                wanted = on_disk > 0 or self.file.is_another
            else:
                wanted = self.file.was_left_behind()
            if wanted:
                self._open()
        elif self.file.was_moved:
            self._degrade(self.file.moved_error)
            found = self.file.return_to_place()
            if found is not None:
                self._adopt(found)
            with self._lock:
                depth = self._residency.backlog.depth
            log.warning("%s; %d messages were saved at its path again", self.file.moved_error, depth)
        else:
            self.file.is_astray = False  # the file may have been moved back
            if closing and not self.file.segments.is_untouched:  # no other turn follows an examination
                self.file.close()
                self._open()
            elif self._clock() >= self._next_check:
                self.file.check_unchanged()

    def _open(self) -> SegmentFile:
        """Open the file, and drop from the residency all segments no longer in the file."""
        another = self.file.is_another
        segments = self.file.open()
        if another:
            found = segments.contents()
            log.warning("%s was deleted or replaced while unusable", self.file.path)
            with self._lock:
                self._residency.keep_only(Listing({}, set()))
            self._adopt(found)
        elif not self.has_looked:
            found = segments.contents()
            self.wear.take_over(segments.read_wear())
            self._adopt(found)  # last, as a failed turn opens the file again
            self._end_first_look()
        else:
            listing = segments.listing()
            with self._lock:
                lost = self._residency.keep_only(listing)
            if lost:
                log.warning("%s lacks %d messages saved earlier: they are lost", self.file.path, lost)
        return segments

    def _adopt(self, found: FileContents) -> None:
        """Take over messages of an earlier process; segments of the current process get higher keys."""
        parked = [self._times.translate(segment) for segment in found.parked]
        with self._lock:
            if self.has_looked:
                self._residency.shift_keys(found.last_key)
            self._residency.adopt(found._replace(parked=parked))

    def _end_first_look(self) -> None:
        if not self.has_looked:
            self.has_looked = True
            self._announce()

    def _replace_file(self, error: SegmentFileError) -> None:
        with self._lock:
            obsolete = self._residency.obsolete
        saved = self.file.replace(error, obsolete)
        with self._lock:
            if self.has_looked:
                self._residency.keep_only(saved)

    def _commit(self, closing: bool) -> None:
        """Save the messages that are due."""
        if self.wear.is_spent and not closing:
            return
        if self.file.segments is None:
            self.is_full = False
            with self._lock:
                if not self._residency.due(self._clock(), closing=closing) and not self._residency.obsolete:
                    return
            self.next_commit = self._clock() + self._options.commit_seconds
            self._open()
        assert self.file.segments is not None
        self.is_full = self.file.segments.used_bytes > self._options.bytes
        with self._lock:
            if (self.is_full or self._residency.excess > 0) and not self._has_failed:
                self._residency.shed()
            now, seconds = self._clock(), self._options.seconds
            batches, obsolete = self._residency.due(now, closing=closing), self._residency.obsolete
            oldest = now - seconds if seconds > 0 and self._residency.backlog.on_disk > 0 else None
            if not batches and not obsolete and oldest is None:
                return
            self._residency.begin_save()
            limits = FileLimits(self._options.bytes, self._residency.excess, self._times.boot, oldest)
        self.next_commit = self._clock() + self._options.commit_seconds
        try:
            begun = self._clock()
            self._write(self.file.segments, batches, obsolete, limits, closing)
            self.commits.add(self._clock() - begun)
        except BaseException:
            with self._lock:
                self._residency.fail_save(batches)
            raise
        self._announce()

    def _write(
        self, file: SegmentFile, batches: list[Batch], obsolete: set[int], limits: FileLimits, closing: bool
    ) -> None:
        with self._lock:
            in_use = {*self._residency.in_use, *(batch.key for batch in batches)}
            on_disk = {origin: queue.on_disk for origin, queue in self._residency.backlog.queues.items()}
        sizes = []
        with file.transaction():
            file.remove(obsolete)
            removed = make_room(file, limits, self._residency.backlog.policy, on_disk, in_use)
            for batch in batches:
                reason = batch.parked.reason if batch.parked else None
                segment = Segment(batch.key, batch.origin, self._times.stamp(), batch.messages, reason=reason)
                sizes.append(file.put(segment))
            if closing or self.wear.unsaved_for > _WEAR_EVERY:
                file.write_wear(self.wear.save())
        with self._lock:
            self._residency.finish_save(batches, sizes, obsolete, removed)

    def _fetch(self, file: SegmentFile) -> None:
        """Read the messages to be sent soon."""
        newest = self._options.drain == "newest"
        while True:
            with self._lock:
                connected = self._residency.backlog.connected
                origin = self._residency.hungriest(SOON if connected else AT_FIRST)
                in_use = self._residency.in_use
            if origin is None:
                return
            found = file.next(origin, in_use, newest=newest)
            if found is None:
                with self._lock:
                    lost = self._residency.lose(origin)
                log.warning("%s lacks %d messages of %s saved earlier: they are lost", self.file.path, lost, origin)
                continue
            key, number = found
            segment = file.read(key)
            if segment is None:
                log.warning("%s: %d messages of %s cannot be read, and are lost", self.file.path, number, origin)
            else:
                segment = self._times.translate(segment)
            with self._lock:
                self._residency.fetched(origin, key, number, segment)
            self._announce()


def _bug(error: Exception) -> SegmentFileError:
    """Return an error for a bug: the thread must go on, and damage of the file may have brought the bug about."""
    log.error("the spool's keeper failed", exc_info=error)
    return SegmentFileError(f"{type(error).__name__}: {error}", hint="report this", doubtful=True)


def _rest(seconds: float) -> float:
    """Return the time to leave a disk alone after a file was read, and perhaps written, in vain for so long."""
    return min(max(RETRY_SECONDS, 100 * seconds), LONGEST_REST)
