"""Cutting of samples into windows: samples are written into a block once, and a window is a view of the block.

A block is only appended to. When a block is full, the next block begins with the samples that a coming window may still
need, so that every window is contiguous. A window therefore stays unchanged as long as a reference exists, and
overlapping windows share samples. No window spans a gap of lost samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import DeviceError
from edged.core.manifest import WindowSpec
from edged.core.pictures import PictureForm
from edged.core.types import Chunk, Picture, Window

_BLOCK_BYTES = 16 << 10


class Windower:
    """Cut a stream of samples into windows of `spec.length` samples, with a distance of `spec.hop` samples."""

    def __init__(
        self,
        spec: WindowSpec,
        columns: NDArray[np.intp] | None,
        next_seq: int = 0,
        form: PictureForm | None = None,
    ) -> None:
        """Set up for a stream; `columns` picks the source's columns in the model's order, None leaves samples
        unchanged.

        `next_seq` is the number of the first window, for a stream that continues another stream. `form` is the form of
        pictures, for a model that takes pictures.
        """
        self._length = spec.length
        self._hop = spec.hop
        self._shape = spec.shape
        self._columns = columns
        self._form = form
        self._rate = spec.rate
        dtype = np.dtype(spec.dtype)
        self._size = max(2 * spec.length, _BLOCK_BYTES // (prod(spec.shape) * dtype.itemsize))
        self._block = np.empty((self._size, *spec.shape), dtype)
        self._end = 0
        self._missing = spec.length
        self._begun = False
        self.next_seq = next_seq

    def cut(self, chunk: Chunk, rate: float | None = None) -> Iterator[Window]:
        """Add a chunk, and yield the completed windows; see `push`. A picture is fitted to the form first."""
        if chunk.picture is None or self._form is None:
            return self.push(chunk.samples, chunk.time, max(chunk.lost, chunk.anew), rate)
        return self._cut_picture(chunk, chunk.picture, self._form)

    def _cut_picture(self, chunk: Chunk, picture: Picture, form: PictureForm) -> Iterator[Window]:
        pixels = picture.fitted(form).reshape(1, *self._shape)
        placement = picture.placement(form)
        for window in self.push(pixels, chunk.time, max(chunk.lost, chunk.anew)):
            yield window._replace(picture=picture, placement=placement)

    def push(self, samples: NDArray[Any], time: float, lost: int = 0, rate: float | None = None) -> Iterator[Window]:
        """Add samples of shape `(n, *sample shape)`, and yield the completed windows.

        The last sample arrived at `time`; `lost` samples are missing before the first. Iterate to the end. The time of
        a window is the arrival of its last sample, computed from `time` and `rate` (default: the model's rate), and
        likewise the start. `seq` rises by 1 with every window, and once more at a gap, for the window broken off.

        Raises:
            DeviceError: the samples do not have the shape described by the source.
        """
        samples = self._pick(samples)
        if lost:
            self._break_off()
        self._begun = True
        rate = rate or self._rate
        count = len(samples)
        begin = 0
        while count - begin >= self._missing:
            end = begin + self._missing
            self._write(samples[begin:end] if end - begin < count else samples)
            begin = end
            self._missing = self._hop
            seq = self.next_seq
            self.next_seq += 1
            at = time - (count - end) / rate if rate else time
            start = at - (self._length - 1) / rate if rate else None
            yield Window(self._block[self._end - self._length : self._end], seq, at, at if self._length == 1 else start)
        if begin < count:
            self._write(samples[begin:] if begin else samples)
            self._missing -= count - begin

    def _pick(self, samples: NDArray[Any]) -> NDArray[Any]:
        try:
            picked = samples if self._columns is None else samples.take(self._columns, axis=1)
        except (IndexError, ValueError) as error:
            raise _unlike(samples) from error
        if picked.shape[1:] != self._shape:
            raise _unlike(samples)
        return picked if picked.dtype == self._block.dtype else _cast(picked, self._block.dtype)

    def _break_off(self) -> None:
        self._missing = self._length
        self.next_seq += self._begun

    def _write(self, samples: NDArray[Any]) -> None:
        if len(samples) > self._length:
            samples = samples[-self._length :]
        if self._end + len(samples) > self._size:
            self._begin_block()
        end = self._end + len(samples)
        self._block[self._end : end] = samples
        self._end = end

    def _begin_block(self) -> None:
        kept = self._block[max(0, self._end - self._length + 1) : self._end]
        self._block = np.empty_like(self._block)
        self._block[: len(kept)] = kept
        self._end = len(kept)


def _unlike(samples: NDArray[Any]) -> DeviceError:
    return DeviceError(
        f"the source delivered samples of shape {list(samples.shape[1:])}, against its own description",
        hint="check the source's options against what the device sends",
    )


def _cast(samples: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert values to another dtype. Integers are rounded half to even and saturated; NaN becomes 0."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # a value too large for float32 becomes an infinity, which shows
            return samples.astype(dtype)
    if np.can_cast(samples.dtype, dtype, "safe"):
        return samples.astype(dtype)
    limits = np.iinfo(dtype)
    real = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=limits.max, neginf=limits.min)
    return np.clip(np.rint(real), limits.min, limits.max).astype(dtype)
