"""How models are kept so that a power cut at any moment costs nothing: what is there is whole, or is not there.

`Disk` knows the order in which things are done and made durable; `Effects` are the single effects it is done with,
each of which the power may cut off from the next. A file is written aside, synced, renamed into place, and its folder
is synced; nothing is ever changed in place. A sync that fails means that the file is lost, as the kernel may have
dropped what it held: it is reported, and never tried again on what was written.
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
"""What the names of files end in that are not in their place yet."""


class Effects(Protocol):
    """What is done to a disk, one thing at a time. Everything raises OSError."""

    def make_folder(self, path: Path) -> None:
        """Make a folder."""

    def write(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Write a whole file, instead of what is there."""

    def link(self, path: Path, to: str) -> None:
        """Make a symbolic link."""

    def sync_file(self, path: Path) -> None:
        """Have the content of a file survive a power cut."""

    def sync_folder(self, path: Path) -> None:
        """Have the names in a folder survive a power cut."""

    def rename(self, path: Path, to: Path) -> None:
        """Put one thing in the place of another."""

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
        """Write a whole file, instead of what is there."""
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
        """Put one thing in the place of another."""
        path.rename(to)

    def remove_file(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


class Disk:
    """What the effects add up to. Everything raises StoreError with the remedy; what has returned is durable."""

    def __init__(self, effects: Effects | None = None) -> None:
        self._effects: Effects = effects or Kernel()

    def make_folder(self, folder: Path) -> None:
        """Make a folder, and those it is in, where they are not there yet."""
        with _explained(folder):
            for path in (*reversed(folder.parents), folder):
                if not path.is_dir():
                    self._effects.make_folder(path)
                    self._effects.sync_folder(path.parent)

    def write(self, file: Path, pieces: Iterable[bytes]) -> None:
        """Make a file of these pieces, where no one looks for it yet. Its name is durable once its folder is synced."""
        with _explained(file):
            self._effects.write(file, pieces)
            self._effects.sync_file(file)

    def replace(self, file: Path, data: bytes) -> None:
        """Put a file in its place, instead of what is there."""
        aside = file.with_name(file.name + ASIDE)
        self.write(aside, [data])
        with _explained(file):
            self._effects.rename(aside, file)
            self._effects.sync_folder(file.parent)

    def point(self, link: Path, to: str | None) -> None:
        """Have a link lead elsewhere; None removes it."""
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
        """Put a folder, whose content is durable, in its place, where nothing may be."""
        with _explained(to):
            self._effects.rename(folder, to)
            self._effects.sync_folder(to.parent)
            self._effects.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        """Make sure that what was made in a folder stays there."""
        with _explained(folder):
            self._effects.sync_folder(folder)

    def remove(self, path: Path) -> None:
        """Remove a file, a link, or a folder with all that is in it; nothing there is as good."""
        with _explained(path):
            if self._remove(path):
                self._effects.sync_folder(path.parent)

    def _remove(self, path: Path) -> bool:
        """Whether there was anything."""
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
    """What the disk's error means, and what to do about it."""
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
