"""Play a recording in place of a sensor: a CSV file, or an array saved by numpy.

`ReplaySource` holds the options, a recording (`CsvRecording`, `ArrayRecording`) yields the rows of a file between
breaks, and `Player` delivers the rows in chunks, each at the time due. A row with NaN or garbage is a break, as lost
samples are.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Protocol

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edged.api import Chunk, ConfigError, DeviceError, Source, SourceConfig, SourceInfo
from edged.core.errors import some
from edged.core.framing import MAX_LINE, Faults, Run, Signal, Stretch, csv_decoder, finite_runs
from edged.sources.columns import Channels, Rate, Units, row
from edged.system.later import zipfile

MAX_BYTES = 256 << 20
_BLOCK = 65_536
_SUFFIXES = (".csv", ".npy", ".npz")


class ReplaySource(SourceConfig, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "replay": a recording, played in place of a sensor.

    Replace the file by renaming a new file to its path; never write into the file.

    Keys:
        path: A .csv, .npy or .npz file of at most 256 MiB.
        array: Name of the array in an .npz file with several arrays.
        channels: Columns to take from each row, in this order. Without channels, each element of an array is a sample,
            for example a picture: (n, height, width).
        columns: Names of all columns of a row, in order. Default: the first line of a CSV file, or `time`, if given,
            and the channels.
        units: Units of the channels, one for each.
        rate (Hz): Samples a second in the recording.
        time: Column with the time of each sample in seconds.
        pace (Hz): Speed of playing: "recorded", by the column `time` or else at `rate`; "fast", as fast as the models
            take the samples, dropping none; or a number of samples a second.
        chunk (samples): Samples delivered at a time.
        loop: Begin again at the end, for ever.
    """

    path: Path
    array: Annotated[str, Meta(max_length=200)] = ""
    channels: Channels = ()
    columns: Channels = ()
    units: Units = ()
    rate: Rate | None = None
    time: Annotated[str, Meta(max_length=64)] = ""
    pace: Literal["recorded", "fast"] | Rate = "recorded"
    chunk: Annotated[int, Meta(ge=1, le=10_000)] = 16
    loop: bool = False

    def describe(self) -> SourceInfo:
        """Describe the samples from the options; for pictures, from the file's header."""
        self._check()
        patient = self.pace == "fast"
        pace = None if isinstance(self.pace, str) else self.pace
        rate = self.rate or pace
        if self.channels:
            return row(self.channels, self.units, rate, pace=pace, patient=patient)
        return SourceInfo(shape=self._sample_shape(), rate=rate, pace=pace, patient=patient)

    def open(self) -> Source:
        """Open the file."""
        self._check()
        timed = self.pace == "recorded" and bool(self.time)
        signal = Signal(channels=(*self.channels, self.time) if timed else self.channels)
        recording: Recording
        if self.path.suffix == ".csv":
            recording = CsvRecording(self.path, signal, self.columns)
        else:
            columns = self._columns()
            recording = ArrayRecording(_load(self.path, self.array, columns), signal, columns, self.chunk)
        return Player(recording, chunk=self.chunk, pace=self._samples_per_second(), timed=timed, loop=self.loop)

    def _sample_shape(self) -> tuple[int, ...]:
        try:
            shape = _header_shape(self.path, self.array)
        except DeviceError as error:
            raise ConfigError(error.message, hint=error.hint) from error
        if len(shape) < 2 or 0 in shape:
            raise ConfigError(
                f"{self.path.name} has the shape {shape}: no samples", hint="name the file's columns in channels"
            )
        return shape[1:]

    def _samples_per_second(self) -> float | None:
        if isinstance(self.pace, str):
            return self.rate if self.pace == "recorded" else None
        return self.pace

    def _columns(self) -> tuple[str, ...]:
        return self.columns or ((self.time, *self.channels) if self.time else self.channels)

    def _check(self) -> None:
        suffix = self.path.suffix
        if suffix not in _SUFFIXES:
            raise ConfigError(f"{self.path.name} is no recording", hint=f"name a file ending in {', '.join(_SUFFIXES)}")
        if suffix == ".csv" and not self.channels:
            raise ConfigError("channels is empty", hint="name the columns of the CSV file to take")
        if self.array and suffix != ".npz":
            raise ConfigError(f"array means nothing for a {suffix} file", hint="leave array out")
        if self.pace == "recorded" and not self.time and not self.rate:
            raise ConfigError(
                "the pace of the recording is not known", hint='give rate or time, or a pace: "fast" or a number'
            )
        if not self.channels and (self.columns or self.units or self.time):
            raise ConfigError("columns, units and time mean nothing without channels", hint="name the channels")
        if suffix == ".csv" and not self.columns:
            return  # the file's first line has the last word
        for name in filter(None, (*self.channels, self.time)):
            if name not in self._columns():
                raise ConfigError(f"{name!r} is not in columns", hint=f"columns has {some(self._columns())}")


