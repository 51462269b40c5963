"""Where models arrive: files that may take days and many attempts, and never claim a byte that the disk could lose.

    <folder>/<id>/part            the bytes so far
    <folder>/<id>/transfer.json   how many of them are certain, how many there will be, and of which edition they are
    <folder>/<id>/order.json      whatever whoever opened it wants to be reminded of after a restart, while it is open

A transfer has three marks. `received` is where the next byte goes. `offset` is durable: up to there everything has been
synced and recorded, and after a crash the file is cut back to it, whatever else it holds. `verified` is how far the
`ArrivalCheck` that reads along vouches for it; a byte it objects to takes the transfer back to that mark, so that a bad
link or proxy costs a chunk. The record is raised after the bytes are synced, and lowered before the file is cut.

A transfer has one writer: its folder is locked while it is open, and only folders nobody has open are collected.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Protocol

import msgspec

from edged.core.errors import BundleError, ControlError, EdgedError, StoreError
from edged.system.disk_space import room_hint

PART: Final = "part"
RECORD: Final = "transfer.json"
ORDER: Final = "order.json"
WINDOW: Final = 256 << 10
RESERVE: Final = 4 << 20

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_PIECE = 256 << 10
_MAX_RECORD_BYTES = 4096
_MAX_ORDER_BYTES = 64 << 10


class ArrivalCheck(Protocol):
    """What reads along from the first byte on, and objects.

    `total` is the whole length, as soon as what was read tells it. `verified` is how many bytes from the start are
    known to be right. When `feed` has objected it stands there, and what it is fed next begins there.
    """

    @property
    def total(self) -> int | None: ...  # noqa: D102

    @property
    def verified(self) -> int: ...  # noqa: D102

    def feed(self, data: bytes, /) -> None:
        """Read the next bytes. Raises BundleError if they cannot be right."""


NewCheck = Callable[[], ArrivalCheck]
"""Gives a check for the file that a transfer begins anew."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    durable: int = 0
    total: int | None = None
    tag: str = ""


class _Rules(NamedTuple):
    """What a transfer keeps to, and whom it asks for room."""

    max_bytes: int
    window: int
    make_room: Callable[[int], None]
    sync: Callable[[int], None]


