"""The file of a spool: SQLite, with one row for each segment, a run of messages of one origin.

Rows are segments rather than messages, because flash wears by pages and not by bytes: a commit costs a few pages for
any number of messages, and similar messages deflate to a fraction. Row keys go up, and order the segments of an origin.
Bodies have a table of their own, so that counting rows does not read messages.

The write-ahead log is flushed with each commit (synchronous = FULL), so a committed message survives a power cut. After
any failure the file is closed and opened again with a checkpoint, which writes every page once more: a failed flush is
never trusted. A file is used by one thread. Every failure is raised as SegmentFileError.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from edged.core.errors import StoreError
from edged.core.types import Message
from edged.system.disk_space import room_hint

APPLICATION = 0x65646764
SCHEMA = 1

MAX_SEGMENT = 512
"""Most messages of a segment."""
MAX_SEGMENT_BYTES = 256 << 10
"""Most bytes of payload of a segment."""

Place = tuple[int, int]
"""Device and inode of a file, unique while the file is open."""

Connect = Callable[[str], sqlite3.Connection]
"""Opens a database file. Tests pass disks that fail."""

_TABLES = """
CREATE TABLE segment (key INTEGER PRIMARY KEY, origin TEXT NOT NULL, count INTEGER NOT NULL, level INTEGER NOT NULL,
    boot TEXT NOT NULL, created REAL NOT NULL, reason TEXT);
