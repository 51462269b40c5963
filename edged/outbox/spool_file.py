"""The file at a spool's path: opened, missed when another program moves or changes it, and replaced when damaged.

The file may be deleted, replaced or overwritten while it is open, by `rm`, by a backup put in the folder's place, or by
a copy onto it. A file that is open without a name is lost when the process ends, so its segments are copied to a new
file at the path. A file that was written to may be damaged or another spool; it is closed and examined.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from edged.outbox import salvage
from edged.outbox.segment_file import (
    Connect,
    FileContents,
    Listing,
    Place,
    SegmentFile,
    SegmentFileError,
    is_damaged,
    place,
)
from edged.outbox.spool import SetAsideFile

log = logging.getLogger("edged.outbox")

_LEAVE_ALONE = "stop edged before its state folder is changed, deleted or restored"


class SpoolFile:
    """The segment file at `path`. Used by the keeper's thread; others may read its attributes.

    `segments` is the open file, if any. `is_astray`: that file is not at the path, and could not be copied there yet.
    Methods raise SegmentFileError.
    """

    def __init__(self, path: Path, connect: Connect) -> None:
        self.path = path
        self.segments: SegmentFile | None = None
        self.is_astray = False
        self.set_aside: tuple[SetAsideFile, ...] = ()
        self._connect = connect
        self._place: Place | None = None  # of the file that was opened last

    @property
    def is_another(self) -> bool:
        """Whether the file opened last, now closed, is no longer the one at the path."""
        return self._place is not None and place(self.path) != self._place

    def was_left_behind(self) -> bool:
        """Return whether an earlier process has left a file."""
        return salvage.is_there(self.path)

    def open(self) -> SegmentFile:
        """Open or create the file."""
        self.segments = SegmentFile(self.path, self._connect)
        self._place = self.segments.place
        return self.segments

    def close(self) -> None:
        """Close the file, unless it is astray: then no other file has its messages."""
        if self.segments is not None and not self.is_astray:
            self.segments.close()
            self.segments = None

    def check_unchanged(self) -> None:
        """Raise SegmentFileError if another program has written to the open file."""
        if self.segments is not None and not self.segments.is_untouched:
            message = f"{self.path} was changed by another program while it was in use"
            log.warning("%s: it is examined, and what can be read of it is kept", message)
            raise SegmentFileError(message, hint=_LEAVE_ALONE, doubtful=True)

    def is_damaged(self) -> bool:
        """Read the whole file, which must be closed, and return whether it is damaged."""
        return is_damaged(self.path, self._connect)

    def begin_anew(self, error: SegmentFileError, without: Collection[int]) -> Listing:
        """Set the file aside, and begin a new one with its segments but for these keys. Return those saved."""
        if error.other:
            aside, saved = salvage.set_aside(self.path, "other"), Listing({}, set())
        else:
            aside, saved = salvage.replace(self.path, self._connect, without)
        log.error("%s; it is now %s, and %d messages of it were saved", error.message, aside, saved.messages)
        self.set_aside = (*self.set_aside, SetAsideFile(str(aside), saved.messages))[-salvage.KEEP_ASIDE :]
        self._place = None
        return saved

    @property
    def was_moved(self) -> bool:
        """Whether the open file is not at its path any more."""
        return self.segments is not None and not self.segments.is_in_place

    def return_to_place(self) -> FileContents | None:
        """Have all segments of the open file at the path again.

        Return the contents of another file that is there, to which they were added with keys beyond its last; None if
        the file itself is still there, and only its log was deleted.
        """
        old = self.segments
        assert old is not None
        self.is_astray = True
        try:
            if old.place is not None and place(self.path) == old.place:
                found = None
                old.settle()
                old.close()
                new = SegmentFile(self.path, self._connect)
            else:
                new, found = self._copy(old)
                old.close()
        except SegmentFileError as failure:  # the file at the path may be at fault, but this one is not damaged
            message = f"{self.moved_error.message}, and {failure.message}"
            raise SegmentFileError(message, hint=failure.hint) from failure
        self.segments, self._place = new, new.place
        self.is_astray = False
        return found

    @property
    def moved_error(self) -> SegmentFileError:
        """Error that says what another program did to the file at the path."""
        return SegmentFileError(f"{self.path} was deleted or replaced while it was in use", hint=_LEAVE_ALONE)

    def _copy(self, old: SegmentFile) -> tuple[SegmentFile, FileContents]:
        """Add all segments of the open file to the file at the path."""
        old.withdraw_log()
        try:
            new = SegmentFile(self.path, self._connect)
        except SegmentFileError as error:
            if not (error.damaged or error.other):
                raise
            salvage.set_aside(self.path, "other")
            new = SegmentFile(self.path, self._connect)
        try:
            found = new.contents()
            new.take_over(old, found.last_key)
        except BaseException:
            new.close()
            raise
        return new, found