class PartialFiles:
    """The folder of all transfers: at most `max_transfers` of at most `max_bytes` each.

    Where there are more, or the disk would be left with less than `reserve` bytes, the oldest that nobody has open
    are thrown away. `window` is how many bytes may wait to be made durable. `sync` is os.fdatasync.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        max_transfers: int,
        *,
        reserve: int = RESERVE,
        window: int = WINDOW,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_transfers = max_transfers
        self._reserve = reserve
        self._window = window
        self._sync = sync

    def open(self, id: str, *, total: int | None = None, check: NewCheck | None = None) -> Transfer:  # noqa: A002
        """Start or continue a transfer; it is locked until closed.

        What is on disk is read by a new `check` first. If it was to have another `total`, it is begun anew.

        Raises:
            ControlError: another transfer of this is under way, or too many others are.
            StoreError: it is too big, there is no room for it, or the disk refuses.
        """
        if not _ID.fullmatch(id):
            raise ControlError(f"{id!r} is no name of a transfer", hint="use the bundle's digest")
        try:
            lock = self._claim(self._folder / id)
        except OSError as error:
            raise _refused(self._folder, error, total or 0) from error
        rules = _Rules(self._max_bytes, self._window, lambda needed: self._make_room(id, needed), self._sync)
        try:
            self._limit_number(id)
        except BaseException:
            os.close(lock)
            raise
        return Transfer(self._folder / id, lock, rules, total, check)

    def ids(self) -> tuple[str, ...]:
        """All transfers there are, the oldest first, open or not."""
        return tuple(folder.name for folder in self._folders())

    def part(self, id: str) -> Path:  # noqa: A002
        """The file of a transfer, complete or not."""
        return self._folder / id / PART

    def orders(self) -> dict[str, bytes]:
        """What transfers that nobody closed were opened for, by id: an earlier run was ended in their midst."""
        found = {}
        for folder in self._folders():
            with suppress(OSError), (folder / ORDER).open("rb") as file:
                found[folder.name] = file.read(_MAX_ORDER_BYTES)
        return found

    def collect(self, now: float, max_age: float) -> tuple[str, ...]:
        """Throw away what nobody has open and was last written `max_age` seconds before `now`; returns their ids.

        `now` is wall-clock time: call it while the clock is synchronised.
        """
        stale = [folder for folder in self._folders() if _modified(folder) < now - max_age]
        return tuple(folder.name for folder in stale if _remove_unless_open(folder))

    def _claim(self, folder: Path) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                self._sync_folder()
            try:
                return _lock(folder)
            except BlockingIOError as error:
                raise ControlError(
                    f"another transfer of {folder.name} is under way",
                    hint="wait until it has ended, or end it",
                    retryable=True,
                ) from error
            except FileNotFoundError:
                continue  # whoever had it has just thrown it away

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._sync(descriptor)
        finally:
            os.close(descriptor)

    def _limit_number(self, own: str) -> None:
        while len(self._folders()) > self._max_transfers:
            if not self._remove_oldest(own):
                with suppress(OSError):  # not empty: there was something before, and it stays
                    (self._folder / own).rmdir()
                raise ControlError(
                    f"{self._max_transfers} transfers are under way, and no more are allowed",
                    hint="wait until one has ended",
                    retryable=True,
                )

    def _make_room(self, own: str, needed: int) -> None:
        wanted = needed + self._reserve
        while (free := _free(self._folder)) < wanted:
            others = sum(_size(folder / PART) for folder in self._folders() if folder.name != own)
            if free + others < wanted or not self._remove_oldest(own):  # nothing goes in vain
                raise StoreError(
                    f"{self._folder}: {needed} bytes and a reserve of {self._reserve} are needed, and {free} are free",
                    hint="free some space on that disk",
                )

    def _remove_oldest(self, own: str) -> bool:
        return any(_remove_unless_open(folder) for folder in self._folders() if folder.name != own)

    def _folders(self) -> list[Path]:
        try:
            folders = [folder for folder in self._folder.iterdir() if folder.is_dir() and not folder.is_symlink()]
        except OSError:  # not there yet
            return []
        return sorted(folders, key=_modified)


class Transfer:
    """A file that arrives. One thread uses it; close it, or use it in a `with` statement.

    `total` is its whole length, None while nobody knows. `tag` is whatever names the edition these bytes are of, as
    the sender said it to `begin`. A transfer whose disk has failed is discarded: it is closed, and nothing is left.
    """

    def __init__(
        self, folder: Path, lock: int, rules: _Rules, total: int | None, new_check: Callable[[], ArrivalCheck] | None
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._rules = rules
        self._new_check = new_check
        self._check: ArrivalCheck | None = None
        self._received = 0
        try:
            self._part = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._record = _read_record(folder / RECORD)
        except OSError as error:
            os.close(lock)
            raise _refused(folder, error, total or 0) from error
        try:
            with self._disk():
                self._resume(total)
        except BaseException:  # the check may not be able to judge just now: whoever comes next finds all as it was
            self._let_go()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / PART

    @property
    def offset(self) -> int:
        """How many bytes will still be there after a power cut."""
        return self._record.durable

    @property
    def received(self) -> int:
        """How many bytes there are: the place of the next."""
        return self._received

    @property
    def checked(self) -> bool:
        """Whether a check reads along."""
        return self._check is not None

    @property
    def awaits_head(self) -> bool:
        """Tell whether a check reads along and has not seen the whole head yet."""
        return self._check is not None and self._check.total is None

    @property
    def total(self) -> int | None:
        """The whole length in bytes, as soon as it is known."""
        return self._record.total

    @property
    def tag(self) -> str:
        """The edition these bytes are of."""
        return self._record.tag

    def begin(self, total: int | None, tag: str = "") -> None:
        """Forget what is there, and expect another file, of `total` bytes where that is known.

        Raises:
            StoreError: it is too big, there is no room for it, or the disk refuses.
        """
        with self._disk():
            self._write_record(_Record(0, None, tag))
            self._cut(0)
            self._check = self._new_check() if self._new_check else None
        if total is not None:
            self.expect(total)

    def expect(self, total: int) -> None:
        """It will have `total` bytes. Raises StoreError if that is too big, or there is no room for it."""
        if total > self._rules.max_bytes:
            raise self._too_big(total)
        self._make_room(total - self._received)
        self._record = msgspec.structs.replace(self._record, total=total)  # on disk with the next sync

    def append(self, data: bytes) -> int:
        """Take the next bytes; returns the new durable offset, which follows within a window.

        Raises:
            BundleError: they cannot be right; `received` is where what was verified ends.
            StoreError: it grows too big, there is no room for it, or the disk refuses.
        """
        end = self._received + len(data)
        if self.total is not None and end > self.total:
            raise BundleError(f"more than the {self.total} bytes that were announced", hint=_AGAIN)
        if end > self._rules.max_bytes:
            raise self._too_big(end)
        if self.total is None:
            self._make_room(len(data))
        self._read_along(data)
        with self._disk(len(data)):
            self._write(data)
        if self._received - self.offset >= self._rules.window or self._received == self.total:
            self.sync()
        return self.offset

    def sync(self) -> int:
        """Make everything received durable; returns the offset. Raises StoreError; never tried twice on one file."""
        if self._received != self.offset:
            with self._disk():
                self._rules.sync(self._part)
                self._write_record(msgspec.structs.replace(self._record, durable=self._received))
        return self.offset

    def complete(self) -> Path:
        """Make sure that all of it is here and durable; returns its path. The transfer stays open, and so locked.

        Raises:
            BundleError: something is missing.
            StoreError: the disk refuses.
        """
        total = self._received if self.total is None else self.total
        if self._received != total or (self._check and (self._check.total, self._check.verified) != (total, total)):
            raise BundleError(f"it ends after {self._received} bytes, and is not complete", hint=_AGAIN)
        self.sync()
        return self.path

    def order(self, data: bytes) -> None:
        """Have `PartialFiles.orders` say this after a restart. Raises StoreError."""
        with self._disk(len(data)):
            self._replace(ORDER, data)

    def give_up(self) -> None:
        """Forget the order, keep what was received for whoever comes next, and close. Raises StoreError."""
        with suppress(OSError):  # it is only gone on with once more
            (self._folder / ORDER).unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Throw it away, and close it. Never raises; may be called twice."""
        if self._lock >= 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._let_go()

    def close(self) -> None:
        """Make durable what was received, for the next who opens it, and unlock it. Raises StoreError.

        Where nothing was received, and nothing is ordered, nothing is left.
        """
        if not self._received and not (self._folder / ORDER).exists():
            self.discard()
        if self._lock >= 0:
            self.sync()
        self._let_go()

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _resume(self, total: int | None) -> None:
        there = min(self.offset, os.fstat(self._part).st_size)
        if there < self.offset:
            self._write_record(msgspec.structs.replace(self._record, durable=there))
        self._cut(there)
        self._read_back()
        if total is None or total == self.total:
            return
        if self.total is None and total >= self._received:
            self.expect(total)
        else:
            self.begin(total)

    def _read_back(self) -> None:
        """Show a new check what is there already, and keep what it vouches for."""
        if self._new_check is None:
            return
        self._check = check = self._new_check()
        try:
            for place in range(0, self._received, _PIECE):
                check.feed(os.pread(self._part, min(_PIECE, self._received - place), place))
        except BundleError:
            self._cut(check.verified)

    def _cut(self, size: int) -> None:
        if size < self.offset:
            self._write_record(msgspec.structs.replace(self._record, durable=size))
        os.ftruncate(self._part, size)
        self._received = size

    def _read_along(self, data: bytes) -> None:
        if self._check is None:
            return
        try:
            self._check.feed(data)
        except EdgedError:
            self._keep_verified(data, self._check.verified)
            raise
        announced, said = self.total, self._check.total
        if announced is None and said is not None:
            self.expect(said)
        elif said not in (None, announced):
            self.begin(None)
            raise BundleError(f"it says it has {said} bytes, and {announced} were announced", hint=_AGAIN)

    def _keep_verified(self, data: bytes, verified: int) -> None:
        with self._disk(len(data)):
            if verified < self._received:
                self._cut(verified)
            else:
                self._write(data[: verified - self._received])

    def _make_room(self, needed: int) -> None:
        try:
            self._rules.make_room(needed)
        except StoreError:
            self.discard()
            raise

    def _too_big(self, size: int) -> StoreError:
        self.discard()
        return StoreError(
            f"{size} bytes are too many: at most {self._rules.max_bytes} are allowed", hint="send a smaller bundle"
        )

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._part, rest, self._received)
            self._received += written
            rest = rest[written:]

    def _write_record(self, record: _Record) -> None:
        self._replace(RECORD, msgspec.json.encode(record))
        self._record = record

    def _replace(self, name: str, data: bytes) -> None:
        aside = self._folder / f"{name}.new"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, data)
            self._rules.sync(descriptor)
        finally:
            os.close(descriptor)
        aside.rename(self._folder / name)
        self._rules.sync(self._lock)  # the folder's own descriptor

    def _let_go(self) -> None:
        for descriptor in (self._part, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._part = self._lock = -1

    @contextmanager
    def _disk(self, needed: int = _MAX_RECORD_BYTES) -> Iterator[None]:
        """Around everything that writes. What has failed once is lost: the kernel may have dropped what it held."""
        try:
            yield
        except OSError as error:
            missing = needed if self.total is None else self.total - self._received
            self.discard()
            raise _refused(self._folder.parent, error, missing) from error


_AGAIN = "fetch or send it again"


def _refused(folder: Path, error: OSError, needed: int) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"{folder} is full: {needed} more bytes are needed", hint=room_hint(folder, "free some space on that disk")
        )
    return StoreError(
        f"{folder} cannot be written: {error.strerror}",
        hint="check that it is there, that we may write, and what the kernel's log says of the disk",
    )


def _read_record(path: Path) -> _Record:
    """What was recorded; nothing at all where that cannot be read, and the transfer starts from the beginning."""
    try:
        with path.open("rb") as file:
            record = msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=_Record)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Record()
    sound = record.durable >= 0 and (record.total is None or record.total >= record.durable)
    return record if sound else _Record()


def _lock(folder: Path) -> int:
    """A locked descriptor of the folder. Raises BlockingIOError if it is open elsewhere, FileNotFoundError if gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed, and even made again, before we had the lock.
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_unless_open(folder: Path) -> bool:
    """Whether it is gone."""
    try:
        lock = _lock(folder)
    except OSError:
        return not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return not folder.exists()


def _modified(folder: Path) -> float:
    """When it was last written; 0 if it is gone meanwhile."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _size(file: Path) -> int:
    """How many bytes of the disk a file takes; 0 if it is gone meanwhile."""
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
