"""Bytes off a wire become samples: text lines (CSV, JSON) and binary frames (sync bytes or COBS, with a CRC).

Think of three stages. A splitter cuts the byte stream into pieces, a parser turns pieces into rows, and `Decoder` turns
rows into segments of float samples in their units. Between them travels the one thing a model must never be lied to
about: where the stream was torn. A piece that is thrown away is a None among the pieces, and becomes `lost` on the
segment after it. Where samples carry a sequence number, that number alone says what was lost.

A wire may carry anything, for ever: every splitter keeps a bounded rest, everything thrown away is counted by reason in
`faults`, and nothing here raises on input. Only the options can be wrong, which is a ConfigError from the `*_decoder`
functions at the end: start reading there.
"""

import binascii
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from edged.core.errors import ConfigError, some

MAX_LINE = 16_384
MAX_FRAME = 4096
MAX_GAP = 1_000_000

_FLOAT32_MAX = float(np.finfo(np.float32).max)

Crc = Literal["none", "crc8", "crc16-ccitt", "crc16-modbus", "crc32"]
Faults = Counter[str]
Pieces = list[bytes | None]
Row = tuple[list[float], int]
T = TypeVar("T")


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a line or frame, and how it becomes real units: raw * scale + offset.

    `sequence` names the sample counter, "" for none; it starts again from zero at `modulus` (0: never). `scale` and
    `offset` are one number for all channels, or one for each.
    """

    channels: tuple[str, ...]
    sequence: str = ""
    modulus: int = 0
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0


class Segment(NamedTuple):
    """Samples of shape (n, channels) with no break among them; `lost` are missing before the first (1: unknown)."""

    samples: NDArray[Any]
    lost: int


class Run(NamedTuple):
    """Raw rows (n, channels), their sequence numbers, and whether something was thrown away before the first."""

    values: NDArray[np.float64]
    numbers: list[int]
    torn: bool


class Decoder:
    """Blocks of bytes, cut anywhere, to segments of samples; `faults` counts what was thrown away, by reason."""

    def __init__(
        self, parse: Callable[[bytes], Iterable[Run]], signal: Signal, faults: Faults, dtype: DTypeLike = np.float32
    ) -> None:
        self.faults = faults
        self._parse = parse
        self._scale = np.asarray(signal.scale, dtype=np.float64)
        self._offset = np.asarray(signal.offset, dtype=np.float64)
        self._raw = bool(np.all(self._scale == 1.0) and np.all(self._offset == 0.0))
        self._dtype = dtype
        self._continuity = Continuity(signal.modulus) if signal.sequence else None
        self._torn = False

    def decode(self, block: bytes) -> list[Segment]:
        """The samples completed by this block, in order; [] while none is."""
        segments: list[Segment] = []
        for run in self._parse(block):
            for finite in finite_runs(run if self._raw else self._in_units(run), self.faults):
                segments.extend(self._unbroken(finite))
        return segments

    def _in_units(self, run: Run) -> Run:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is sorted out next
            return run._replace(values=run.values * self._scale + self._offset)

    def _unbroken(self, run: Run) -> Iterator[Segment]:
        torn, self._torn = self._torn or run.torn, False
        if not len(run.values):
            self._torn = torn
            return
        samples = run.values.astype(self._dtype)
        if self._continuity is None:
            yield Segment(samples, int(torn))
            return
        start = 0
        lost = self._continuity.lost_before(run.numbers[0])
        for index, number in enumerate(run.numbers[1:], start=1):
            missing = self._continuity.lost_before(number)
            if missing:
                yield Segment(samples[start:index], lost)
                start, lost = index, missing
        yield Segment(samples[start:], lost)


class Continuity:
    """Counts missing samples by their sequence numbers.

    A number that stands still, goes back, or leaps further than a real gap would (half the modulus, or a million) is
    another count begun: the sensor has restarted, and how much was lost is unknown.
    """

    def __init__(self, modulus: int) -> None:
        self._modulus = modulus
        self._furthest = min(MAX_GAP, modulus // 2) if modulus else MAX_GAP
        self._previous: int | None = None

    def lost_before(self, number: int) -> int:
        """How many samples are missing between the previous number and this one; 1 when that cannot be known."""
        previous, self._previous = self._previous, number
        if previous is None:
            return 0
        step = number - previous
        if self._modulus:
            step %= self._modulus
        return step - 1 if 1 <= step <= self._furthest else 1


def finite_runs(run: Run, faults: Faults) -> Iterator[Run]:
    """The run without the rows that hold NaN, infinity or what float32 cannot hold: torn where they were.

    Rows may have any shape.
    """
    count = len(run.values)
    magnitude = np.abs(run.values)
    if not count or magnitude.max() <= _FLOAT32_MAX:  # which no NaN is
        yield run
        return
    good = (magnitude <= _FLOAT32_MAX).reshape(count, -1).all(axis=1)
    bad = np.flatnonzero(~good).tolist()
    faults["not a finite number"] += len(bad)
    start, torn = 0, run.torn
    for stop in [*bad, count]:
        yield Run(run.values[start:stop], run.numbers[start:stop], torn)
        start, torn = stop + 1, True


# Splitters: the byte stream to pieces


class Delimited:
    """Cuts at a delimiter. A piece longer than `limit` is thrown away without being kept.

    `midway` says that we may have joined in the middle of a piece: then what comes before the first delimiter is the
    tail of one, which could pass for a whole one ("1.23,4" cut to "3,4"), and is dropped.
    """

    def __init__(self, delimiter: bytes, limit: int, faults: Faults, *, midway: bool) -> None:
        self._delimiter = delimiter
        self._limit = limit
        self._faults = faults
        self._rest = b""
        self._skipping = midway

    def __call__(self, block: bytes) -> Pieces:
        """The pieces completed by this block."""
        *whole, self._rest = (self._rest + block).split(self._delimiter)
        if self._skipping and whole:
            self._skipping = False
            del whole[0]
        pieces: Pieces = [self._checked(piece) for piece in whole]
        if self._skipping:
            self._rest = b""
        elif len(self._rest) > self._limit:
            pieces.append(self._checked(self._rest))
            self._rest = b""
            self._skipping = True
        return pieces

    def _checked(self, piece: bytes) -> bytes | None:
        if len(piece) <= self._limit:
            return piece
        self._faults["too long"] += 1
        return None


class Synced:
    """Cuts frames that begin with sync bytes; each piece is a whole number of sound frames.

    While frames follow one another it only checks them. When one is not sound it hunts for the next sync bytes, and
    counts a fault for each frame's worth of bytes it passes over. Sync bytes may also occur inside a frame by chance: a
    CRC tells, and without one the first frame found is believed only when a second follows it.
    """

    def __init__(self, frame: "Frame", faults: Faults) -> None:
        self._frame = frame
        self._faults = faults
        self._rest = b""
        self._locked = False
        self._passed = -frame.size  # joining in the middle of a frame is no fault

    def __call__(self, block: bytes) -> Pieces:
        """The frames completed by this block."""
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
        while len(data) - end >= frame.size and data.startswith(frame.sync, end) and frame.sound(data, end):
            end += frame.size
        return end

    def _hunt(self, data: bytes, start: int) -> int:
        size, sync = self._frame.size, self._frame.sync
        if self._locked:
            self._locked = False
            self._faults["bad CRC" if data.startswith(sync, start) else "out of sync"] += 1
            self._passed = -size
        found = data.find(sync, start + 1)
        if found < 0:
            found = max(start + 1, len(data) - len(sync) + 1)
        self._passed += found - start
        if self._passed >= size:
            self._faults["out of sync"] += self._passed // size
            self._passed %= size
        return found


class Cobs:
    """Cuts frames stuffed with COBS, which keeps zero bytes out of them and puts one between them.

    Cheshire and Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
    """

    def __init__(self, frame: "Frame", faults: Faults) -> None:
        self._frame = frame
        self._faults = faults
        stuffed = frame.size + frame.size // 254 + 1
        self._split = Delimited(b"\0", stuffed, faults, midway=True)

    def __call__(self, block: bytes) -> Pieces:
        """The frames completed by this block, stuffing removed."""
        return [piece and self._checked(unstuffed(piece)) for piece in self._split(block) if piece != b""]

    def _checked(self, frame: bytes | None) -> bytes | None:
        if frame is None:
            self._faults["bad COBS"] += 1
        elif len(frame) != self._frame.size:
            self._faults["wrong length"] += 1
        elif not self._frame.sound(frame, 0):
            self._faults["bad CRC"] += 1
        else:
            return frame
        return None


def unstuffed(piece: bytes) -> bytes | None:
    """What a COBS piece (its zero delimiters removed) stands for; None if it is not COBS."""
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


# Parsers: pieces to rows


def stretches(pieces: Iterable[T | None]) -> Iterator[tuple[list[T], bool]]:
    """The pieces between the Nones, and whether a None came before them; the last stretch may be empty."""
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
    """One row a line, by a function that reads a line or raises `GarbageError`. Empty lines are nothing."""

    def __init__(self, split: Delimited, read: Callable[[bytes], Row], channels: int, faults: Faults) -> None:
        self._split = split
        self._read = read
        self._channels = channels
        self._faults = faults

    def __call__(self, block: bytes) -> Iterator[Run]:
        """The rows completed by this block."""
        for rows, torn in stretches(self._rows(block)):
            values = np.array([row for row, _ in rows], dtype=np.float64).reshape(-1, self._channels)
            yield Run(values, [number for _, number in rows], torn)

    def _rows(self, block: bytes) -> Iterator[Row | None]:
        for line in self._split(block):
            if line is None:
                yield None
            elif not line.isspace() and line:
                yield self._row(line)

    def _row(self, line: bytes) -> Row | None:
        try:
            return self._read(line)
        except GarbageError as garbage:
            self._faults[str(garbage)] += 1
            return None


class GarbageError(Exception):
    """A line that is none of ours, and why."""


class CsvLine:
    """Reads a line of numbers: those of `channels`, and the sequence number, out of `columns`."""

    def __init__(self, signal: Signal, columns: tuple[str, ...], separator: str) -> None:
        self._width = len(columns)
        self._separator = None if separator == " " else separator.encode()
        self._places = [columns.index(name) for name in signal.channels]
        self._counter = columns.index(signal.sequence) if signal.sequence else None

    def __call__(self, line: bytes) -> Row:
        """One row. Raises GarbageError."""
        parts = line.split(self._separator)
        if len(parts) != self._width:
            raise GarbageError("wrong number of columns")
        try:
            row = [float(parts[place]) for place in self._places]
            return row, 0 if self._counter is None else int(parts[self._counter])
        except ValueError:
            raise GarbageError("not a number") from None


class JsonLine:
    """Reads a JSON object with a key for each channel, whatever else it holds, or an array of numbers in `columns`."""

    def __init__(self, signal: Signal, columns: tuple[str, ...]) -> None:
        keys = [*signal.channels, signal.sequence] if signal.sequence else list(signal.channels)
        self._names = [f"key_{index}" for index in range(len(signal.channels))]
        fields: list[tuple[str, type]] = [(name, float) for name in self._names]
        if signal.sequence:
            fields.append(("counter", int))
        record = msgspec.defstruct("Record", fields, rename=dict(zip((n for n, _ in fields), keys, strict=True)))
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(record | list[float])
        self._width = len(columns)
        self._places = [columns.index(name) for name in signal.channels]
        self._counter = columns.index(signal.sequence) if signal.sequence else None

    def __call__(self, line: bytes) -> Row:
        """One row. Raises GarbageError."""
        try:
            found = self._decoder.decode(line)
        except msgspec.ValidationError:
            raise GarbageError("wrong JSON keys or types") from None
        except (msgspec.DecodeError, RecursionError):
            raise GarbageError("not JSON") from None
        if not isinstance(found, list):
            return [getattr(found, name) for name in self._names], getattr(found, "counter", 0)
        if len(found) != self._width:
            raise GarbageError("wrong number of columns")
        return [found[place] for place in self._places], 0 if self._counter is None else int(found[self._counter])


class Binary:
    """Rows out of frames."""

    def __init__(self, split: Callable[[bytes], Pieces], frame: "Frame") -> None:
        self._split = split
        self._frame = frame

    def __call__(self, block: bytes) -> Iterator[Run]:
        """The rows completed by this block."""
        for frames, torn in stretches(self._split(block)):
            yield self._frame.unpack(b"".join(frames), torn)


class Frame:
    """The layout of one frame: sync bytes, then a struct, then the CRC of that struct in the struct's byte order."""

    def __init__(self, signal: Signal, layout: str, fields: tuple[str, ...], sync: bytes, crc: Crc) -> None:
        body = struct.calcsize(layout)
        crc_bytes, self._crc = CRCS[crc]
        self.sync = sync
        self.size = len(sync) + body + crc_bytes
        self.has_crc = crc != "none"
        self._end = len(sync) + body
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

    def sound(self, data: bytes, start: int) -> bool:
        """Whether the CRC of the frame at `start`, which must be all there, is right."""
        if not self.has_crc:
            return True
        end = start + self._end
        stored = int.from_bytes(data[end : start + self.size], self._order)
        return self._crc(data[start + len(self.sync) : end]) == stored

    def unpack(self, frames: bytes, torn: bool) -> Run:
        """The rows of whole frames that stand side by side."""
        table = np.frombuffer(frames, dtype=self._dtype)
        values = np.empty((len(table), len(self._channels)))
        with np.errstate(invalid="ignore"):  # a signalling NaN is sorted out later, as any other
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
    """x^8 + x^2 + x + 1, from 0, as SMBus has it (CRC-8/SMBUS)."""
    table = _table(0x07, reflected=False)
    crc = 0
    for byte in data:
        crc = table[crc ^ byte]
    return crc


