"""How samples become windows: a ring that is written twice, so that its latest samples always lie in one piece.

A ring of `length` samples is kept in two copies, one behind the other, and every sample is written to both. Wherever
the ring stands, the latest `length` samples are then one contiguous slice that starts there: a window is a view, and
nothing is moved or allocated. Where samples were lost the ring starts anew, so no window is stitched over the gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import DeviceError
from edged.core.manifest import WindowSpec
from edged.core.types import Window


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
        self._period = 1 / spec.rate if spec.rate else 0.0
        copies = 2 if spec.length > 1 else 1
        self._copies = np.zeros((copies, spec.length, *spec.shape), spec.dtype)
        self._ring = self._copies.reshape(-1, *spec.shape)
        self._at = 0
        self._missing = spec.length
        self._begun = False
        self.next_seq = next_seq

    def push(self, samples: NDArray[Any], time: float, lost: int = 0) -> Iterator[Window]:
        """Take samples `(n, *sample shape)` in; the last arrived at `time`, and `lost` are missing before the first.

        Iterate to the end. A window's samples are valid until the next window is asked for. Its time is when its own
        last sample arrived, reckoned back from `time` where the model states a rate. `seq` goes up by one with every
        window, and once more where samples were lost: the window they broke off counts as one that is missing.

        Raises:
            DeviceError: the samples have another shape than the source described.
        """
        samples = self._pick(samples)
        if lost:
            self._break_off()
        self._begun = True
        count = len(samples)
        begin = 0
        while count - begin >= self._missing:
            end = begin + self._missing
            self._write(samples[begin:end])
            begin = end
            self._missing = self._hop
            seq = self.next_seq
            self.next_seq += 1
            yield Window(self._ring[self._at : self._at + self._length], seq, time - (count - end) * self._period)
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
        return picked if picked.dtype == self._ring.dtype else _cast(picked, self._ring.dtype)

    def _break_off(self) -> None:
        self._missing = self._length
        self.next_seq += self._begun

    def _write(self, samples: NDArray[Any]) -> None:
        samples = samples[-self._length :]
        at = self._at
        end = at + len(samples)
        if end <= self._length:
            self._copies[:, at:end] = samples
        else:
            before = self._length - at
            end -= self._length
            self._copies[:, at:] = samples[:before]
            self._copies[:, :end] = samples[before:]
        self._at = end % self._length


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
