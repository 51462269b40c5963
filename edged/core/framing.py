"""Decoding of bytes into samples: text lines (CSV, JSON) and binary frames (sync bytes or COBS, with a CRC).

Decoding has three stages. A splitter cuts the byte stream into pieces, a parser turns pieces into rows, and `Decoder`
turns rows into segments of float samples in units. Every stage passes on the gaps in the stream, since a model must
not see samples joined across a gap: a discarded piece is None among the pieces, and becomes `lost` in the next segment.
If samples carry a sequence number, only this number determines losses.

Foreign lines (comments, headers, other sentences of a talker) are ignored and cause no gap. Input may be arbitrary and
endless: every splitter keeps a bounded remainder, discarded input is counted by reason in `faults`, and no input raises
an error. Wrong options raise ConfigError in the `*_decoder` functions at the end of this file; start reading there.
"""

import binascii
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, reduce
from math import hypot
from operator import xor
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.core.errors import ConfigError, quantity, some
from edged.core.types import MAX_SHOWN, Obstacle

MAX_LINE = 16_384
MAX_FRAME = 4096
MAX_GAP = 1_000_000

_FLOAT32_MAX = float(np.finfo(np.float32).max)

_ORDINARY = 1e38
"""Length of a row below which all its values are certainly finite in float32."""

Crc = Literal["none", "crc8", "crc16-ccitt", "crc16-modbus", "crc32", "sum8", "sum8-negated", "sum16", "xor8"]
Pieces = list[bytes | None]
DecodedRow = tuple[list[float], int]
FloatType = type[np.float32] | type[np.float64]
T = TypeVar("T")


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """Wanted columns of a line or frame, and their conversion to units: raw * scale + offset.

    `sequence` names the sample counter, "" for none; the counter wraps to zero at `modulus` (0: never). `scale` and
    `offset` are one number for all channels, or one for each.
    """

    channels: tuple[str, ...]
    sequence: str = ""
    modulus: int = 0
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    """Rules for lines: the line end, and the selection of lines.

    `end` ends a line; if empty, CR, LF or both. A line is ignored if it begins with a string of `comment`, begins with
    no string of `prefix` (unless empty), or has other values in columns or keys than `select`. With `nmea`, a line ends
    in `*` and the checksum of the text between `$` and `*`.
    """

    end: bytes = b""
    comment: tuple[str, ...] = ("#",)
    prefix: tuple[str, ...] = ()
    select: dict[str, str] = {}
    nmea: bool = False


class Faults(Counter[str]):
    """Counts of discarded input by reason; `last` is the latest discarded input, escaped, with details if any."""

    last: str = ""

    def count(self, reason: str, thrown_away: bytes, detail: str = "") -> None:
        """Count a discarded piece."""
        self[reason] += 1
        self.last = f"{detail}: {escaped(thrown_away)}" if detail else escaped(thrown_away)


def escaped(data: bytes) -> str:
    """Return the beginning of a piece of input in printable characters, and the length of a piece that is cut off."""
    text = repr(data[:_MAX_ESCAPED])[2:-1]
    is_whole = len(data) <= _MAX_ESCAPED and len(text) <= _MAX_ESCAPED
    return text if is_whole else f"{text[:_MAX_ESCAPED]}... ({len(data)} bytes)"


_MAX_ESCAPED = 200


class Stretch(msgspec.Struct, frozen=True, gc=False):
    """Samples of shape (n, channels) without a gap; `lost` are missing before the first (1: unknown number)."""

    samples: NDArray[Any]
    lost: int


class Run(NamedTuple):
    """Raw rows (n, channels), their sequence numbers, and whether input was discarded before the first row."""

    values: NDArray[np.float64]
    numbers: list[int]
    torn: bool


class Parser(Protocol[T]):
    """Splitter and parser of one format. A piece is a part of the input that holds rows; None is a discarded part."""

    @property
    def obstacle(self) -> Obstacle | None:
        """Reason for the absence of pieces, if not among the faults."""

    def pieces(self, block: bytes) -> list[T | None]:
        """Return the pieces completed by this block."""

    def row(self, piece: T) -> DecodedRow | None:
        """Return the row of a piece; None if the piece holds several."""

    def runs(self, pieces: list[T | None]) -> Iterator[Run]:
        """Yield the rows of the pieces."""


