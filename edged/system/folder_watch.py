"""Notification of names made, deleted or replaced in folders, without polling: inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from pathlib import Path

_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
_EVENTS = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
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
                found = any(self._concerns(*event) for event in _events(data)) or found
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


def _events(data: bytes) -> list[tuple[int, str]]:
    """The watch and the name of each event."""
    events, place = [], 0
    while place < len(data):
        watch, _, _, length = _HEAD.unpack_from(data, place)
        name = data[place + _HEAD.size : place + _HEAD.size + length].rstrip(b"\0")
        events.append((watch, os.fsdecode(name)))
        place += _HEAD.size + length
    return events
