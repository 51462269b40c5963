"""The lock on the state folder: one program at a time writes there.

flock(2) is taken on the folder itself: nothing that is deleted from it lets go of the lock, and the kernel does so when
the process ends, however it ends. `holder.json` in the folder says who has it, and is read only for the error message.
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
    """A program that has a state folder; a daemon has a runtime folder, by which it is reached."""

    program: str
    pid: int
    runtime_dir: str = ""

    def __str__(self) -> str:
        reached = f", runtime folder {self.runtime_dir}" if self.runtime_dir else ""
        return f"{self.program} (process {self.pid}{reached})"


class StateLock:
    """Holds the lock from `take` to `release`, or as a context manager."""

    def __init__(self, folder: Path, program: str, runtime_dir: Path | str = "", *, hint: str) -> None:
        """`hint` is the remedy where another program has the folder."""
        self.folder = folder
        self._holder = Holder(program, os.getpid(), str(runtime_dir))
        self._hint = hint
        self._descriptor = -1

    def take(self) -> None:
        """Lock the folder, which is made if need be. Does nothing where this has it already.

        A folder that is not there and cannot be made, or is not this user's to read, is not locked: there is nothing
        in it that this process could read or spoil.

        Raises:
            StoreError: another program has it.
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
        with suppress(OSError):  # a folder that is read-only or full can be locked all the same
            _write(descriptor, self._holder)

    def release(self) -> None:
        """Let go of it. May be called twice."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.unlink(HOLDER, dir_fd=self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_held(self) -> bool:
        """Whether the folder at the path is the one that this has locked."""
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
    """Replace what an earlier holder, perhaps another user's, has left; follows no link."""
    with suppress(FileNotFoundError):
        os.unlink(HOLDER, dir_fd=folder)
    descriptor = os.open(HOLDER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(holder))