class Decoder:
    """Decoder of blocks of bytes, cut anywhere, into segments of samples; `faults` counts discarded input by reason.

    Most sensors send a sample at a time, and calls of numpy cost more than such a sample. `_single` decodes an ordinary
    sample without them; any other input takes the way of `_segments`, which holds all the rules.
    """

    def __init__(self, parse: Parser[Any], signal: Signal, faults: Faults, dtype: FloatType = np.float32) -> None:
        self.faults = faults
        self._parse = parse
        self._scale = np.asarray(signal.scale, dtype=np.float64)
        self._offset = np.asarray(signal.offset, dtype=np.float64)
        self._raw = bool(np.all(self._scale == 1.0) and np.all(self._offset == 0.0))
        count = len(signal.channels)
        self._units = list(
            zip(
                np.broadcast_to(self._scale, count).tolist(), np.broadcast_to(self._offset, count).tolist(), strict=True
            )
        )
        self._dtype = dtype
        self._continuity = Continuity(signal.modulus) if signal.sequence else None
        self._torn = False

    def decode(self, block: bytes) -> list[Stretch]:
        """Return the samples completed by this block, in order."""
        pieces = self._parse.pieces(block)
        if len(pieces) == 1 and (single := self._single(pieces[0])):
            return [single]
        return self._segments(pieces) if pieces else []

    def _single(self, piece: Any) -> Stretch | None:
        row = None if piece is None else self._parse.row(piece)
        if row is None:
            return None
        values, number = row
        if not self._raw:
            values = [value * scale + offset for value, (scale, offset) in zip(values, self._units, strict=True)]
        if not hypot(*values) < _ORDINARY:  # true for NaN
            return None
        torn, self._torn = self._torn, False
        lost = int(torn) if self._continuity is None else self._continuity.lost_before(number)
        return Stretch(np.array((values,), self._dtype), lost)

    def _segments(self, pieces: list[Any]) -> list[Stretch]:
        segments: list[Stretch] = []
        for run in self._parse.runs(pieces):
            for finite in finite_runs(run if self._raw else self._in_units(run), self.faults):
                segments.extend(self._unbroken(finite))
        return segments

    @property
    def obstacle(self) -> Obstacle | None:
        """Reason for the absence of samples, if not among the faults."""
        return self._parse.obstacle

    def _in_units(self, run: Run) -> Run:
        with np.errstate(over="ignore", invalid="ignore"):  # finite_runs removes values that are not finite
            return run._replace(values=run.values * self._scale + self._offset)

    def _unbroken(self, run: Run) -> Iterator[Stretch]:
        torn, self._torn = self._torn or run.torn, False
        if not len(run.values):
            self._torn = torn
            return
        samples = run.values.astype(self._dtype)
        if self._continuity is None:
            yield Stretch(samples, int(torn))
            return
        start = 0
        lost = self._continuity.lost_before(run.numbers[0])
        for index, number in enumerate(run.numbers[1:], start=1):
            missing = self._continuity.lost_before(number)
            if missing:
                yield Stretch(samples[start:index], lost)
                start, lost = index, missing
        yield Stretch(samples[start:], lost)


