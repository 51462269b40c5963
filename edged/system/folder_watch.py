"""Notification of names made, deleted or replaced in folders, and of files written, without polling: inotify(7)."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Mapping
from pathlib import Path

_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
_EVENTS = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_CLOSE_WRITE, _UNMOUNT, _OVERFLOW, _IGNORED, _ONLY_A_FOLDER = 0x8, 0x2000, 0x4000, 0x8000, 0x1000000
_HEAD = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, and the length of the following name


class FolderWatch:
    """Watch of folders. `descriptor` becomes readable at an event; -1 if the kernel has no descriptors left."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self.descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watches: dict[int, str] = {}

    def follow(self, folders: Mapping[Path, str]) -> None:
        """Watch these folders and no others, each for a name in it, or for any name if "".

        A missing folder is ignored: watch the parent folder as well.
        """
        watches = {self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), _EVENTS): path for path in folders}
        for watch in self._watches.keys() - watches.keys():
            self._libc.inotify_rm_watch(self.descriptor, watch)
        self._watches = {watch: folders[path] for watch, path in watches.items() if watch >= 0}

    def take(self) -> bool:
        """Read the events, and return whether a watched name is affected."""
        found = False
        try:
            while data := os.read(self.descriptor, 65536):
                found = any(self._concerns(watch, name) for watch, _, name in _events(data)) or found
        except BlockingIOError:
            return found
        return found

    def close(self) -> None:
        """Let go of the descriptor. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _concerns(self, watch: int, name: str) -> bool:
        """Return whether an event matters. Events of the folder itself have no name, and an overflow has no watch."""
        return self._watches.get(watch, "") in ("", name) or not name


class FinishedFiles:
    """Watch of a folder for files that are whole: closed after writing, or renamed into the folder.

    `missed` counts the times that the kernel has dropped events.
    """

    def __init__(self, folder: Path) -> None:
        """Raise OSError if the folder cannot be watched."""
        self.missed = 0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        events = _CLOSE_WRITE | _MOVED_TO | _DELETE_SELF | _MOVE_SELF | _ONLY_A_FOLDER
        try:
            self._checked(self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), events))
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # a watch takes no right to list
        except OSError:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def wait(self, seconds: float) -> None:
        """Wait for events."""
        self._poll.poll(max(0.0, seconds) * 1000)

    def take(self) -> list[str]:
        """Return the names of files that have become whole. Raises OSError if the folder is gone."""
        names: list[str] = []
        try:
            while data := os.read(self._descriptor, 65536):
                for _, mask, name in _events(data):
                    if mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED):
                        raise FileNotFoundError(errno.ENOENT, "the folder has been deleted or moved")
                    self.missed += bool(mask & _OVERFLOW)
                    names += [name] if name else []
        except BlockingIOError:
            return names
        return names

    def close(self) -> None:
        """Let go of the descriptor. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _checked(self, result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result


def _events(data: bytes) -> list[tuple[int, int, str]]:
    """Return the watch, the mask and the name of each event."""
    events, place = [], 0
    while place < len(data):
        watch, mask, _, length = _HEAD.unpack_from(data, place)
        name = data[place + _HEAD.size : place + _HEAD.size + length].rstrip(b"\0")
        events.append((watch, mask, os.fsdecode(name)))
        place += _HEAD.size + length
    return events
