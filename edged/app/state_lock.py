"""The lock on the state folder: one program at a time writes there.

flock(2) locks the folder itself: deleting files from the folder does not release the lock, but every end of the process
does. `holder.json` in the folder names the program with the lock, for the error message.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from edged.core.errors import StoreError
from edged.models.atomic_files import Disk

log = logging.getLogger("edged")

HOLDER = "holder.json"
_MAX_HOLDER_BYTES = 4096


class Holder(msgspec.Struct, frozen=True):
    """A program with a lock. A daemon is reached through its runtime folder."""

    program: str
    pid: int
    runtime_dir: str = ""

    def __str__(self) -> str:
        reached = f", runtime folder {self.runtime_dir}" if self.runtime_dir else ""
        return f"{self.program} (process {self.pid}{reached})"


class StateLock:
    """A lock, held from `take` to `release`, or as a context manager."""

    def __init__(self, folder: Path, program: str, runtime_dir: Path | str = "", *, hint: str) -> None:
        """Prepare a lock; `hint` is the remedy in the error if another program has locked the folder."""
        self.folder = folder
        self._holder = Holder(program, os.getpid(), str(runtime_dir))
        self._hint = hint
        self._descriptor = -1

    def take(self) -> None:
        """Make the folder if it is missing, and lock it. Does nothing if this lock is already held.

        A folder that this user cannot make or read is not locked: this process cannot damage its files either.

        Raises:
            StoreError: another program has locked the folder.
        """
        if self._is_held():
            return
        self.release()
        descriptor = self._open()
        if descriptor < 0:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            other = _read(self.folder) or "another program"
            raise StoreError(f"the state folder {self.folder} is in use by {other}", hint=self._hint) from None
        except OSError as error:  # a file system without locks
            log.warning("the state folder %s cannot be locked: %s", self.folder, error.strerror)
        self._descriptor = descriptor
        with suppress(OSError):  # the lock works on a read-only or full disk too
            _write(descriptor, self._holder)

    def release(self) -> None:
        """Release the lock. May be called twice."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.unlink(HOLDER, dir_fd=self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_held(self) -> bool:
        """Return whether the folder at the path is the locked folder, not a later replacement."""
        try:
            return self._descriptor >= 0 and os.path.samestat(os.fstat(self._descriptor), self.folder.stat())
        except OSError:
            return False

    def _open(self) -> int:
        try:
            Disk().make_folder(self.folder)
            return os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (StoreError, OSError) as error:
            log.warning("the state folder %s cannot be used: %s", self.folder, error)
            return -1

    def __enter__(self) -> StateLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _read(folder: Path) -> Holder | None:
    try:
        with (folder / HOLDER).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_HOLDER_BYTES), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return None


def _write(folder: int, holder: Holder) -> None:
    """Replace the file of an earlier holder, perhaps of another user. Follows no link."""
    with suppress(FileNotFoundError):
        os.unlink(HOLDER, dir_fd=folder)
    descriptor = os.open(HOLDER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(holder))