class Continuity:
    """Count of missing samples by sequence numbers.

    A number that stands still, goes back, or leaps further than a real gap (half the modulus, or a million) begins a
    new count: the sensor has restarted, and the number of lost samples is unknown.
    """

    def __init__(self, modulus: int) -> None:
        self._modulus = modulus
        self._furthest = min(MAX_GAP, modulus // 2) if modulus else MAX_GAP
        self._previous: int | None = None

    def lost_before(self, number: int) -> int:
        """Return the number of samples missing between the previous number and this number; 1 if unknown."""
        previous, self._previous = self._previous, number
        if previous is None:
            return 0
        step = number - previous
        if self._modulus:
            step %= self._modulus
        return step - 1 if 1 <= step <= self._furthest else 1


def finite_runs(run: Run, faults: Faults) -> Iterator[Run]:
    """Remove rows with NaN, infinity or values beyond float32, and split the run at the gaps.

    Rows may have any shape.
    """
    count = len(run.values)
    magnitude = np.abs(run.values)
    if not count or magnitude.max() <= _FLOAT32_MAX:  # false for NaN
        yield run
        return
    good = (magnitude <= _FLOAT32_MAX).reshape(count, -1).all(axis=1)
    bad = np.flatnonzero(~good).tolist()
    faults["not a finite number"] += len(bad)
    faults.last = " ".join(f"{value:g}" for value in run.values[bad[-1]].ravel()[:8].tolist())[:MAX_SHOWN]
    start, torn = 0, run.torn
    for stop in [*bad, count]:
        yield Run(run.values[start:stop], run.numbers[start:stop], torn)
        start, torn = stop + 1, True


# Splitters: from the byte stream to pieces


class Delimited:
    """Splitter at a delimiter. A piece longer than `limit` is discarded without being stored.

    `midway` means that the stream may begin in the middle of a piece: the bytes before the first delimiter are then a
    fragment, which could pass for a whole piece ("1.23,4" cut to "3,4"), and are discarded.
    """

    def __init__(self, delimiter: bytes, limit: int, faults: Faults, *, midway: bool) -> None:
        """Set up for a delimiter; an empty `delimiter` splits lines at CR, LF or both."""
        self.unended = 0
        """Number of bytes since the last delimiter."""
        self.ended = False
        """True after the first delimiter."""
        self._lines = not delimiter
        self._delimiter = delimiter or b"\n"
        self._limit = limit
        self._faults = faults
        self._rest = b""
        self._skipping = midway

    def __call__(self, block: bytes) -> Pieces:
        """Return the pieces completed by this block."""
        if self._lines:
            block = block.replace(b"\r", b"\n")
        data = self._rest + block
        whole = data.split(self._delimiter)
        self._rest = whole.pop()
        if whole:
            self.ended = True
            self.unended = len(self._rest)
        else:
            self.unended += len(block)
        if self._skipping and whole:
            self._skipping = False
            del whole[0]
        if len(data) <= self._limit and not self._skipping:
            return [*whole]
        pieces: Pieces = [piece if len(piece) <= self._limit else self._too_long(piece) for piece in whole]
        if not self._skipping and len(self._rest) > self._limit:
            pieces.append(self._too_long(self._rest))
            self._skipping = True
        if self._skipping:  # the delimiter may have arrived in part
            self._rest = self._rest[len(self._rest) - len(self._delimiter) + 1 :]
        return pieces

    def _too_long(self, piece: bytes) -> bytes | None:
        self._faults.count("too long", piece)
        return None


class Synced:
    """Splitter for frames that begin with sync bytes; each piece is a whole number of valid frames.

    While frames follow each other, they are only checked. After an invalid frame the splitter searches for the next
    sync bytes, and counts a fault for each frame's worth of skipped bytes. Sync bytes may also occur inside a frame by
    chance: a CRC detects this; without a CRC, the first frame found is valid only if a second frame follows.
    """

    def __init__(self, frame: "Frame", faults: Faults) -> None:
        self._frame = frame
        self._faults = faults
        self._rest = b""
        self._locked = False
        self._passed = -frame.size  # a start in the middle of a frame is no fault

    def __call__(self, block: bytes) -> Pieces:
        """Return the frames completed by this block."""
        data = self._rest + block
        pieces: Pieces = []
        start = 0
        while True:
            end = self._sound_until(data, start)
            if end > start:
                pieces.append(data[start:end])
                self._locked = True
            if len(data) - end < self._needed():
                break
            start = self._hunt(data, end)
            pieces.append(None)
        self._rest = data[end:]
        return pieces

    def _needed(self) -> int:
        return self._frame.size if self._believable() else self._frame.size + len(self._frame.sync)

    def _believable(self) -> bool:
        return self._locked or self._frame.has_crc

    def _sound_until(self, data: bytes, start: int) -> int:
        frame = self._frame
        if not (self._believable() or data.startswith(frame.sync, start + frame.size)):
            return start
        end = start
        while len(data) - end >= frame.size and not frame.fault(data, end):
            end += frame.size
        return end

    def _hunt(self, data: bytes, start: int) -> int:
        size, sync = self._frame.size, self._frame.sync
        if self._locked:
            self._locked = False
            self._faults.count(self._frame.fault(data, start), data[start : start + size])
            self._passed = -size
        found = data.find(sync, start + 1)
        if found < 0:
            found = max(start + 1, len(data) - len(sync) + 1)
        self._passed += found - start
        if self._passed >= size:
            self._faults["out of sync"] += self._passed // size
            self._faults.last = escaped(data[max(start, found - size) : found])
            self._passed %= size
        return found


class Cobs:
    """Splitter for COBS frames, which hold no zero bytes and are separated by zero bytes.

    Cheshire and Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
    """

    def __init__(self, frame: "Frame", faults: Faults) -> None:
        self._frame = frame
        self._faults = faults
        stuffed = frame.size + frame.size // 254 + 1
        self.split = Delimited(b"\0", stuffed, faults, midway=True)

    def __call__(self, block: bytes) -> Pieces:
        """Return the frames completed by this block, decoded."""
        return [piece and self._checked(piece) for piece in self.split(block) if piece != b""]

    def _checked(self, piece: bytes) -> bytes | None:
        frame = unstuffed(piece)
        if frame is None:
            fault = "bad COBS"
        elif len(frame) != self._frame.size:
            fault = "wrong length"
        else:
            fault = self._frame.fault(frame, 0)
        if fault:
            self._faults.count(fault, piece)
            return None
        return frame


def unstuffed(piece: bytes) -> bytes | None:
    """Return the decoded content of a COBS piece without delimiters; None if the piece is not COBS."""
    out = bytearray()
    start = 0
    while start < len(piece):
        code = piece[start]
        end = start + code
        if code == 0 or end > len(piece):
            return None
        out += piece[start + 1 : end]
        if code < 255 and end < len(piece):
            out.append(0)
        start = end
    return bytes(out)


# Parsers: from pieces to rows


def stretches(pieces: Iterable[T | None]) -> Iterator[tuple[list[T], bool]]:
    """Yield the pieces between Nones, and whether a None preceded them; the last list may be empty."""
    whole: list[T] = []
    torn = False
    for piece in pieces:
        if piece is not None:
            whole.append(piece)
            continue
        if whole:
            yield whole, torn
            whole = []
        torn = True
    yield whole, torn


class Text:
    """Parser for one row per line, by functions that read a line or raise `GarbageError`. Empty lines are ignored.

    `pick` removes the parts of a line that are not for `read`; both return None for a line to be ignored.
    """

    def __init__(
        self,
        split: Delimited,
        pick: Callable[[bytes], bytes | None],
        read: Callable[[bytes], DecodedRow | None],
        channels: int,
        faults: Faults,
    ) -> None:
        self._split = split
        self._pick = pick
        self._read = read
        self._channels = channels
        self._faults = faults
        self._passed_over = 0

    def pieces(self, block: bytes) -> list[DecodedRow | None]:
        """Return the rows completed by this block."""
        rows: list[DecodedRow | None] = []
        for line in self._split(block):
            if line is None:
                rows.append(None)
                continue
            if line.isspace() or not line:
                continue
            try:
                picked = self._pick(line)
                row = None if picked is None else self._read(picked)
            except GarbageError as garbage:
                self._faults.count(garbage.reason, line, garbage.detail)
                self._passed_over = 0
                rows.append(None)
                continue
            if row is None:
                self._passed_over += 1
            else:
                self._passed_over = 0
                rows.append(row)
        return rows

    def row(self, piece: DecodedRow) -> DecodedRow:
        """Return the row."""
        return piece

    def runs(self, pieces: list[DecodedRow | None]) -> Iterator[Run]:
        """Yield the rows between the gaps."""
        for rows, torn in stretches(pieces):
            values = np.array([row for row, _ in rows], dtype=np.float64).reshape(-1, self._channels)
            yield Run(values, [number for _, number in rows], torn)

    @property
    def obstacle(self) -> Obstacle | None:
        """Reason for the absence of rows: lines do not end, or all lines are ignored."""
        if self._passed_over:
            return Obstacle(
                f"{self._passed_over} lines arrived, and all were ignored", "check comment, prefix and select"
            )
        return no_end(self._split, "line", "set end to the line end in hexadecimal, and check baud")


def no_end(split: Delimited, what: str, hint: str) -> Obstacle | None:
    """Return the obstacle that bytes arrive without an end of a line or frame, else None."""
    if not split.unended or (split.ended and split.unended < _LONG):
        return None
    return Obstacle(f"{split.unended} bytes arrived without an end of a {what}", hint)


_LONG = 256
"""Number of bytes without an end that is suspicious even after earlier ends."""


class GarbageError(Exception):
    """A line is invalid, for one of a few reasons; `detail` is of this line."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def _wrong_width(found: int, expected: int) -> GarbageError:
    return GarbageError("wrong number of columns", f"{quantity(found, 'column')} instead of {expected}")


class Picked:
    """Selection of lines, and removal of prefix and checksum. A line with control characters is damaged."""

    def __init__(self, lines: Lines) -> None:
        self._comment = tuple(text.encode() for text in lines.comment)
        self._prefix = tuple(text.encode() for text in lines.prefix)
        self._nmea = lines.nmea

    def __call__(self, line: bytes) -> bytes | None:
        """Return the part of a line to read, or None for a line to be ignored. Raises GarbageError."""
        if self._comment and line.lstrip().startswith(self._comment) and is_text(line):
            return None
        if self._nmea:
            line = _without_checksum(line)
        if not self._prefix:
            return line
        for prefix in self._prefix:
            if line.startswith(prefix):
                return line[len(prefix) :]
        _refuse_damaged(line)
        return None


def is_text(line: bytes) -> bool:
    """Return whether a line is printable, perhaps in colours (ESC), as lines printed on purpose are."""
    try:
        return line.translate(None, b"\t\x1b").decode().strip().isprintable()
    except UnicodeDecodeError:
        return False


def _refuse_damaged(line: bytes) -> None:
    """Raise GarbageError for a foreign line that may be a damaged line of data."""
    if not is_text(line):
        raise GarbageError("not text")


_NMEA = re.compile(rb"([$!]([^*]*))\*([0-9A-Fa-f]{2})")


def _without_checksum(line: bytes) -> bytes:
    found = _NMEA.fullmatch(line.strip())
    if found is None:
        raise GarbageError("no NMEA checksum")
    if xor8(found[2]) != int(found[3], 16):
        raise GarbageError("bad NMEA checksum")
    return found[1]


class CsvLine:
    """Reader for a line of numbers in `columns`: the channels, and the sequence number.

    A line that repeats the names of the columns is ignored.
    """

    def __init__(self, signal: Signal, columns: tuple[str, ...], separator: str, select: dict[str, str]) -> None:
        self._width = len(columns)
        self._separator = None if separator == " " else separator.encode()
        self._names = [name.encode() for name in columns]
        self._places = [columns.index(name) for name in signal.channels]
        self._counter = columns.index(signal.sequence) if signal.sequence else None
        self._numbers = self._places if self._counter is None else [*self._places, self._counter]
        self._select = [(columns.index(name), value.encode()) for name, value in select.items()]

    def __call__(self, line: bytes) -> DecodedRow | None:
        """Return one row, or None. Raises GarbageError."""
        parts = line.split(self._separator)
        for place, value in self._select:
            if place < len(parts) and parts[place].strip() != value:
                _refuse_damaged(line)
                return None
        if len(parts) != self._width:
            raise _wrong_width(len(parts), self._width)
        try:
            if b"_" in line and any(b"_" in parts[place] for place in self._numbers):
                raise ValueError  # to Python, 1_0 is 10
            row = list(map(float, map(parts.__getitem__, self._places)))
            return row, 0 if self._counter is None else int(parts[self._counter])
        except ValueError:
            if [part.strip(b' "\t') for part in parts] == self._names:
                return None
            raise GarbageError("not a number") from None


class JsonLine:
    """Reader for a JSON object with a key for each channel and any other keys, or an array of numbers in `columns`."""

    def __init__(self, signal: Signal, columns: tuple[str, ...], select: dict[str, str]) -> None:
        keys = [*signal.channels, signal.sequence] if signal.sequence else list(signal.channels)
        self._names = [f"key_{index}" for index in range(len(signal.channels))]
        fields: list[tuple[str, type]] = [(name, float) for name in self._names]
        if signal.sequence:
            fields.append(("counter", int))
        record = msgspec.defstruct("Record", fields, rename=dict(zip((n for n, _ in fields), keys, strict=True)))
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(record | list[float])
        self._objects: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
        self._width = len(columns)
        self._places = [columns.index(name) for name in signal.channels]
        self._counter = columns.index(signal.sequence) if signal.sequence else None
        self._quoted = [b'"%b"' % key.encode() for key in keys]
        self._select = select

    def __call__(self, line: bytes) -> DecodedRow | None:
        """Return one row, or None. Raises GarbageError."""
        try:
            if self._select and self._is_other(self._objects.decode(line)):
                return None
            found = self._decoder.decode(line)
        except msgspec.ValidationError:
            raise GarbageError("wrong JSON keys or types") from None
        except (msgspec.DecodeError, RecursionError):
            raise GarbageError("not JSON") from None
        if not isinstance(found, list):
            if (b"\\" in line or any(line.count(key) > 1 for key in self._quoted)) and _has_key_twice(line):
                raise GarbageError("a JSON key twice")
            return [getattr(found, name) for name in self._names], getattr(found, "counter", 0)
        if len(found) != self._width:
            raise _wrong_width(len(found), self._width)
        number = 0 if self._counter is None else found[self._counter]
        if number % 1:
            raise GarbageError("wrong JSON keys or types")
        return [found[place] for place in self._places], int(number)

    def _is_other(self, found: Any) -> bool:
        if not isinstance(found, dict):
            return False
        given = {key: found.get(key) for key in self._select}
        return any(
            (item if isinstance(item, str) else json.dumps(item)) != self._select[key] for key, item in given.items()
        )


def _has_key_twice(line: bytes) -> bool:
    """Return whether the outermost object repeats a key, or the line is unreadable: msgspec takes the last value."""
    keys: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        keys[:] = [key for key, _ in pairs]  # the outermost object is the last to be complete

    try:
        json.loads(line, object_pairs_hook=keep)
    except (ValueError, RecursionError):  # endless numbers or nesting in other keys
        return True
    return len(set(keys)) < len(keys)


class Binary:
    """Parser for rows in frames."""

    def __init__(self, split: "Synced | Cobs", frame: "Frame") -> None:
        self._split = split
        self._frame = frame

    def pieces(self, block: bytes) -> Pieces:
        """Return the frames completed by this block."""
        return self._split(block)

    def row(self, piece: bytes) -> DecodedRow | None:
        """Return the row of a single frame."""
        return self._frame.row(piece) if len(piece) == self._frame.size else None

    def runs(self, pieces: Pieces) -> Iterator[Run]:
        """Yield the rows between the gaps."""
        for frames, torn in stretches(pieces):
            yield self._frame.unpack(b"".join(frames), torn)

    @property
    def obstacle(self) -> Obstacle | None:
        """Reason for the absence of rows: frames do not end."""
        if isinstance(self._split, Synced):  # skipped bytes are counted as "out of sync"
            return None
        return no_end(self._split.split, "frame", "COBS ends each frame with a zero byte: check cobs and baud")


class Checksum(msgspec.Struct, frozen=True, kw_only=True):
    """Checks of a frame: the checksum `crc` after the struct, and the bytes `end` after the checksum.

    The checksum covers the bytes of the frame from the first number of `range` up to the second, exclusive; without a
    range, the struct.
    """

    crc: Crc = "none"
    range: tuple[int, int] | None = None
    end: bytes = b""


class Frame:
    """Layout of a frame: sync bytes, a struct, a checksum in the struct's byte order, and constant bytes."""

    def __init__(self, signal: Signal, layout: str, fields: tuple[str, ...], sync: bytes, check: Checksum) -> None:
        crc_bytes, self._crc = CRCS[check.crc]
        self.sync = sync
        self.has_crc = check.crc != "none"
        self._crc_at = len(sync) + struct.calcsize(layout)
        self._end_at = self._crc_at + crc_bytes
        self._first, self._last = check.range or (len(sync), self._crc_at)
        self._end = check.end
        self.size = self._end_at + len(check.end)
        self._order: Literal["little", "big"] = "little" if layout[0] == "<" else "big"
        formats, offsets = _items(layout)
        self._dtype = np.dtype(
            {
                "names": list(fields),
                "formats": formats,
                "offsets": [len(sync) + offset for offset in offsets],
                "itemsize": self.size,
            }
        )
        self._channels = signal.channels
        self._sequence = signal.sequence
        self._struct = struct.Struct(f"{layout[0]}{len(sync)}x{layout[1:]}{self.size - self._crc_at}x")
        self._places = [fields.index(name) for name in signal.channels]
        self._counter = fields.index(signal.sequence) if signal.sequence else None

    def fault(self, data: bytes, start: int) -> str:
        """Return the fault of the complete frame at `start`, or ""."""
        if not data.startswith(self.sync, start):
            return "out of sync"
        if not data.startswith(self._end, start + self._end_at):
            return "bad end"
        stored = int.from_bytes(data[start + self._crc_at : start + self._end_at], self._order)
        if self.has_crc and self._crc(data[start + self._first : start + self._last]) != stored:
            return "bad CRC"
        return ""

    def row(self, frame: bytes) -> DecodedRow:
        """Return the row of one frame."""
        items = self._struct.unpack(frame)
        return [items[place] for place in self._places], 0 if self._counter is None else items[self._counter]

    def unpack(self, frames: bytes, torn: bool) -> Run:
        """Return the rows of concatenated frames."""
        table = np.frombuffer(frames, dtype=self._dtype)
        values = np.empty((len(table), len(self._channels)))
        with np.errstate(invalid="ignore"):  # finite_runs removes signalling NaNs later
            for column, name in enumerate(self._channels):
                values[:, column] = table[name]
        return Run(values, table[self._sequence].tolist() if self._sequence else [], torn)


# Checksums. The names in brackets are those of the RevEng catalogue of parametrised CRC algorithms.


@cache
def _table(polynomial: int, *, reflected: bool) -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            if reflected:
                value = (value >> 1) ^ (polynomial if value & 1 else 0)
            else:
                value = (value << 1 & 0xFF) ^ (polynomial if value & 0x80 else 0)
        return value

    return tuple(entry(value) for value in range(256))


def crc8(data: bytes) -> int:
    """Return the CRC by x^8 + x^2 + x + 1, from 0, as in SMBus (CRC-8/SMBUS)."""
    table = _table(0x07, reflected=False)
    crc = 0
    for byte in data:
        crc = table[crc ^ byte]
    return crc


def crc16_modbus(data: bytes) -> int:
    """Return the CRC by x^16 + x^15 + x^2 + 1 reflected, from 0xFFFF, as in Modbus serial 1.02 (CRC-16/MODBUS)."""
    table = _table(0xA001, reflected=True)
    crc = 0xFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def crc16_ccitt(data: bytes) -> int:
    """Return the CRC by x^16 + x^12 + x^5 + 1, from 0xFFFF, often called CCITT-FALSE (CRC-16/IBM-3740)."""
    return binascii.crc_hqx(data, 0xFFFF)


def sum8(data: bytes) -> int:
    """Return the lowest byte of the sum of all bytes."""
    return sum(data) & 0xFF


def sum8_negated(data: bytes) -> int:
    """Return the byte that makes the sum of all bytes zero."""
    return -sum(data) & 0xFF


def sum16(data: bytes) -> int:
    """Return the lowest two bytes of the sum of all bytes."""
    return sum(data) & 0xFFFF


def xor8(data: bytes) -> int:
    """Return the exclusive or of all bytes."""
    return reduce(xor, data, 0)


CRCS: dict[Crc, tuple[int, Callable[[bytes], int]]] = {
    "none": (0, lambda _: 0),
    "crc8": (1, crc8),
    "crc16-ccitt": (2, crc16_ccitt),
    "crc16-modbus": (2, crc16_modbus),
    "crc32": (4, binascii.crc32),  # as in Ethernet and zip (CRC-32/ISO-HDLC)
    "sum8": (1, sum8),
    "sum8-negated": (1, sum8_negated),
    "sum16": (2, sum16),
    "xor8": (1, xor8),
}


# Decoders for the options of a source

ANY_LINES = Lines()
UNCHECKED = Checksum()


def csv_decoder(
    signal: Signal,
    columns: tuple[str, ...] = (),
    *,
    separator: str = ",",
    lines: Lines = ANY_LINES,
    midway: bool = True,
    dtype: FloatType = np.float32,
) -> Decoder:
    """Return a decoder for lines of numbers in `columns` (default: the channels).

    A space as separator stands for any run of blanks. `midway` means that the first line may be a fragment. Raises
    ConfigError.
    """
    columns = _checked_columns(signal, columns or _default_columns(signal), "columns")
    for name in lines.select:
        if name not in columns:
            raise ConfigError(f"select names {name!r}", hint=f"columns has {', '.join(columns)}")
    return _text_decoder(signal, CsvLine(signal, columns, separator, lines.select), lines, midway=midway, dtype=dtype)


def json_decoder(signal: Signal, columns: tuple[str, ...] = (), *, lines: Lines = ANY_LINES) -> Decoder:
    """Return a decoder for JSON lines: objects with a key for each channel, or arrays in the order of `columns`.

    Raises ConfigError.
    """
    columns = _checked_columns(signal, columns or _default_columns(signal), "columns")
    return _text_decoder(signal, JsonLine(signal, columns, lines.select), lines)


def _text_decoder(
    signal: Signal,
    read: Callable[[bytes], DecodedRow | None],
    lines: Lines,
    *,
    midway: bool = True,
    dtype: FloatType = np.float32,
) -> Decoder:
    faults = Faults()
    split = Delimited(lines.end, MAX_LINE, faults, midway=midway)
    return Decoder(Text(split, Picked(lines), read, len(signal.channels), faults), signal, faults, dtype)


def binary_decoder(
    signal: Signal, layout: str, fields: tuple[str, ...], *, sync: bytes, check: Checksum = UNCHECKED
) -> Decoder:
    """Return a decoder for frames of one struct with items named by `fields`; without sync bytes, for COBS frames.

    Raises ConfigError.
    """
    _check_layout(layout, fields)
    _checked_columns(signal, fields, "fields")
    _check_range(check, len(sync) + struct.calcsize(layout))
    if signal.sequence and not signal.modulus:
        signal = msgspec.structs.replace(signal, modulus=_counter_modulus(layout, fields.index(signal.sequence)))
    faults = Faults()
    frame = Frame(signal, layout, fields, sync, check)
    split = Synced(frame, faults) if sync else Cobs(frame, faults)
    return Decoder(Binary(split, frame), signal, faults)


def _check_range(check: Checksum, size: int) -> None:
    if check.range is None:
        return
    if check.crc == "none":
        raise ConfigError(
            "crc_range has no effect without crc", hint="set crc to the kind of checksum, or delete crc_range"
        )
    first, last = check.range
    if not 0 <= first < last <= size:
        raise ConfigError(
            f"crc_range is {first} to {last}", hint=f"give two numbers from 0 to {size}, the position of the checksum"
        )


def _default_columns(signal: Signal) -> tuple[str, ...]:
    return (signal.sequence, *signal.channels) if signal.sequence else signal.channels


def _checked_columns(signal: Signal, columns: tuple[str, ...], option: str) -> tuple[str, ...]:
    if not signal.channels:
        raise ConfigError("channels is empty", hint='name the measured values, e.g. channels = ["ax", "ay", "az"]')
    for what, names in (("channels", signal.channels), (option, columns)):
        for name, count in Counter(names).items():
            if count > 1:
                raise ConfigError(f"{what} names {name!r} {count} times", hint="make the names unique")
    for name in (*signal.channels, *filter(None, [signal.sequence])):
        if name not in columns:
            raise ConfigError(f"{name!r} is not in {option}", hint=f"{option} has {some(columns) or 'nothing'}")
    if signal.sequence in signal.channels:
        raise ConfigError(f"sequence {signal.sequence!r} is also a channel", hint="delete the name from channels")
    for what, given in (("scale", signal.scale), ("offset", signal.offset)):
        if isinstance(given, tuple) and len(given) != len(signal.channels):
            raise ConfigError(
                f"{what} has {len(given)} numbers for {len(signal.channels)} channels",
                hint="give one number, or one for each channel",
            )
        if not np.all(np.abs(given) <= _FLOAT32_MAX):
            raise ConfigError(f"{what} is not finite", hint="give ordinary numbers")
    if signal.modulus == 1 or signal.modulus < 0:
        raise ConfigError(f"sequence_modulus is {signal.modulus}", hint="use 256 for a byte, or 0 for no wrapping")
    return columns


_NUMPY_CODES = {"b": "i1", "h": "i2", "i": "i4", "l": "i4", "q": "i8", "e": "f2", "f": "f4", "d": "f8"}
_NUMPY_CODES |= {code.upper(): f"u{name[1]}" for code, name in _NUMPY_CODES.items() if name[0] == "i"}
_LAYOUT = re.compile(rf"[<>!]([0-9]{{0,4}}[x{''.join(_NUMPY_CODES)}])+")


def _check_layout(layout: str, fields: tuple[str, ...]) -> None:
    if len(layout) > 1000 or not _LAYOUT.fullmatch(layout):
        raise ConfigError(
            f"struct {layout[:100]!r} is not a layout",
            hint=f'begin with < or > for the byte order, then {" ".join(_NUMPY_CODES)}, or x for padding: "<H6h"',
        )
    if not 1 <= struct.calcsize(layout) <= MAX_FRAME:
        raise ConfigError(f"struct {layout!r} has {struct.calcsize(layout)} bytes", hint=f"1 to {MAX_FRAME} are read")
    items = len(_items(layout)[0])
    if items != len(fields):
        raise ConfigError(
            f"struct {layout!r} has {items} items, fields names {len(fields)}", hint="name every item, in order"
        )


def _items(layout: str) -> tuple[list[str], list[int]]:
    """Return numpy's formats and the offsets of a layout's items."""
    order = "<" if layout[0] == "<" else ">"
    formats: list[str] = []
    offsets: list[int] = []
    offset = 0
    for count, code in re.findall(r"([0-9]*)(\w)", layout):
        for _ in range(int(count or 1)):
            if code != "x":
                formats.append(order + _NUMPY_CODES[code])
                offsets.append(offset)
            offset += struct.calcsize(order + code)
    return formats, offsets


def _counter_modulus(layout: str, index: int) -> int:
    counter = np.dtype(_items(layout)[0][index])
    if counter.kind == "f":
        raise ConfigError("sequence names a floating-point field", hint="a sample counter is an integer")
    return 1 << (8 * counter.itemsize)