def crc16_modbus(data: bytes) -> int:
    """x^16 + x^15 + x^2 + 1 reflected, from 0xFFFF, as "MODBUS over Serial Line" 1.02 has it (CRC-16/MODBUS)."""
    table = _table(0xA001, reflected=True)
    crc = 0xFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def crc16_ccitt(data: bytes) -> int:
    """x^16 + x^12 + x^5 + 1, from 0xFFFF, often called CCITT-FALSE (CRC-16/IBM-3740)."""
    return binascii.crc_hqx(data, 0xFFFF)


CRCS: dict[Crc, tuple[int, Callable[[bytes], int]]] = {
    "none": (0, lambda _: 0),
    "crc8": (1, crc8),
    "crc16-ccitt": (2, crc16_ccitt),
    "crc16-modbus": (2, crc16_modbus),
    "crc32": (4, binascii.crc32),  # the one of Ethernet and zip (CRC-32/ISO-HDLC)
}


# Options: what a source's table may ask for


def csv_decoder(
    signal: Signal,
    columns: tuple[str, ...] = (),
    *,
    separator: str = ",",
    midway: bool = True,
    dtype: DTypeLike = np.float32,
) -> Decoder:
    """Lines of numbers, `columns` in their order (default: the channels). A space separates by any run of blanks.

    `midway` says that the first line may be the tail of one. Raises ConfigError.
    """
    faults = Faults()
    line = CsvLine(signal, _checked_columns(signal, columns or _default_columns(signal), "columns"), separator)
    split = Delimited(b"\n", MAX_LINE, faults, midway=midway)
    return Decoder(Text(split, line, len(signal.channels), faults), signal, faults, dtype)


