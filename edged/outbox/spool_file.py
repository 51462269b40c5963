"""The file at a spool's path: opened, restored after changes by other programs, replaced after damage.

The file may be deleted, replaced or overwritten while open: by `rm`, by a backup put in the folder's place, or by a
copy onto the file. An open file without a name is lost with the process, so its segments are copied to a new file at
the path. A file overwritten in place may be damaged or another spool: the file is closed and examined.
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
    """The segment file at `path`. Used by the keeper's thread; other threads may read the attributes.

    `segments` is the open file, if any. `is_astray`: the open file is not at the path, and copying it there has failed.
    Methods raise SegmentFileError.
    """

    def __init__(self, path: Path, connect: Connect) -> None:
        self.path = path
        self.segments: SegmentFile | None = None
        self.is_astray = False
        self.set_aside: tuple[SetAsideFile, ...] = ()
        self._connect = connect
        self._place: Place | None = None  # of the file opened last

    @property
    def is_another(self) -> bool:
        """True if the file opened last, now closed, has been replaced or deleted at the path."""
        return self._place is not None and place(self.path) != self._place

    def was_left_behind(self) -> bool:
        """Return True if an earlier process has left a file."""
        return salvage.finish_replacement(self.path)

    def open(self) -> SegmentFile:
        """Open or create the file."""
        self.segments = SegmentFile(self.path, self._connect)
        self._place = self.segments.place
        return self.segments

    def close(self) -> None:
        """Close the file, but keep an astray file open: its messages are in no other file."""
        if self.segments is not None and not self.is_astray:
            self.segments.close()
            self.segments = None

    def check_unchanged(self) -> None:
        """Raise SegmentFileError if another program has written to the open file."""
        if self.segments is not None and not self.segments.is_untouched:
            message = f"{self.path} was changed by another program while in use"
            log.warning("%s: the file is examined, and its legible messages are kept", message)
            raise SegmentFileError(message, hint=_LEAVE_ALONE, doubtful=True)

    def is_damaged(self) -> bool:
        """Read the whole file, closed by now, and return True if damaged."""
        return is_damaged(self.path, self._connect)

    def replace(self, error: SegmentFileError, without: Collection[int]) -> Listing:
        """Set the file aside, and start a new one with its segments except `without`. Return the segments saved."""
        if error.other:
            aside, saved = salvage.set_aside(self.path, "other"), Listing({}, set())
        else:
            aside, saved = salvage.replace(self.path, self._connect, without)
        log.error("%s; the file is now %s, and %d of its messages were saved", error.message, aside, saved.messages)
        self.set_aside = (*self.set_aside, SetAsideFile(str(aside), saved.messages))[-salvage.KEEP_ASIDE :]
        self._place = None
        return saved

    @property
    def was_moved(self) -> bool:
        """True if the open file is no longer at its path."""
        return self.segments is not None and not self.segments.is_in_place

    def return_to_place(self) -> FileContents | None:
        """Restore all segments of the open file at the path.

        Return the contents of the other file found at the path, after adding the segments with higher keys; None if
        only the log of the file itself was deleted.
        """
        old = self.segments
        assert old is not None
        self.is_astray = True
        try:
            if old.place is not None and place(self.path) == old.place:
                found = None
                old.checkpoint()
                old.close()
                new = SegmentFile(self.path, self._connect)
            else:
                new, found = self._copy(old)
                old.close()
        except SegmentFileError as failure:  # any damage is in the file at the path, not in the open one
            message = f"{self.moved_error.message}, and {failure.message}"
            raise SegmentFileError(message, hint=failure.hint) from failure
        self.segments, self._place = new, new.place
        self.is_astray = False
        return found

    @property
    def moved_error(self) -> SegmentFileError:
        """Error for a file deleted or replaced by another program."""
        return SegmentFileError(f"{self.path} was deleted or replaced while in use", hint=_LEAVE_ALONE)

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
