"""Read pictures from a folder: new files of other programs, or present files, played in place of a camera.

`Inbox` waits for whole files, and `Album` plays the present files. Both leave decoding to the reader.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from edged.api import Chunk, ConfigError, DeviceError, Source, SourceConfig, SourceInfo
from edged.core.source_health import DROPPED
from edged.pictures.encoded import MAX_BYTES, SUFFIXES, EncodedPicture
from edged.pictures.pillow import require_pillow
from edged.system.folder_watch import FinishedFiles

MAX_FILES = 100_000
"""Maximum number of files to play, or to wait."""

REST_SECONDS = 2.0
"""Time without a change after which a file from before the watch counts as whole."""

_WILD = frozenset("*?")


class ImagesSource(SourceConfig, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "images": pictures in a folder. Reading takes Pillow: `edged[image]`.

    A program on this board puts pictures into the folder: an FTP server for cameras, a motion detector, a cron job. A
    file is taken once whole: closed after writing, or renamed into the folder. Files written by another computer into a
    network share mounted on this board go unnoticed.

    Keys:
        path: A folder, or a folder with a pattern for the names of files, such as "/srv/yard/*.jpg". Default pattern:
            all names ending in .jpg, .jpeg, .png, .bmp, .gif or .webp. Names beginning with a dot are passed over.
        play: Pictures to take. "new": pictures arriving while the daemon runs, also in place of a file of the same
            name. "once": pictures in the folder; then the source ends, as a recording does. "repeat": pictures in the
            folder, again and again.
        order: Order of present pictures: by "name", or by "time" of the last change.
        rate (Hz): Most pictures a second. With "new", the newest picture is taken and older ones are dropped; otherwise
            the pictures are played at this rate, as by a camera. Default: as fast as the models take pictures, dropping
            none.
        delete: With play = "new", delete each file after taking the picture. Files present at the start were not taken
            yet, and come first.
    """

    path: Path
    play: Literal["new", "once", "repeat"] = "new"
    order: Literal["name", "time"] = "name"
    rate: Annotated[float, Meta(gt=0, le=1000)] | None = None
    delete: bool = False

    def describe(self) -> SourceInfo:
        """Describe the pictures from the options."""
        if self.delete and self.play != "new":
            raise ConfigError(f'delete means nothing with play = "{self.play}"', hint="leave delete out")
        if _WILD.intersection(str(self.path.parent)):
            raise ConfigError(
                f"the pattern {self.path} names several folders", hint="use * and ? in the names of files only"
            )
        is_new = self.play == "new"
        return SourceInfo(
            shape=(),
            rate=None if is_new else self.rate,
            patient=self.rate is None,
            pictures=True,
            eventful=is_new,
        )

    def open(self) -> Source:
        """Open the folder."""
        require_pillow()
        folder = Folder(self.path, self.order)
        if self.play == "new":
            return Inbox(folder, self.rate, delete=self.delete)
        return Album(folder, self.rate, repeat=self.play == "repeat")


class Folder:
    """Pictures of a folder by the names of the files, and the counts of refused files."""

    def __init__(self, path: Path, order: str) -> None:
        is_pattern = bool(_WILD.intersection(path.name)) or (path.suffix.lower() in SUFFIXES and not path.is_dir())
        self.path = path.parent if is_pattern else path
        self.faults: dict[str, int] = {}
        self.refused = ""
        self._pattern = path.name if is_pattern else ""
        self._order = order

    def has(self, name: str) -> bool:
        """Return True for the name of a picture to take."""
        if name.startswith("."):
            return False
        if not self._pattern:
            return name.lower().endswith(SUFFIXES)
        return name == self._pattern or fnmatchcase(name, self._pattern)

    def names(self) -> list[str]:
        """Return the names of the files to take, in order. Raises DeviceError."""
        try:
            found = [file.name for file in self.path.iterdir() if self.has(file.name)]
        except OSError as error:
            raise inaccessible(self.path, error) from error
        return sorted(found, key=self._changed if self._order == "time" else None)[:MAX_FILES]

    def picture(self, name: str, at: float, *, anew: bool = False) -> Chunk | None:
        """Return the picture in a file; None for an unreadable file, which is a fault."""
        try:
            data = _content(self.path / name)
        except OSError as error:
            self.count("unreadable files", refused=f"{name}: {error.strerror}")
            return None
        return Chunk(np.frombuffer(data, np.uint8).reshape(1, -1), at, anew=anew, picture=EncodedPicture(data))

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return numbers of a file, changed by writing or replacing; () for a missing file."""
        try:
            found = (self.path / name).stat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def delete(self, name: str) -> None:
        """Delete a file. Raises DeviceError."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except IsADirectoryError:  # dropped unseen, and none of the pictures to delete
            pass
        except OSError as error:
            raise _undeletable(self.path) from error

    def count(self, reason: str, times: int = 1, *, refused: str = "") -> None:
        """Count faults, with the last file refused."""
        self.faults[reason] = self.faults.get(reason, 0) + times
        self.refused = refused or self.refused

    def _changed(self, name: str) -> tuple[int, str]:
        return (*self.stamp(name)[2:], 0)[0], name