def json_decoder(signal: Signal, columns: tuple[str, ...] = ()) -> Decoder:
    """JSON lines: an object with a key for each channel, or an array in the order of `columns`. Raises ConfigError."""
    faults = Faults()
    line = JsonLine(signal, _checked_columns(signal, columns or _default_columns(signal), "columns"))
    split = Delimited(b"\n", MAX_LINE, faults, midway=True)
    return Decoder(Text(split, line, len(signal.channels), faults), signal, faults)


def binary_decoder(signal: Signal, layout: str, fields: tuple[str, ...], *, sync: bytes, crc: Crc) -> Decoder:
    """Frames of one struct, each item named by `fields`; without sync bytes they are COBS. Raises ConfigError."""
    _check_layout(layout, fields)
    _checked_columns(signal, fields, "fields")
    if signal.sequence and not signal.modulus:
        signal = msgspec.structs.replace(signal, modulus=_counter_modulus(layout, fields.index(signal.sequence)))
    faults = Faults()
    frame = Frame(signal, layout, fields, sync, crc)
    split = Synced(frame, faults) if sync else Cobs(frame, faults)
    return Decoder(Binary(split, frame), signal, faults)


def _default_columns(signal: Signal) -> tuple[str, ...]:
    return (signal.sequence, *signal.channels) if signal.sequence else signal.channels


