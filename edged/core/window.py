"""How samples become windows: they are written into a block, once, and a window is a view of it.

A block is only ever appended to. When it is full the next one begins with the samples that a coming window may still
need, so that every window lies in one piece. A window therefore stays as it is for as long as somebody holds it, and
windows that overlap share their samples. Where samples were lost no window is stitched over the gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import DeviceError
from edged.core.manifest import WindowSpec
from edged.core.types import Window

_BLOCK_BYTES = 16 << 10


class Windower:
    """Cuts a stream of samples into windows of `spec.length` samples, a new one every `spec.hop`."""

    def __init__(self, spec: WindowSpec, columns: NDArray[np.intp] | None, next_seq: int = 0) -> None:
        """`columns` picks the source's columns in the model's order; None takes samples as they are.

        `next_seq` is the number of the first window, for a stream that goes on from another.
        """
        self._length = spec.length
        self._hop = spec.hop
        self._shape = spec.shape
        self._columns = columns
        self._rate = spec.rate
        dtype = np.dtype(spec.dtype)
        self._size = max(2 * spec.length, _BLOCK_BYTES // (prod(spec.shape) * dtype.itemsize))
        self._block = np.empty((self._size, *spec.shape), dtype)
        self._end = 0
        self._missing = spec.length
        self._begun = False
        self.next_seq = next_seq

    def push(self, samples: NDArray[Any], time: float, lost: int = 0, rate: float | None = None) -> Iterator[Window]:
        """Take samples `(n, *sample shape)` in; the last arrived at `time`, and `lost` are missing before the first.

        Iterate to the end. A window's time is when its own last sample arrived, reckoned back from `time` at `rate`, by
        default the one that the model states, and so is its start. `seq` goes up by one with every window, and
        once more where samples were lost: the window they broke off counts as one that is missing.

        Raises:
            DeviceError: the samples have another shape than the source described.
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
            self._write(samples[begin:end])
            begin = end
            self._missing = self._hop
            seq = self.next_seq
            self.next_seq += 1
            at = time - (count - end) / rate if rate else time
            start = at - (self._length - 1) / rate if rate else None
            yield Window(self._block[self._end - self._length : self._end], seq, at, at if self._length == 1 else start)
        if begin < count:
            self._write(samples[begin:])
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
        f"the source gave samples of the shape {list(samples.shape[1:])}, which is not what it described",
        hint="check the source's options against what the device sends",
    )


def _cast(samples: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The same values in another dtype: rounded half to even, saturated, and 0 for NaN, where it holds integers."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes an infinity, and is seen
            return samples.astype(dtype)
    if np.can_cast(samples.dtype, dtype, "safe"):
        return samples.astype(dtype)
    limits = np.iinfo(dtype)
    real = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=limits.max, neginf=limits.min)
    return np.clip(np.rint(real), limits.min, limits.max).astype(dtype)