class Inbox:
    """Pictures arriving in a folder."""

    def __init__(
        self, folder: Folder, rate: float | None, *, delete: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to watch the folder. Raises DeviceError."""
        if delete and not os.access(folder.path, os.W_OK | os.X_OK) and folder.path.is_dir():
            raise _undeletable(folder.path)
        try:
            self._watch = FinishedFiles(folder.path)
        except OSError as error:
            raise inaccessible(folder.path, error) from error
        self._folder = folder
        self._period = 1 / rate if rate else 0.0
        self._deletes = delete
        self._clock = clock
        self._due = clock()
        self._rest_at = clock() + REST_SECONDS
        self._resting = {name: folder.stamp(name) for name in folder.names()} if delete else {}
        self._waiting: dict[str, None] = {}  # names in order of arrival; a name arriving again moves to the end
        self._taken: tuple[str, tuple[int, ...]] = "", ()

    @property
    def faults(self) -> dict[str, int]:
        """Return the numbers of dropped and refused files, by reason."""
        return self._folder.faults

    @property
    def refused(self) -> str:
        """Return the last file refused."""
        return self._folder.refused

    def read(self, timeout: float) -> Chunk | None:
        """Return the next picture; with a rate the newest, when due. Raises DeviceError if the folder is gone."""
        self._finish()
        until = self._clock() + timeout
        while True:
            self._collect()
            now = self._clock()
            if self._waiting and now >= self._due:
                if chunk := self._take(now):
                    return chunk
                continue
            if now >= until:
                return None
            self._watch.wait(min(until, self._due if self._waiting else until) - now)

    def close(self) -> None:
        """End the watch."""
        self._watch.close()

    def _collect(self) -> None:
        """Let whole files wait, and drop the oldest of too many."""
        try:
            names = [name for name in self._watch.take() if self._folder.has(name)]
        except OSError as error:
            raise inaccessible(self._folder.path, error) from error
        if self._watch.missed:
            self._folder.count("too many files at once", self._watch.missed)
            self._watch.missed = 0
        for name in (*self._rested(), *names):
            self._resting.pop(name, None)
            self._waiting.pop(name, None)
            self._waiting[name] = None
        excess = len(self._waiting) - (1 if self._period else MAX_FILES)
        for name in list(self._waiting)[: max(0, excess)]:
            self._drop(name)

    def _rested(self) -> list[str]:
        """Return the files from before the watch without a recent change."""
        if not self._resting or self._clock() < self._rest_at:
            return []
        self._rest_at = self._clock() + REST_SECONDS
        before, self._resting = self._resting, {name: self._folder.stamp(name) for name in self._resting}
        return [name for name, stamp in before.items() if self._resting[name] == stamp]

    def _drop(self, name: str) -> None:
        del self._waiting[name]
        self._folder.count(DROPPED)
        if self._deletes:
            self._folder.delete(name)

    def _take(self, now: float) -> Chunk | None:
        name = next(iter(self._waiting))
        del self._waiting[name]
        taken = name, self._folder.stamp(name)
        if taken == self._taken:  # closed twice, without a change
            return None
        chunk = self._folder.picture(name, now)
        if chunk:  # an unreadable file is neither deleted nor waited for
            self._taken, self._due = taken, now + self._period
        return chunk

    def _finish(self) -> None:
        """Delete the file of the picture that the pipelines have got meanwhile, but no newer file of the same name."""
        name, stamp = self._taken
        if self._deletes and stamp and self._folder.stamp(name) == stamp:
            self._folder.delete(name)


class Album:
    """Pictures of a folder, played in place of a camera."""

    def __init__(
        self,
        folder: Folder,
        rate: float | None,
        *,
        repeat: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = folder
        self._period = 1 / rate if rate else 0.0
        self._repeats = repeat
        self._clock = clock
        self._sleep = sleep
        self._due = clock()
        self._chunks = self._play()

    @property
    def faults(self) -> dict[str, int]:
        """Return the numbers of refused files, by reason."""
        return self._folder.faults

    @property
    def refused(self) -> str:
        """Return the last file refused."""
        return self._folder.refused

    def read(self, timeout: float) -> Chunk | None:
        """Return the next picture when due. Raises DeviceError without any, and EOFError at the end."""
        wait = self._due - self._clock()
        if wait > 0:
            self._sleep(min(wait, timeout))
            if wait > timeout and self._clock() < self._due:  # a busy machine may have slept longer
                return None
        chunk = next(self._chunks, None)
        if chunk is None:
            raise EOFError("the pictures have been played")
        self._due += self._period
        return chunk

    def close(self) -> None:
        """Do nothing; no file stays open."""

    def _play(self) -> Iterator[Chunk]:
        anew = False
        while True:
            played = 0
            for name in self._folder.names():
                if chunk := self._folder.picture(name, self._clock(), anew=anew):
                    anew = False
                    played += 1
                    yield chunk
            if not played:
                raise DeviceError(
                    f"the folder {self._folder.path} holds no pictures",
                    hint="put pictures into the folder, or correct path",
                )
            if not self._repeats:
                return
            anew = True


def inaccessible(folder: Path, error: OSError) -> DeviceError:
    """Return the error for an unreadable folder."""
    if error.errno in (errno.EMFILE, errno.ENOSPC):  # inotify(7)
        hint = "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches with sysctl"
    else:
        hint = "make the folder, and let the daemon's user read it"
    return DeviceError(f"the folder {folder} cannot be read: {error.strerror}", hint=hint)


def _undeletable(folder: Path) -> DeviceError:
    return DeviceError(
        f"files in {folder} cannot be deleted",
        hint="let the daemon's user write to the folder (a service also needs ReadWritePaths= in a drop-in), or set "
        "delete = false",
    )


def _content(path: Path) -> bytes:
    """Return the content of a regular file, up to a byte more than a picture may have. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would block without end
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        return file.read(MAX_BYTES + 1)