class Recording(Protocol):
    """An opened file. Rows end in the column of seconds, if requested."""

    faults: Faults

    def play(self) -> Iterator[Stretch]:
        """Yield rows without a break, and the number of rows lost before, from the beginning. Raises DeviceError."""

    def close(self) -> None:
        """Close the file."""


class Player:
    """Play a recording: by the column of seconds if `timed`, else `pace` samples a second, or at once if None."""

    def __init__(
        self,
        recording: Recording,
        *,
        chunk: int,
        pace: float | None,
        timed: bool,
        loop: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._recording = recording
        self._chunk = chunk
        self._pace = pace
        self._timed = timed
        self._loop = loop
        self._clock = clock
        self._sleep = sleep
        self._chunks = self._due_chunks()
        self._next: Chunk | None = None

    @property
    def faults(self) -> dict[str, int]:
        """Return the numbers of unusable rows, by reason."""
        return self._recording.faults

    @property
    def refused(self) -> str:
        """Return the last unusable row."""
        return self._recording.faults.last

    def read(self, timeout: float) -> Chunk | None:
        """Return the next chunk when due."""
        if self._next is None:
            self._next = next(self._chunks, None)
            if self._next is None:
                raise EOFError("the recording has ended")
        wait = self._next.time - self._clock()
        if wait > 0:
            self._sleep(min(wait, timeout))
            if wait > timeout and self._clock() < self._next.time:  # a busy machine may have slept longer
                return None
        chunk, self._next = self._next, None
        return chunk

    def close(self) -> None:
        """Close the recording."""
        self._recording.close()

    def _due_chunks(self) -> Iterator[Chunk]:
        """Yield the chunks, each with the time due; each round of a loop is a stream of its own."""
        due = self._clock()
        anew = False
        while True:
            began, played, first = due, 0, 0.0
            for rows, lost in self._pieces():
                samples = rows[:, :-1] if self._timed else rows
                if self._timed:
                    first = first if played else float(rows[0, -1])
                    due = max(due, began + float(rows[-1, -1]) - first)
                played += lost + len(rows)
                if not self._timed:
                    due = began + played / self._pace if self._pace else self._clock()
                yield Chunk(_as_sensors_give(samples), due, lost, anew)
                anew = False
            if not played:
                raise DeviceError("the recording holds no usable sample", hint="see the faults of the source")
            if not self._loop:
                return
            anew = True

    def _pieces(self) -> Iterator[tuple[NDArray[Any], int]]:
        for stretch in self._recording.play():
            rows = stretch.samples
            for start in range(0, len(rows), self._chunk):
                yield rows[start : start + self._chunk], 0 if start else stretch.lost


def _as_sensors_give(samples: NDArray[Any]) -> NDArray[Any]:
    return samples if samples.dtype in (np.uint8, np.int16) else samples.astype(np.float32)


class CsvRecording:
    """A CSV file, read while playing."""

    def __init__(self, path: Path, signal: Signal, columns: tuple[str, ...]) -> None:
        try:
            _refuse_large(path.name, path.stat().st_size)
            with path.open("rb") as file:
                head = _END_OF_LINE.split(file.read(MAX_LINE), 1)[0]
            names = columns or _names(head)
            self._begin = 0 if columns else len(head)
            self._decoder = csv_decoder(signal, names, midway=False, dtype=np.float64)
            self._file = path.open("rb")
        except OSError as error:
            raise _unreadable(path, error) from error
        self._path = path
        self.faults = self._decoder.faults

    def play(self) -> Iterator[Stretch]:
        """Yield the rows of the file."""
        try:
            self._file.seek(self._begin)
            while block := self._file.read(_BLOCK):
                yield from self._decoder.decode(block)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        yield from self._decoder.decode(b"\n")  # the last line may lack its end

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_END_OF_LINE = re.compile(rb"[\r\n]")


def _names(header: bytes) -> tuple[str, ...]:
    return tuple(name.strip().strip('"') for name in header.decode("utf-8-sig", "replace").split(","))


class SavedRows:
    """Rows of a .npy file, read on demand and not mapped, since truncating a mapped file crashes the process."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], begin: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self._path = path
        self._begin = begin
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._file = path.open("rb")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return a slice of the rows. Raises DeviceError."""
        start, stop, _ = rows.indices(len(self))
        size = (stop - start) * self._row_bytes
        try:
            data = os.pread(self._file.fileno(), size, self._begin + start * self._row_bytes)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if len(data) < size:
            raise DeviceError(f"{self._path.name} is truncated", hint="replace the file by renaming a complete file")
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ArrayRecording:
    """An array in memory or in a file, read `block` rows at a time."""

    def __init__(self, array: NDArray[Any] | SavedRows, signal: Signal, columns: tuple[str, ...], block: int) -> None:
        self.faults = Faults()
        self._array = array
        self._places = [columns.index(name) for name in signal.channels]
        self._block = block

    def play(self) -> Iterator[Stretch]:
        """Yield the rows of the array."""
        torn = False
        for start in range(0, len(self._array), self._block):
            rows = self._array[start : start + self._block]
            run = Run(rows[:, self._places] if self._places else rows, [], False)
            for finite in finite_runs(run, self.faults) if rows.dtype.kind == "f" else (run,):
                torn |= finite.torn
                if len(finite.values):
                    yield Stretch(finite.values, int(torn))
                    torn = False

    def close(self) -> None:
        """Close the file of an array in a file."""
        if isinstance(self._array, SavedRows):
            self._array.close()


def _load(path: Path, key: str, columns: tuple[str, ...]) -> NDArray[Any] | SavedRows:
    """Return the array, of shape (n, len(columns)), or (n, ...) without columns. Raises DeviceError."""
    with _array_file(path, key) as file:
        shape, by_columns, dtype = _header(file)
        if dtype.kind not in "iuf":
            raise DeviceError(f"{path.name} holds {dtype}, not numbers", hint="save an array of numbers")
        if columns and len(shape) == 1:
            shape = (*shape, 1)
        if columns and shape[1:] != (len(columns),):
            raise DeviceError(
                f"{path.name} has the shape {shape}, columns names {len(columns)}",
                hint="name every column of the file in columns, in order",
            )
        if path.suffix == ".npy" and not by_columns:
            return SavedRows(path, shape, dtype, file.tell())
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array.reshape(shape)


def _header_shape(path: Path, key: str) -> tuple[int, ...]:
    """Return the shape of the array from the file's header."""
    with _array_file(path, key) as file:
        return _header(file)[0]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and dtype of a saved array."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


@contextmanager
def _array_file(path: Path, key: str) -> Iterator[IO[bytes]]:
    """Open the bytes of a saved array; any exception of numpy or zipfile becomes a DeviceError."""
    try:
        _refuse_large(path.name, path.stat().st_size)
        if path.suffix == ".npy":
            with path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(path) as archive, archive.open(_member(archive, key)) as file:
                yield file
    except DeviceError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _member(archive: "zipfile.ZipFile", key: str) -> str:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    name = key or (names[0] if len(names) == 1 else "")
    if name not in names:
        what = f"holds no array {key!r}" if key else f"holds {len(names)} arrays"
        raise DeviceError(f"{archive.filename} {what}", hint=f"set array to one of {', '.join(sorted(names)[:20])}")
    member = name + ".npy"
    _refuse_large(member, archive.getinfo(member).file_size)
    return member


def _refuse_large(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise DeviceError(
            f"{name} has {size >> 20} MiB", hint=f"cut the recording into files of at most {MAX_BYTES >> 20} MiB"
        )


def _unreadable(path: Path, error: Exception) -> DeviceError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return DeviceError(
        f"cannot read {path}: {why}", hint="check path, and that the file is whole and readable to edged"
    )
