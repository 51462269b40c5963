"""Values of output tensors: real numbers from stored ones, activations, and the best elements.

A call of numpy costs as much as the handling of many values in Python. Outputs of at most `FEW` elements are therefore
handled as lists, with the same results to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, isnan, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import ModelError
from edged.core.tensors import dequantise
from edged.core.types import TensorSpec

FEW = 32
"""Number of elements up to which lists are faster than arrays."""

FEW_BEST = 8
"""Most elements to find one after another in an output of bytes; sorting is faster for more."""

BYTES = ("int8", "uint8")


def best(stored: NDArray[Any], k: int) -> list[int]:
    """Return the indices of the k greatest elements, greatest first; of equal elements the first comes first.

    The elements are compared as stored: quantisation and activations keep the order, and integers sort fastest.
    """
    if stored.dtype.itemsize == 1 and k <= FEW_BEST and (found := _best_bytes(stored, k)):
        return found
    ascending = stored[::-1].argsort(kind="stable")
    order: list[int] = (len(stored) - 1 - ascending[: -k - 1 : -1]).tolist()
    return order


def _best_bytes(stored: NDArray[Any], k: int) -> list[int]:
    """Return the result of `best` for bytes; [] if the lowest value, the mark of found elements, is among the best."""
    lowest = -128 if stored.dtype.kind == "i" else 0
    left = stored.copy()
    found = []
    for _ in range(k):
        index = int(left.argmax())
        if left.item(index) == lowest:
            return []
        found.append(index)
        left[index] = lowest
    return found


def values_of(spec: TensorSpec, activation: str = "none") -> Callable[[NDArray[Any]], list[float]]:
    """Return a function from a stored output of one axis to the list of real values."""
    if activation == "none" and spec.dtype in BYTES and prod(spec.shape) <= FEW:
        table = real_values(spec)
        return lambda stored: list(map(table.__getitem__, stored.tolist()))
    if activation == "none" and spec.dtype == "float32" and not spec.scale:
        return lambda stored: stored.tolist()
    return lambda stored: activate(activation, dequantise(spec, stored)).tolist()


def real_values(spec: TensorSpec) -> list[float]:
    """Return the real values of the codes of a byte; a negative code counts from the end."""
    table: list[float] = dequantise(spec, np.arange(256, dtype=np.uint8).view(spec.numpy_dtype)).tolist()
    return table


def activate(activation: str, real: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply an activation in place, softmax along the last axis, and return the array."""
    if activation == "softmax":
        real -= real.max(axis=-1, keepdims=True)
        np.exp(real, out=real)
        real /= np.add.reduce(real, axis=-1, keepdims=True)
    elif activation == "sigmoid":  # by tanh, which does not overflow
        real *= np.float32(0.5)
        np.tanh(real, out=real)
        real *= np.float32(0.5)
        real += np.float32(0.5)
    return real


def sound(value: float) -> float:
    """Return the value if finite, as JSON and thresholds require, or raise ModelError."""
    if isfinite(value):
        return value
    raise ModelError(
        f"the model's output is {'NaN' if isnan(value) else 'infinite'}",
        hint="check the source's values; if they are plausible, test the model on its golden samples: edged --check",
    )


def all_sound(real: NDArray[Any]) -> None:
    """Raise ModelError unless all values are finite."""
    if not np.isfinite(real).all():
        sound(float("nan") if np.isnan(real).any() else inf)
