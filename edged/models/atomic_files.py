"""Files of models on disk, safe against a power cut at any moment: a file is complete or absent.

`Disk` orders effects and makes them durable; `Effects` are the single effects, after each of which the power may be
cut. A file is written aside, synced, renamed into place, and the folder is synced; no file is changed in place. A
failed sync means that the file is lost, since the kernel may have dropped the data: the error is reported, and the sync
is never repeated on the same data.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from edged.core.errors import StoreError
from edged.system.disk_space import room_hint

ASIDE = ".aside"
"""Suffix of files that are not yet in place."""


class Effects(Protocol):
    """Single effects on a disk. Every method raises OSError."""

    def make_folder(self, path: Path) -> None:
        """Make a folder."""

    def write(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Write a whole file, in place of an existing file."""

    def link(self, path: Path, to: str) -> None:
        """Make a symbolic link."""

    def sync_file(self, path: Path) -> None:
        """Have the content of a file survive a power cut."""

    def sync_folder(self, path: Path) -> None:
        """Have the names in a folder survive a power cut."""

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file or folder, in place of an existing one."""

    def remove_file(self, path: Path) -> None:
        """Remove a file or a link."""

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""


class Kernel:
    """The effects, on a real disk."""

    def make_folder(self, path: Path) -> None:
        """Make a folder."""
        path.mkdir(mode=0o700)

    def write(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Write a whole file, in place of an existing file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.writelines(pieces)

    def link(self, path: Path, to: str) -> None:
        """Make a symbolic link."""
        path.symlink_to(to)

    def sync_file(self, path: Path) -> None:
        """Have the content of a file survive a power cut."""
        _sync(path, os.O_RDONLY | os.O_NOFOLLOW)

    def sync_folder(self, path: Path) -> None:
        """Have the names in a folder survive a power cut."""
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)  # the state folder itself may be a link

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file or folder, in place of an existing one."""
        path.rename(to)

    def remove_file(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


class Disk:
    """Durable operations made of effects. Every method raises StoreError with the remedy; on return the result is
    durable.
    """

    def __init__(self, effects: Effects | None = None) -> None:
        self._effects: Effects = effects or Kernel()

    def make_folder(self, folder: Path) -> None:
        """Make a folder and its missing parents."""
        with _explained(folder):
            for path in (*reversed(folder.parents), folder):
                if not path.is_dir():
                    self._effects.make_folder(path)
                    self._effects.sync_folder(path.parent)

    def write(self, file: Path, pieces: Iterable[bytes]) -> None:
        """Make a file of these pieces in an unused place. The name is durable once the folder is synced."""
        with _explained(file):
            self._effects.write(file, pieces)
            self._effects.sync_file(file)

    def replace(self, file: Path, data: bytes) -> None:
        """Write a file, in place of an existing file."""
        aside = file.with_name(file.name + ASIDE)
        self.write(aside, [data])
        with _explained(file):
            self._effects.rename(aside, file)
            self._effects.sync_folder(file.parent)

    def point(self, link: Path, to: str | None) -> None:
        """Change the target of a link; None removes the link."""
        aside = link.with_name(link.name + ASIDE)
        with _explained(link):
            if to is None:
                self._remove(link)
            else:
                self._remove(aside)
                self._effects.link(aside, to)
                self._effects.rename(aside, link)
            self._effects.sync_folder(link.parent)

    def place(self, folder: Path, to: Path) -> None:
        """Move a folder with durable content to an unused place."""
        with _explained(to):
            self._effects.rename(folder, to)
            self._effects.sync_folder(to.parent)
            self._effects.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        """Make the entries of a folder durable."""
        with _explained(folder):
            self._effects.sync_folder(folder)

    def remove(self, path: Path) -> None:
        """Remove a file, a link, or a folder with its content, if present."""
        with _explained(path):
            if self._remove(path):
                self._effects.sync_folder(path.parent)

    def _remove(self, path: Path) -> bool:
        """Remove a path, and return whether the path existed."""
        try:
            is_folder = stat.S_ISDIR(path.lstat().st_mode)
        except FileNotFoundError:
            return False
        if not is_folder:
            self._effects.remove_file(path)
            return True
        for each in sorted(path.iterdir()):
            self._remove(each)
        self._effects.remove_folder(path)
        return True


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError) -> StoreError:
    """Return the error for an OSError of the disk, with the remedy."""
    hint = _REMEDIES.get(error.errno or 0, "check that the folder is there and that edged may write to it")
    if error.errno == errno.ENOSPC:
        hint = room_hint(path, hint)
    return StoreError(f"{path}: {error.strerror or error}", hint=hint, retryable=error.errno in _PASSING)


_FULL = "free some space on this disk; `edgectl models` shows what versions take"
_FAILING = "the disk or card may be failing: look at `dmesg`, and replace it"
_READ_ONLY = "the file system is read-only: `mount` shows it, and `dmesg` why; a failing card turns so by itself"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: _FAILING,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: "give the state folder to the user that edged runs as",
    errno.EPERM: "give the state folder to the user that edged runs as",
}
_PASSING = (errno.ENOSPC, errno.EDQUOT)