def _checked_columns(signal: Signal, columns: tuple[str, ...], option: str) -> tuple[str, ...]:
    if not signal.channels:
        raise ConfigError("channels is empty", hint='name what is measured, e.g. channels = ["ax", "ay", "az"]')
    for what, names in (("channels", signal.channels), (option, columns)):
        for name, count in Counter(names).items():
            if count > 1:
                raise ConfigError(f"{what} names {name!r} {count} times", hint="give each its own name")
    for name in (*signal.channels, *filter(None, [signal.sequence])):
        if name not in columns:
            raise ConfigError(f"{name!r} is not in {option}", hint=f"{option} has {some(columns) or 'nothing'}")
    if signal.sequence in signal.channels:
        raise ConfigError(f"sequence {signal.sequence!r} is also a channel", hint="take it out of channels")
    for what, given in (("scale", signal.scale), ("offset", signal.offset)):
        if isinstance(given, tuple) and len(given) != len(signal.channels):
            raise ConfigError(
                f"{what} has {len(given)} numbers for {len(signal.channels)} channels",
                hint="give one number, or one for each channel",
            )
        if not np.all(np.abs(given) <= _FLOAT32_MAX):
            raise ConfigError(f"{what} is not finite", hint="give ordinary numbers")
    if signal.modulus == 1 or signal.modulus < 0:
        raise ConfigError(f"sequence_modulus is {signal.modulus}", hint="a byte's is 256; 0 means it never wraps")
    return columns


_NUMPY_CODES = {"b": "i1", "h": "i2", "i": "i4", "l": "i4", "q": "i8", "e": "f2", "f": "f4", "d": "f8"}
_NUMPY_CODES |= {code.upper(): f"u{name[1]}" for code, name in _NUMPY_CODES.items() if name[0] == "i"}
_LAYOUT = re.compile(rf"[<>!](\d{{0,4}}[x{''.join(_NUMPY_CODES)}])+")


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
    """numpy's formats and the offsets of a layout's items."""
    order = "<" if layout[0] == "<" else ">"
    formats: list[str] = []
    offsets: list[int] = []
    offset = 0
    for count, code in re.findall(r"(\d*)(\w)", layout):
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
