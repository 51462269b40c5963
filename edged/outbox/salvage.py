"""What becomes of a file that cannot be used any more: it is moved out of the way, with what can still be read saved.

Of a damaged spool whatever is legible is copied to a file beside it. When that is complete it gets a name that says so,
the damaged one is renamed, and the copy takes its place; `is_there` finishes what a power cut has interrupted. What is
no spool of this edged is never read, and never deleted. Whatever goes wrong is raised as a SegmentFileError.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edged.outbox.segment_file import (
    APPLICATION,
    MAX_SEGMENT,
    SCHEMA,
    Connect,
    Listing,
    Segment,
    SegmentFile,
    SegmentFileError,
    border,
    log_of,
    unpack,
)

KEEP_ASIDE = 3
"""So many damaged files are kept, the latest; and of other files, which are not ours to delete, no more are moved."""


def is_there(file: Path) -> bool:
    """Whether there is a file; one that was being replaced when the power went is replaced first."""
    with border(file):
        _delete(_draft(file))
        _delete(_mended(file))
        if _complete(file).exists():
            if file.exists():
                set_aside(file, "damaged")
            _take_place(file)
        return file.exists()


def replace(file: Path, connect: Connect, without: Collection[int]) -> tuple[Path, Listing]:
    """Begin a new file with what a damaged one says, but for these keys; where it is now, and what was saved."""
    with border(file):
        _delete(_draft(file))
    saved = _save(file, _draft(file), connect, without)
    try:
        with border(file):
            _rename(_draft(file), _complete(file))
            _sync(file.parent)
            aside = set_aside(file, "damaged")
            _take_place(file)
    except SegmentFileError:
        with border(file):
            _delete(_complete(file))
        raise
    return aside, saved


def set_aside(file: Path, kind: str) -> Path:
    """Move a file out of the way; of damaged ones let go of the oldest, of others let no more come."""
    with border(file):
        paths = [file.with_name(f"{kind}-{number}.db") for number in range(1, KEEP_ASIDE + 1)]
        free = [path for path in paths if not path.exists()]
        if not free and kind != "damaged":
            hint = f"move {kind}-*.db out of the folder, and look what writes there"
            raise SegmentFileError(f"{file} is no spool, and {KEEP_ASIDE} such files are set aside already", hint=hint)
        aside = free[0] if free else min(paths, key=lambda path: path.stat().st_mtime)
        _delete(aside)
        _rename(file, aside)
        os.utime(aside)
    return aside


def _save(file: Path, draft: Path, connect: Connect, without: Collection[int]) -> Listing:
    saved = Listing({}, set())
    shelf = SegmentFile(draft, connect)
    try:
        with shelf.transaction():
            for segment in _legible(file, connect):
                if segment.key in without:
                    continue
                shelf.put(segment)
                if segment.reason is None:
                    saved.waiting[segment.key] = segment.origin, len(segment.messages)
                else:
                    saved.parked.add(segment.key)
        shelf.settle()
    finally:
        shelf.close()
    return saved


def _legible(file: Path, connect: Connect) -> Iterator[Segment]:
    """What can be read, in the order of its keys; with another first page, which tells where all is, if need be."""
    found = False
    for segment in _read(file, connect):
        found = True
        yield segment
    if not found:
        with _with_first_page(file, connect) as copy:
            yield from _read(copy, connect)


@contextmanager
def _with_first_page(file: Path, connect: Connect) -> Iterator[Path]:
    """A copy of a file with the first page of a new one: tables are made in one order, and are at the same places."""
    copy = _mended(file)
    try:
        with border(file):
            _delete(copy)
        new_one = SegmentFile(copy, connect)
        try:
            new_one.settle()
        finally:
            new_one.close()
        with border(file):
            with copy.open("rb") as new:
                header = bytearray(new.read(_PAGE))
            header[_PAGES] = bytes(4)  # as many as the file has, then: https://www.sqlite.org/fileformat.html
            shutil.copyfile(file, copy)
            with copy.open("r+b") as mended:
                mended.write(header)
            if log_of(file).exists():
                shutil.copyfile(log_of(file), log_of(copy))
        yield copy
    finally:
        with border(file):
            _delete(copy)


_PAGE = 4096
_PAGES = slice(28, 32)
"""Where the first page says how many there are."""


def _read(file: Path, connect: Connect) -> Iterator[Segment]:
    database = None
    try:
        database = connect(str(file))
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA writable_schema = ON")  # else not a page is read of a file that is cut off
        marks = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if marks == [APPLICATION, SCHEMA]:
            yield from _walk(database)
    except (sqlite3.Error, msgspec.ValidationError):
        pass  # nothing at all can be read, or nothing more
    finally:
        if database is not None:
            _close(database)


def _walk(database: sqlite3.Connection) -> Iterator[Segment]:
    last = 0
    while (row := _after(database, last)) is not None:
        last, origin, level, reason = row
        try:
            [(data,)] = database.execute("SELECT data FROM body WHERE key = ?", (last,))
            segment = unpack(last, origin, level, reason, msgspec.convert(data, bytes))
        except (sqlite3.Error, msgspec.ValidationError, ValueError):
            continue
        if segment is not None and 0 < len(segment.messages) <= 2 * MAX_SEGMENT:
            yield segment


def _after(database: sqlite3.Connection, last: int) -> tuple[int, str, int, str | None] | None:
    """The next row that can be read.

    What lies on a damaged page cannot be; where it ends is sought in growing steps, and then closer and closer.
    """
    try:
        return _seek(database, last + 1)
    except (sqlite3.Error, msgspec.ValidationError):
        pass
    bad, step = last + 1, 1
    while step < _MAX_KEY:
        try:
            _seek(database, bad + step)
            break
        except (sqlite3.Error, msgspec.ValidationError):
            bad, step = bad + step, 2 * step
    else:
        return None
    good = bad + step
    while good - bad > 1:
        middle = (good + bad) // 2
        try:
            _seek(database, middle)
            good = middle
        except (sqlite3.Error, msgspec.ValidationError):
            bad = middle
    return _seek(database, good)


_MAX_KEY = 1 << 50


def _seek(database: sqlite3.Connection, key: int) -> tuple[int, str, int, str | None] | None:
    """The first row from there on. Raises if it makes no sense."""
    query = "SELECT key, origin, level, reason FROM segment WHERE key >= ? ORDER BY key LIMIT 1"
    row = database.execute(query, (key,)).fetchone()
    if row is None:
        return None
    found = msgspec.convert(row, tuple[int, str, int, str | None])
    if not key <= found[0] < _MAX_KEY:
        raise msgspec.ValidationError("a key that cannot be")
    return found


def _close(database: sqlite3.Connection) -> None:
    try:
        database.close()
    except sqlite3.Error:
        pass


def _draft(file: Path) -> Path:
    return file.with_name("salvaging.db")


def _mended(file: Path) -> Path:
    return file.with_name("mending.db")


def _complete(file: Path) -> Path:
    return file.with_name("salvaged.db")


def _take_place(file: Path) -> None:
    _rename(_complete(file), file)
    _sync(file.parent)


def _delete(file: Path) -> None:
    file.unlink(missing_ok=True)
    log_of(file).unlink(missing_ok=True)


def _rename(file: Path, to: Path) -> None:
    """The log first: without it a file is older, and with another's it is a mixture."""
    if log_of(file).exists():
        log_of(file).rename(log_of(to))
    file.rename(to)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
