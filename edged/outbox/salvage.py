"""Salvage of a damaged file: the file is moved out of the way, and its legible messages are saved.

The legible segments are copied to a draft beside the damaged file. The complete draft is renamed, then the damaged file
is renamed, and the copy takes its place; `finish_replacement` goes on after a power cut. Files of other programs are
moved, but never read or deleted. Every failure is raised as SegmentFileError.
"""

from __future__ import annotations

import os
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
    converted_errors,
    log_of,
    unpack,
)

KEEP_ASIDE = 3
"""Most damaged files kept, the latest ones; and most files of other programs set aside, which are never deleted."""


def finish_replacement(file: Path) -> bool:
    """Return True if the file exists, after finishing an interrupted replacement."""
    with converted_errors(file):
        _delete(_draft(file))
        _delete(_mended(file))
        if _complete(file).exists():
            if file.exists():
                set_aside(file, "damaged")
            _take_place(file)
        return file.exists()


def replace(file: Path, connect: Connect, without: Collection[int]) -> tuple[Path, Listing]:
    """Replace a damaged file by a new one with its legible segments, except these keys; return the old file's path and
    the segments saved.
    """
    with converted_errors(file):
        _delete(_draft(file))
    saved = _save(file, _draft(file), connect, without)
    try:
        with converted_errors(file):
            _rename(_draft(file), _complete(file))
            _sync(file.parent)
            aside = set_aside(file, "damaged")
            _take_place(file)
    except SegmentFileError:
        with converted_errors(file):
            _delete(_complete(file))
        raise
    return aside, saved


def set_aside(file: Path, kind: str) -> Path:
    """Move a file out of the way. The oldest damaged file is deleted to make room; for other files, SegmentFileError is
    raised.
    """
    with converted_errors(file):
        paths = [file.with_name(f"{kind}-{number}.db") for number in range(1, KEEP_ASIDE + 1)]
        free = [path for path in paths if not path.exists()]
        if not free and kind != "damaged":
            hint = f"move {kind}-*.db out of the folder, and find the program writing there"
            raise SegmentFileError(f"{file} is no spool, and {KEEP_ASIDE} such files are set aside already", hint=hint)
        aside = free[0] if free else min(paths, key=lambda path: path.stat().st_mtime)
        _delete(aside)
        _rename(file, aside)
        os.utime(aside)
    return aside


def _save(file: Path, draft: Path, connect: Connect, without: Collection[int]) -> Listing:
    saved = Listing({}, set())
    new = SegmentFile(draft, connect)
    try:
        with new.transaction():
            for segment in _legible(file, connect):
                if segment.key in without:
                    continue
                new.put(segment)
                if segment.reason is None:
                    saved.waiting[segment.key] = segment.origin, len(segment.messages)
                else:
                    saved.parked.add(segment.key)
        new.checkpoint()
    finally:
        new.close()
    return saved


def _legible(file: Path, connect: Connect) -> Iterator[Segment]:
    """Yield the legible segments by key; if the file gives none, with the first page of a new file."""
    found = False
    for segment in _read(file, connect):
        found = True
        yield segment
    if not found:
        with _with_first_page(file, connect) as copy:
            yield from _read(copy, connect)


@contextmanager
def _with_first_page(file: Path, connect: Connect) -> Iterator[Path]:
    """Copy a file, with the first page of a new file: tables are always created in one order, at the same pages."""
    copy = _mended(file)
    try:
        with converted_errors(file):
            _delete(copy)
        new_one = SegmentFile(copy, connect)
        try:
            new_one.checkpoint()
        finally:
            new_one.close()
        with converted_errors(file):
            with copy.open("rb") as new:
                header = bytearray(new.read(_PAGE))
            import shutil  # a large module, for rare damage

            header[_PAGES] = bytes(4)  # as many as the file has, then: https://www.sqlite.org/fileformat.html
            shutil.copyfile(file, copy)
            with copy.open("r+b") as mended:
                mended.write(header)
            if log_of(file).exists():
                shutil.copyfile(log_of(file), log_of(copy))
        yield copy
    finally:
        with converted_errors(file):
            _delete(copy)


_PAGE = 4096
_PAGES = slice(28, 32)
"""Place of the number of pages in the first page."""


def _read(file: Path, connect: Connect) -> Iterator[Segment]:
    database = None
    try:
        database = connect(str(file))
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA writable_schema = ON")  # otherwise SQLite refuses a truncated file
        marks = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if marks == [APPLICATION, SCHEMA]:
            yield from _walk(database)
    except (sqlite3.Error, msgspec.ValidationError):
        pass  # the rest is illegible
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
    """Return the next legible row.

    Rows on a damaged page are skipped; the end of the page is sought in growing steps, and then by bisection.
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
    """Return the first row from a key on. Raises if the row is senseless."""
    query = "SELECT key, origin, level, reason FROM segment WHERE key >= ? ORDER BY key LIMIT 1"
    row = database.execute(query, (key,)).fetchone()
    if row is None:
        return None
    found = msgspec.convert(row, tuple[int, str, int, str | None])
    if not key <= found[0] < _MAX_KEY:
        raise msgspec.ValidationError("an impossible key")
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
    """Rename a file and its log, the log first: a file without log is merely older, a file with another log is a
    mixture.
    """
    if log_of(file).exists():
        log_of(file).rename(log_of(to))
    file.rename(to)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
