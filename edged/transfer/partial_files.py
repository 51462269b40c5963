"""Partial files, received over days and in many attempts, without a claim to a byte that the disk could lose.

    <folder>/<id>/part            the bytes so far
    <folder>/<id>/transfer.json   how many bytes are durable, the size of the whole file, and the edition
    <folder>/<id>/order.json      a reminder for the next run of the program, as long as the transfer is under way

A transfer has three marks. `received` is the place of the next byte. `offset` is durable: up to this mark all bytes are
synced and recorded, and after a crash the file is cut back to this mark. `verified` is the end of the bytes found
right by the `ArrivalCheck`; a wrong byte takes the transfer back to this mark, so a bad link or proxy costs a chunk.
The record is raised after the bytes are synced, and lowered before the file is cut.

A transfer has one writer: the folder is locked while open, and only unlocked folders are removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Protocol

import msgspec

from edged.core.errors import BundleError, ControlError, EdgedError, StoreError
from edged.system.disk_space import room_hint
from edged.system.later import shutil

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
    """A check that reads along while a file arrives, from the first byte on.

    `total` is the size of the whole file, once the bytes read so far tell. `verified` is the number of bytes from the
    start known to be right. After an error in `feed` the next bytes begin at this number.
    """

    @property
    def total(self) -> int | None: ...  # noqa: D102

    @property
    def verified(self) -> int: ...  # noqa: D102

    def feed(self, data: bytes, /) -> None:
        """Read the next bytes. Raises BundleError if they cannot be right."""


NewCheck = Callable[[], ArrivalCheck]
"""Makes a check for a new file."""


class _Rules(NamedTuple):
    """Limits of a transfer. `make_room` makes a number of bytes free, or raises StoreError."""

    max_bytes: int
    window: int
    make_room: Callable[[int], None]
    sync: Callable[[int], None]


class PartialFiles:
    """A folder of transfers: at most `max_transfers` of at most `max_bytes` each.

    Beyond that number, or with less than `reserve` bytes free on the disk, the oldest unlocked transfers are removed.
    `window` is the number of received bytes not yet durable. `sync` is os.fdatasync.
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
        """Begin or continue a transfer, which is locked until closed.

        A new `check` reads the bytes on disk first. If the file was to have another `total`, it begins anew.

        Raises:
            ControlError: this transfer is open elsewhere, or too many others are.
            StoreError: the file is too big, or the disk is full or refuses.
        """
        if not _ID.fullmatch(id):
            raise ControlError(f"{id!r} is no name of a transfer", hint="use a SHA-256 digest in lower-case hex")
        try:
            lock = self._claim(self._folder / id)
        except OSError as error:
            raise _refusal(self._folder, error, total or 0) from error
        rules = _Rules(self._max_bytes, self._window, lambda needed: self._make_room(id, needed), self._sync)
        try:
            self._limit_number(id)
        except BaseException:
            os.close(lock)
            raise
        return Transfer(_StoredBytes(self._folder / id, lock, self._sync), rules, total, check)

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all transfers, oldest first, open or not."""
        return tuple(folder.name for folder in self._folders())

    def part(self, id: str) -> Path:  # noqa: A002
        """Return the file of a transfer, complete or not."""
        return self._folder / id / PART

    def orders(self) -> dict[str, bytes]:
        """Return, by id, the reminders of an earlier run with transfers under way."""
        found = {}
        for folder in self._folders():
            with suppress(OSError), (folder / ORDER).open("rb") as file:
                found[folder.name] = file.read(_MAX_ORDER_BYTES)
        return found

    def collect(self, now: float, max_age: float) -> tuple[str, ...]:
        """Remove unlocked transfers that were last written `max_age` seconds before `now`, and return their ids.

        `now` is wall-clock time: call this only while the clock is synchronised.
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
                    hint="wait for the end of the other transfer",
                    retryable=True,
                ) from error
            except FileNotFoundError:
                continue  # the last writer has just removed the folder

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._sync(descriptor)
        finally:
            os.close(descriptor)

    def _limit_number(self, own: str) -> None:
        while len(self._folders()) > self._max_transfers:
            if not self._remove_oldest(own):
                with suppress(OSError):  # a folder that is not empty existed before, and stays
                    (self._folder / own).rmdir()
                raise ControlError(
                    f"{self._max_transfers} transfers are under way, and no more are allowed",
                    hint="wait for the end of one",
                    retryable=True,
                )

    def _make_room(self, own: str, needed: int) -> None:
        wanted = needed + self._reserve
        while (free := _free(self._folder)) < wanted:
            others = sum(_size(folder / PART) for folder in self._folders() if folder.name != own)
            if free + others < wanted or not self._remove_oldest(own):  # remove no file in vain
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
    """A file that is arriving, for use by a single thread. Close the transfer, or use a `with` statement.

    After a failure of the disk the transfer is discarded: closed, and removed from the disk.
    """

    def __init__(self, stored: _StoredBytes, rules: _Rules, total: int | None, new_check: NewCheck | None) -> None:
        self._stored = stored
        self._rules = rules
        self._new_check = new_check
        self._check: ArrivalCheck | None = None
        try:
            stored.open()
        except OSError as error:
            stored.close()
            raise _refusal(self.path.parent, error, total or 0) from error
        try:
            with self._disk():
                self._resume(total)
        except BaseException:  # also where the check cannot judge just now: the next writer finds all bytes
            stored.close()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._stored.path

    @property
    def offset(self) -> int:
        """Number of bytes safe from a power cut."""
        return self._stored.record.durable

    @property
    def received(self) -> int:
        """Number of bytes received, and so the place of the next."""
        return self._stored.size

    @property
    def checked(self) -> bool:
        """True if a check reads the arriving bytes."""
        return self._check is not None

    @property
    def awaits_head(self) -> bool:
        """True while a check has not read enough to know the size of the file."""
        return self._check is not None and self._check.total is None

    @property
    def total(self) -> int | None:
        """Size of the whole file, None while unknown."""
        return self._stored.record.total

    @property
    def tag(self) -> str:
        """Name of the edition of the file, as given to `begin`."""
        return self._stored.record.tag

    def begin(self, total: int | None, tag: str = "") -> None:
        """Forget the bytes so far, and expect another file, of `total` bytes if known.

        Raises:
            StoreError: the file is too big, or the disk is full or refuses.
        """
        with self._disk():
            self._stored.set_record(_Record(0, None, tag))
            self._stored.cut(0)
            self._check = self._new_check() if self._new_check else None
        if total is not None:
            self.expect(total)

    def expect(self, total: int) -> None:
        """Set the size of the whole file. Raises StoreError for want of room, or a limit."""
        self._limit_size(total)
        self._make_room(total - self.received)
        self._stored.total_with_next_sync(total)

    def append(self, data: bytes) -> int:
        """Append the next bytes, and return the durable offset, within a window behind.

        Raises:
            BundleError: the bytes cannot be right; `received` is then the end of the verified bytes.
            StoreError: the file grows too big, or the disk is full or refuses.
        """
        end = self.received + len(data)
        if self.total is not None and end > self.total:
            raise BundleError(f"more than the {self.total} bytes that were announced", hint=_AGAIN)
        self._limit_size(end)
        if self.total is None:
            self._make_room(len(data))
        self._feed_check(data)
        with self._disk(len(data)):
            self._stored.write(data)
        if self.received - self.offset >= self._rules.window or self.received == self.total:
            self.sync()
        return self.offset

    def sync(self) -> int:
        """Make all received bytes durable, and return the offset. Raises StoreError; the file is lost then."""
        if self.received != self.offset:
            with self._disk():
                self._stored.sync()
        return self.offset

    def complete(self) -> Path:
        """Return the path of the file, complete and durable. The transfer stays open, and so locked.

        Raises:
            BundleError: bytes are missing.
            StoreError: the disk refuses.
        """
        total = self.received if self.total is None else self.total
        if self.received != total or (self._check and (self._check.total, self._check.verified) != (total, total)):
            raise BundleError(f"incomplete: the file ends after {self.received} bytes", hint=_AGAIN)
        self.sync()
        return self.path

    def keep_order(self, data: bytes) -> None:
        """Keep a reminder for the next run, for `PartialFiles.orders`. Raises StoreError."""
        with self._disk(len(data)):
            self._stored.replace(ORDER, data)

    def give_up(self) -> None:
        """Remove the reminder, keep the bytes for another attempt, and close. Raises StoreError."""
        with suppress(OSError):  # the next run tries once more then
            (self.path.parent / ORDER).unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Remove the file, and close the transfer. Never raises; may be called twice."""
        self._stored.remove()
        self._stored.close()

    def close(self) -> None:
        """Make the received bytes durable for the next writer, and unlock. Raises StoreError.

        Without bytes and without a reminder the transfer is removed.
        """
        if not self.received and not (self.path.parent / ORDER).exists():
            self.discard()
        if self._stored.is_open:
            self.sync()
        self._stored.close()

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _resume(self, total: int | None) -> None:
        self._stored.cut_to_durable()
        self._check_stored()
        if total is None or total == self.total:
            return
        if self.total is None and total >= self.received:
            self.expect(total)
        else:
            self.begin(total)

    def _check_stored(self) -> None:
        """Feed a new check the bytes on disk, and cut off wrong bytes."""
        if self._new_check is None:
            return
        self._check = check = self._new_check()
        try:
            for piece in self._stored.read():
                check.feed(piece)
        except BundleError:
            self._stored.cut(check.verified)

    def _feed_check(self, data: bytes) -> None:
        if self._check is None:
            return
        try:
            self._check.feed(data)
        except EdgedError:
            with self._disk(len(data)):
                self._stored.end_at(self._check.verified, data)
            raise
        expected, stated = self.total, self._check.total
        if expected is None and stated is not None:
            self.expect(stated)
        elif stated not in (None, expected):
            self.begin(None)
            raise BundleError(f"the file states {stated} bytes, and {expected} were announced", hint=_AGAIN)

    def _make_room(self, needed: int) -> None:
        try:
            self._rules.make_room(needed)
        except StoreError:
            self.discard()
            raise

    def _limit_size(self, size: int) -> None:
        if size > self._rules.max_bytes:
            self.discard()
            raise StoreError(
                f"{size} bytes are too many: at most {self._rules.max_bytes} are allowed", hint="send a smaller file"
            )

    @contextmanager
    def _disk(self, needed: int = _MAX_RECORD_BYTES) -> Iterator[None]:
        """Discard the transfer if the disk fails inside: the kernel may have dropped accepted bytes."""
        try:
            yield
        except OSError as error:
            missing = needed if self.total is None else self.total - self.received
            self.discard()
            raise _refusal(self.path.parent.parent, error, missing) from error


_AGAIN = "fetch or send it again"


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    durable: int = 0
    total: int | None = None
    tag: str = ""


class _StoredBytes:
    """The bytes of a transfer on disk, with their record. Methods raise OSError. `lock` locks the folder."""

    def __init__(self, folder: Path, lock: int, sync: Callable[[int], None]) -> None:
        self.path = folder / PART
        self.record = _Record()
        self.size = 0
        self._folder = folder
        self._lock = lock
        self._part = -1
        self._sync = sync

    @property
    def is_open(self) -> bool:
        """True until `close`."""
        return self._lock >= 0

    def open(self) -> None:
        self._part = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self.record = _read_record(self._folder / RECORD)

    def cut_to_durable(self) -> None:
        self.cut(min(self.record.durable, os.fstat(self._part).st_size))

    def read(self) -> Iterator[bytes]:
        for place in range(0, self.size, _PIECE):
            yield os.pread(self._part, min(_PIECE, self.size - place), place)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._part, rest, self.size)
            self.size += written
            rest = rest[written:]

    def sync(self) -> None:
        """Make the bytes durable, and then the record."""
        self._sync(self._part)
        self.set_record(msgspec.structs.replace(self.record, durable=self.size))

    def cut(self, size: int) -> None:
        """Lower the record, and then cut the file."""
        if size < self.record.durable:
            self.set_record(msgspec.structs.replace(self.record, durable=size))
        os.ftruncate(self._part, size)
        self.size = size

    def end_at(self, size: int, data: bytes) -> None:
        """Have the file end at `size`, by a cut or by a part of `data`."""
        if size < self.size:
            self.cut(size)
        else:
            self.write(data[: size - self.size])

    def total_with_next_sync(self, total: int) -> None:
        """Set the size of the whole file in the record. The next sync writes the record."""
        self.record = msgspec.structs.replace(self.record, total=total)

    def set_record(self, record: _Record) -> None:
        self.replace(RECORD, msgspec.json.encode(record))
        self.record = record

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file of the folder atomically."""
        aside = self._folder / f"{name}.new"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, data)
            self._sync(descriptor)
        finally:
            os.close(descriptor)
        aside.rename(self._folder / name)
        self._sync(self._lock)  # a descriptor of the folder

    def remove(self) -> None:
        if self.is_open:
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        for descriptor in (self._part, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._part = self._lock = -1


def _refusal(folder: Path, error: OSError, needed: int) -> StoreError:
    """Return the error of a refusing disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"{folder} is full: {needed} more bytes are needed", hint=room_hint(folder, "free some space on that disk")
        )
    return StoreError(
        f"{folder} cannot be written: {error.strerror}",
        hint="check that the folder exists and the service may write there, and read the kernel's log about the disk",
    )


def _read_record(path: Path) -> _Record:
    """Return the record of a transfer, or an empty record if unreadable: the transfer begins anew then."""
    try:
        with path.open("rb") as file:
            record = msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=_Record)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Record()
    sound = record.durable >= 0 and (record.total is None or record.total >= record.durable)
    return record if sound else _Record()


def _lock(folder: Path) -> int:
    """Return a locked descriptor of the folder.

    Raises:
        BlockingIOError: another writer has the lock.
        FileNotFoundError: the folder was removed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The folder may have been removed, and even created again, before the lock was taken.
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_unless_open(folder: Path) -> bool:
    """Remove an unlocked folder, and return True if the folder is gone."""
    try:
        lock = _lock(folder)
    except OSError:
        return not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return not folder.exists()


def _modified(folder: Path) -> float:
    """Return the time of the last write; 0 if the folder is gone."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _size(file: Path) -> int:
    """Return the bytes of a file on the disk; 0 if the file is gone."""
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