CREATE TABLE body (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE wear (boot TEXT NOT NULL, since REAL NOT NULL, bytes INTEGER NOT NULL);
"""

_SENSE = f"""key > 0 AND count BETWEEN 1 AND {2 * MAX_SEGMENT} AND typeof(count) = 'integer' AND typeof(origin) = 'text'
    AND typeof(level) = 'integer' AND typeof(created) = 'real' AND typeof(reason) IN ('null', 'text')"""
"""Condition met by every undamaged row: a single wrong count could drive out all other messages.

A segment less than full may grow by another full segment.
"""


class SegmentFileError(StoreError):
    """The file cannot be used. `damaged`: the file is broken for good. `other`: the file belongs to another program.

    `doubtful`: SQLite may report the same for a damaged file; `is_damaged` decides.
    """

    def __init__(
        self, message: str, *, hint: str, damaged: bool = False, other: bool = False, doubtful: bool = False
    ) -> None:
        super().__init__(message, hint=hint, retryable=True)
        self.damaged = damaged
        self.other = other
        self.doubtful = doubtful


class Stamp(NamedTuple):
    """Time of writing a segment: the kernel's boot id, its monotonic clock, and Unix seconds if known."""

    boot: str
    monotonic: float
    wall: float | None


class Segment(NamedTuple):
    """Messages of one origin, in order. `level` counts how often they were thinned; `reason` is set for a parked
    message.
    """

    key: int
    origin: str
    stamp: Stamp
    messages: Sequence[Message]
    level: int = 0
    reason: str | None = None


class Listing(NamedTuple):
    """The segments of a file: origin and number of messages by key, and the keys of parked messages."""

    waiting: dict[int, tuple[str, int]]
    parked: set[int]

    @property
    def messages(self) -> int:
        """Number of all messages."""
        return sum(number for _, number in self.waiting.values()) + len(self.parked)


class FileContents(NamedTuple):
    """The messages of a file: numbers by origin, the parked segments, and the highest key."""

    waiting: dict[str, int]
    parked: list[Segment]
    last_key: int


class BytesWritten(NamedTuple):
    """Bytes written since a moment of a boot."""

    boot: str
    since: float
    bytes: int


class SegmentFile:
    """An open file."""

    def __init__(self, file: Path, connect: Connect) -> None:
        """Open or create the file. Raises SegmentFileError."""
        self.file = file
        with converted_errors(file):
            _make_folder(file.parent)
            _make_private(file)
            self._db = connect(str(file))
            self._db.text_factory = lambda text: text.decode(errors="replace")
        try:
            with converted_errors(file):
                self._prepare()
                self._places = place(file), place(log_of(file))
                self._marks = _marks(file)
        except BaseException:
            self.close()
            raise

    @property
    def is_in_place(self) -> bool:
        """True if the open files are at their paths, and not deleted or replaced by another program."""
        return None not in self._places and (place(self.file), place(log_of(self.file))) == self._places

    @property
    def is_untouched(self) -> bool:
        """True if no other program has written to the files, judging by sizes and modification times."""
        return _marks(self.file) == self._marks

    @property
    def place(self) -> Place | None:
        """Device and inode of the open database, at its path or elsewhere."""
        return self._places[0]

    def withdraw_log(self) -> None:
        """Delete the name of the open log: SQLite would take it for the log of another database now at the path."""
        with converted_errors(self.file):
            log = log_of(self.file)
            if place(log) == self._places[1]:
                log.unlink(missing_ok=True)

    def take_over(self, other: SegmentFile, shift: int) -> None:
        """Copy all segments of another file, with keys raised by `shift`."""
        with self.transaction():
            for table, columns in (("segment", "?, ?, ?, ?, ?, ?, ?"), ("body", "?, ?")):
                rows = other._db.execute(f"SELECT * FROM {table}")
                moved = ((key + shift, *row) for key, *row in rows)
                self._db.executemany(f"INSERT INTO {table} VALUES ({columns})", moved)

    def listing(self) -> Listing:
        """Return the keys, origins and sizes of all segments."""
        with converted_errors(self.file):
            self._check_rows()
            waiting: dict[int, tuple[str, int]] = {}
            parked: set[int] = set()
            for key, origin, number, reason in self._db.execute("SELECT key, origin, count, reason FROM segment"):
                if reason is None:
                    waiting[key] = origin, number
                else:
                    parked.add(key)
        return Listing(waiting, parked)

    def contents(self) -> FileContents:
        """Return the number of messages by origin, and the parked messages."""
        with converted_errors(self.file):
            run = self._db.execute
            waiting = dict(run("SELECT origin, sum(count) FROM segment WHERE reason IS NULL GROUP BY origin"))
            self._check_rows()
            parked = [key for (key,) in run("SELECT key FROM segment WHERE reason IS NOT NULL ORDER BY key")]
            [(last,)] = run("SELECT coalesce(max(key), 0) FROM segment")
        return FileContents(waiting, [segment for key in parked if (segment := self.read(key))], last)

    def _check_rows(self) -> None:
        [(senseless,)] = self._db.execute(f"SELECT count(*) FROM segment WHERE NOT ({_SENSE})")
        if senseless:
            raise SegmentFileError(f"{self.file} is damaged", hint=SET_ASIDE, damaged=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body as one transaction, on disk at its end."""
        with converted_errors(self.file):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._marks = _marks(self.file)

    def put(self, segment: Segment) -> int:
        """Write a segment, replacing a segment of the same key; return its bytes."""
        data = _pack(segment)
        newest = max(message.created for message in segment.messages)
        row = (segment.key, segment.origin, len(segment.messages), segment.level, segment.stamp.boot, newest)
        self._db.execute("INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, segment.reason))
        self._db.execute("INSERT OR REPLACE INTO body VALUES (?, ?)", (segment.key, data))
        return len(data)

    def remove(self, keys: Collection[int]) -> None:
        """Delete segments."""
        self._db.executemany("DELETE FROM segment WHERE key = ?", [(key,) for key in keys])
        self._db.executemany("DELETE FROM body WHERE key = ?", [(key,) for key in keys])

    def read(self, key: int) -> Segment | None:
        """Return a segment, or None if its row is illegible."""
        with converted_errors(self.file):
            [row] = self._db.execute(
                "SELECT origin, level, reason, data FROM segment JOIN body USING (key) WHERE key = ?", (key,)
            ).fetchall() or [None]
        return row and unpack(key, *row)

    def next(self, origin: str, taken: Collection[int], *, newest: bool) -> tuple[int, int] | None:
        """Return key and count of an origin's first or last segment not in `taken`."""
        with converted_errors(self.file):
            order = "DESC" if newest else "ASC"
            rows = self._db.execute(
                f"SELECT key, count FROM segment WHERE origin = ? AND reason IS NULL ORDER BY key {order}", (origin,)
            )
            return next(((key, count) for key, count in rows if key not in taken), None)

    def least_thinned(self, origin: str, taken: Collection[int], number: int) -> list[tuple[int, int]]:
        """Return keys and counts of up to `number` neighbours, the first of the least thinned."""
        with converted_errors(self.file):
            rows = self._db.execute(
                "SELECT key, count, level, boot FROM segment WHERE origin = ? AND reason IS NULL ORDER BY level, key",
                (origin,),
            )
            free = (row for row in rows if row[0] not in taken)
            first = next(free, None)
            if first is None:
                return []
            found = [first]
            for row in free:
                if len(found) == number or row[2:] != first[2:]:
                    break
                found.append(row)
        return [(key, count) for key, count, _, _ in found]

    def outdated(self, boot: str, before: float, taken: Collection[int]) -> list[tuple[int, str, int]]:
        """Return keys, origins and counts of a boot's segments with no message made after `before`."""
        with converted_errors(self.file):
            rows = self._db.execute(
                "SELECT key, origin, count FROM segment WHERE reason IS NULL AND boot = ? AND created < ?",
                (boot, before),
            )
            return [row for row in rows if row[0] not in taken]

    @property
    def used_bytes(self) -> int:
        """Bytes of the file in use."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")

    def shrink(self) -> None:
        """Return free space to the file system if much of the file is free."""
        free, all_pages = self._pragma("freelist_count"), self._pragma("page_count")
        if free > 256 and free > all_pages // 2:
            with converted_errors(self.file):
                self._db.execute(f"PRAGMA incremental_vacuum({free // 2})").fetchall()
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._marks = _marks(self.file)

    def checkpoint(self) -> None:
        """Move the log into the database, so that the file may be moved alone."""
        with converted_errors(self.file):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._marks = _marks(self.file)

    def read_wear(self) -> BytesWritten | None:
        """Return the bytes written by the last user of the file."""
        with converted_errors(self.file):
            row = self._db.execute("SELECT boot, since, bytes FROM wear").fetchone()
        try:
            return row and BytesWritten(*msgspec.convert(row, tuple[str, float, int]))
        except msgspec.ValidationError:
            return None

    def write_wear(self, wear: BytesWritten) -> None:
        """Leave a count of bytes written to the next user of the file."""
        self._db.execute("DELETE FROM wear")
        self._db.execute("INSERT INTO wear VALUES (?, ?, ?)", wear)

    def close(self) -> None:
        """Close the file."""
        try:
            self._db.close()
        except sqlite3.Error:
            pass  # opening the file again completes the work

    def _prepare(self) -> None:
        run = self._db.execute
        run("PRAGMA locking_mode = EXCLUSIVE")  # needs no shared memory, where a failure is a signal
        run("PRAGMA cache_size = -512")
        run("PRAGMA auto_vacuum = INCREMENTAL")
        if not self._pragma("schema_version"):
            run("PRAGMA journal_mode = WAL").fetchall()
            run("PRAGMA synchronous = FULL")
            run("BEGIN IMMEDIATE")
            for statement in _TABLES.strip().rstrip(";").split(";"):
                run(statement)
            run(f"PRAGMA application_id = {APPLICATION}")
            run(f"PRAGMA user_version = {SCHEMA}")
            run("COMMIT")
        else:
            self._check()
            run("PRAGMA journal_mode = WAL").fetchall()
            run("PRAGMA synchronous = FULL")
            run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        run(f"PRAGMA journal_size_limit = {1 << 20}").fetchall()

    def _check(self) -> None:
        if self._pragma("application_id") != APPLICATION:
            raise SegmentFileError(f"{self.file} is a database of another program", hint=SET_ASIDE, other=True)
        version = self._pragma("user_version")
        if version != SCHEMA:
            which = "an older" if version < SCHEMA else "a newer"
            raise SegmentFileError(f"{self.file} was written by {which} edged", hint=SET_ASIDE, other=True)
        self._db.execute("SELECT key, reason, created, data FROM segment JOIN body USING (key) LIMIT 1").fetchone()

    def _pragma(self, name: str) -> int:
        with converted_errors(self.file):
            [(value,)] = self._db.execute(f"PRAGMA {name}")
        return int(value)


def open_database(file: str) -> sqlite3.Connection:
    """Open a database file for a SegmentFile."""
    return sqlite3.connect(file, timeout=1.0, isolation_level=None)


def is_damaged(file: Path, connect: Connect) -> bool:
    """Read a whole closed file, and return True if any of it is illegible."""
    try:
        with converted_errors(file):
            database = connect(str(file))
            try:
                database.execute("PRAGMA locking_mode = EXCLUSIVE")
                first = database.execute("PRAGMA quick_check(1)").fetchone()
            finally:
                database.close()
    except SegmentFileError as error:
        return error.damaged
    return bool(first != ("ok",))


SET_ASIDE = "the file is set aside, and a new one begun; inspect the old one with: sqlite3"

_HINTS = {
    sqlite3.SQLITE_FULL: "make room on the disk (df)",
    sqlite3.SQLITE_READONLY: "make it writable; if the card has become read-only, replace the card (dmesg)",
    sqlite3.SQLITE_CANTOPEN: "check the folder and who may write there",
    sqlite3.SQLITE_IOERR: "the disk fails: look at dmesg, and replace the card",
    sqlite3.SQLITE_BUSY: "stop the other program using the file (fuser)",
}

_CODES = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.EACCES: sqlite3.SQLITE_CANTOPEN,
    errno.EIO: sqlite3.SQLITE_IOERR,
}
"""Equivalent codes of SQLite."""


@contextmanager
def converted_errors(file: Path) -> Iterator[None]:
    """Convert exceptions of SQLite and the system into SegmentFileError."""
    try:
        yield
    except UnicodeDecodeError as error:  # the damaged name of a table in SQLite's message
        raise SegmentFileError(f"{file} cannot be used: {error}", hint=SET_ASIDE, damaged=True) from error
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _read_only(file.parent):
            code = sqlite3.SQLITE_READONLY  # SQLite reports only that the log cannot be written
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
        hint = SET_ASIDE if damaged else _HINTS.get(code, "look at dmesg")
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
            hint = room_hint(file, hint)  # SQLite gives no reason if the log cannot be created
        # SQLite reports a wrong page number beyond the last possible one as a full disk
        doubtful = not damaged and (code == sqlite3.SQLITE_FULL or code not in _HINTS)
        raise SegmentFileError(
            f"{file} cannot be used: {error}", hint=hint, damaged=damaged, doubtful=doubtful
        ) from error
    except OSError as error:
        hint = _HINTS.get(_CODES.get(error.errno or 0, 0), "look at dmesg")
        if error.errno == errno.ENOSPC:
            hint = room_hint(file, hint)
        raise SegmentFileError(f"{file} cannot be used: {error.strerror or error}", hint=hint) from error


def _read_only(folder: Path) -> bool:
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def place(file: Path) -> Place | None:
    """Return device and inode of the file at a path, None if unreachable."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _marks(file: Path) -> list[tuple[int, int] | None]:
    """Return size and modification time of a database and of its log."""
    marks: list[tuple[int, int] | None] = []
    for each in (file, log_of(file)):
        try:
            status = each.stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((status.st_size, status.st_mtime_ns))
    return marks


def log_of(file: Path) -> Path:
    """The path of a database's write-ahead log."""
    return file.with_name(file.name + "-wal")


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        descriptor = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_private(file: Path) -> None:
    """Create the file readable by its owner alone; SQLite gives the log the same permissions."""
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


class _Body(msgspec.Struct, array_like=True):
    boot: str
    monotonic: float
    wall: float | None
    messages: list[_Saved]


class _Saved(msgspec.Struct, array_like=True, gc=False):
    topic: str
    payload: bytes
    seq: int
    created: float
    qos: int
    expiry: int
    properties: tuple[tuple[str, str], ...]
    estimated: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode

_MAX_BODY = 64 << 20


def _pack(segment: Segment) -> bytes:
    saved = [
        _Saved(
            each.topic,
            each.payload,
            each.seq,
            each.created,
            each.qos,
            each.expiry,
            each.properties,
            each.estimated,
        )
        for each in segment.messages
    ]
    return zlib.compress(_encode(_Body(*segment.stamp, saved)), 1)


def unpack(key: int, origin: str, level: int, reason: str | None, data: bytes) -> Segment | None:
    """Return the segment of a row, or None if illegible."""
    try:
        body = _decode(zlib.decompressobj().decompress(data, _MAX_BODY))
    except (zlib.error, msgspec.DecodeError, TypeError):  # a damaged page may give no bytes at all
        return None
    messages = [
        Message(
            topic=each.topic,
            payload=each.payload,
            origin=origin,
            seq=each.seq,
            created=each.created,
            qos=each.qos,
            expiry=each.expiry,
            properties=each.properties,
            estimated=each.estimated,
        )
        for each in body.messages
    ]
    return Segment(key, origin, Stamp(body.boot, body.monotonic, body.wall), messages, level, reason)
