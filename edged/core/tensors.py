"""Quantisation: conversion between real values and stored values, real = scale * (stored - zero_point).

Quantisation rounds half to even and saturates: values beyond the range of the dtype, including infinities, become the
nearest bound. NaN becomes the zero point, so that no cast is undefined; sources refuse NaN long before. Integers
without a scale are quantised as with scale 1 and zero point 0. Floats are stored unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.core.manifest import Golden
from edged.core.types import TensorSpec

MAX_STEPS = 4
"""Number of steps in a table of pixels up to which comparisons are faster than a lookup."""

ELEMENTS_PER_STEP = 4096
"""Number of pixels for each step from which comparisons are faster than a lookup."""

Encode = Callable[[NDArray[Any]], NDArray[Any]]
"""Function from values to a tensor for the runner. The result may share memory with the values or the last result."""


def quantiser(
    spec: TensorSpec, shape: tuple[int, ...], mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
) -> Encode:
    """Return a function from real values of this shape to the tensor.

    The function also normalises by `mean` and `std`, one number for all or one per element of the last axis, at the
    cost of a single multiplication. The values may be float32, or integers from a sensor.
    """
    centre = _constant(mean, shape) if any(mean) else None
    if spec.dtype == "bool":
        return lambda real: np.not_equal(real, 0.0 if centre is None else centre).reshape(spec.shape)
    divisor = np.asarray(std, dtype=np.float64)
    if spec.numpy_dtype.kind == "f":
        return _float_encoder(spec, shape, centre, divisor)
    return _integer_encoder(spec, shape, centre, divisor * (spec.scale or 1.0))


def lookup(spec: TensorSpec, table: NDArray[Any]) -> Encode:
    """Return a function from uint8 values to a tensor of one byte per element, by a table of the 256 stored values."""
    codes = table.view(np.uint8)
    shifts = np.subtract(codes, np.arange(256, dtype=np.uint8), dtype=np.uint8)
    if not shifts.any():
        return lambda pixels: pixels.reshape(spec.shape).view(spec.numpy_dtype)
    steps = np.flatnonzero(np.diff(shifts)) + 1
    if len(steps) <= min(MAX_STEPS, prod(spec.shape) // ELEMENTS_PER_STEP):
        return _stepped(spec, shifts, steps.tolist())
    translation = codes.tobytes()

    def look_up(pixels: NDArray[Any]) -> NDArray[Any]:
        # Indexing by the table takes at least 1.5 times as long, since numpy first makes 64-bit indices.
        return np.frombuffer(pixels.tobytes().translate(translation), spec.numpy_dtype).reshape(spec.shape)

    return look_up


def dequantise(spec: TensorSpec, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return the real values as a new float32 array of the same shape."""
    if not spec.scale:
        return stored.astype(np.float32)
    real: NDArray[np.float32] = np.subtract(stored, spec.zero_point, dtype=np.float32)
    return np.multiply(real, np.float32(spec.scale), out=real)


def at_rest(spec: TensorSpec) -> NDArray[Any]:
    """Return the tensor filled with real 0."""
    return np.full(spec.shape, spec.zero_point if spec.scale else 0, spec.numpy_dtype)


def difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference of an element as stored: in quantisation steps if the tensor is quantised."""
    return float(np.max(np.abs(got.astype(np.float64) - expected.astype(np.float64))))


def other_share(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the share of elements that differ at all; 1 for another shape."""
    return float(np.mean(got != expected)) if got.shape == expected.shape else 1.0


def decides_otherwise(got: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Return whether the greatest element differs; any of several greatest elements of `expected` will do."""
    return bool(expected.item(got.argmax()) != expected.max())


def disagreement(
    spec: TensorSpec, got: NDArray[Any], expected: NDArray[Any], golden: Golden, *, decides: bool = False
) -> str:
    """Return the difference between a stored output and the golden output in words, or "" if they agree.

    `decides` means that the greatest element is the model's decision, which must then be the same.
    """
    if got.shape != expected.shape:
        return f"the output {spec.name!r} has the shape {list(got.shape)}, not {list(expected.shape)}"
    off = difference(got, expected)
    tolerance, unit = (golden.steps, "steps") if spec.scale else (golden.absolute, "absolute")
    if off <= tolerance and not (decides and decides_otherwise(got, expected)):
        return ""
    return f"the output {spec.name!r} {_symptom(got) or _distance(off, tolerance, unit, got, expected)}"


def _constant(values: Sequence[float] | NDArray[np.float64], shape: tuple[int, ...]) -> Any:
    """Return a scalar or an array of full shape: broadcasting a short last axis makes numpy's loops short and slow."""
    if len(values) == 1:
        return np.array(values[0], dtype=np.float32)
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype=np.float32), shape))


def _float_encoder(spec: TensorSpec, shape: tuple[int, ...], centre: Any, divisor: NDArray[np.float64]) -> Encode:
    if centre is None and np.all(divisor == 1.0):
        return lambda real: real.astype(spec.numpy_dtype, copy=False).reshape(spec.shape)
    stored = np.empty(spec.shape, spec.numpy_dtype)
    out = stored.reshape(shape)
    # float16 holds the normalised values, but not always the intermediate values: 101,325 Pa would be infinite.
    work = out if spec.numpy_dtype.itemsize >= 4 else np.empty(shape, np.float32)
    factor = _constant(1.0 / divisor, shape)

    def encode(real: NDArray[Any]) -> NDArray[Any]:
        if centre is not None:
            real = np.subtract(real, centre, out=work)
        np.multiply(real, factor, out=out)
        return stored

    return encode


def _integer_encoder(spec: TensorSpec, shape: tuple[int, ...], centre: Any, divisor: NDArray[np.float64]) -> Encode:
    stored = np.empty(spec.shape, spec.numpy_dtype)
    out = stored.reshape(shape)
    # The bounds must be exact: float32 holds every integer of up to 16 bits, float64 every integer of up to 32.
    work = np.empty(shape, np.float32 if spec.numpy_dtype.itemsize <= 2 else np.float64)
    factor = _constant(1.0 / divisor, shape)
    zero = np.array(spec.zero_point if spec.scale else 0, dtype=work.dtype)
    shifted = bool(zero)
    low, high = _limits(spec.numpy_dtype)

    def encode(real: NDArray[Any]) -> NDArray[Any]:
        if centre is not None:
            real = np.subtract(real, centre, out=work)
        np.multiply(real, factor, out=work)
        np.rint(work, out=work)
        if shifted:
            np.add(work, zero, out=work)
        # A look at both ends costs half as much as clipping; argmin also finds NaN, which fails the comparison.
        if not (low <= work.item(work.argmin()) and work.item(work.argmax()) <= high):
            _saturate(work, low, high, zero)
        out[...] = work
        return stored

    return encode


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the least and greatest float with a defined cast: float64 cannot hold the greatest 64-bit integers."""
    limits = np.iinfo(dtype)
    high = float(limits.max)
    return float(limits.min), high if int(high) <= limits.max else float(np.nextafter(high, 0.0))


def _saturate(work: NDArray[Any], low: float, high: float, zero: NDArray[Any]) -> None:
    np.clip(work, low, high, out=work)
    np.copyto(work, zero, where=np.isnan(work))


def _stepped(spec: TensorSpec, shifts: NDArray[np.uint8], steps: list[int]) -> Encode:
    """Return the lookup by a table where the stored value minus the pixel, modulo 256, changes at `steps` only."""
    stored = np.empty(spec.shape, spec.numpy_dtype)
    codes = stored.view(np.uint8)
    above = np.empty(spec.shape, np.bool_)
    ones = above.view(np.uint8)
    first = shifts[:1].copy() if shifts[0] else None
    changes = [(np.array(step, np.uint8), *_change(int(shifts[step]) - int(shifts[step - 1]))) for step in steps]

    def shift(pixels: NDArray[Any]) -> NDArray[Any]:
        pixels = shifted = pixels.reshape(spec.shape)
        if first is not None:
            shifted = np.add(pixels, first, out=codes)
        for step, change, factor in changes:
            np.greater_equal(pixels, step, out=above)
            if factor is not None:
                np.multiply(ones, factor, out=ones)
            shifted = change(shifted, ones, out=codes)
        return stored

    return shift


def _change(difference: int) -> tuple[np.ufunc, NDArray[np.uint8] | None]:
    """Return the operation, and the factor of ones before, by which bytes change by a difference, modulo 256."""
    match difference % 256:
        case 1:
            return np.add, None
        case 255:
            return np.subtract, None
        case other:
            return np.add, np.array(other, np.uint8)


def _symptom(got: NDArray[Any]) -> str:
    """Return a typical symptom of a broken runtime in the whole output, or ""."""
    if not np.isfinite(got).all():
        return "has NaN or infinities"
    if not got.any():
        return "is all zeros, as if the runtime had written no result"
    if got.size > 1 and np.all(got == got.flat[0]):
        return f"has the same value everywhere ({got.flat[0]})"
    return ""


def _distance(off: float, tolerance: float, unit: str, got: NDArray[Any], expected: NDArray[Any]) -> str:
    if off > tolerance:
        return f"is off by {off:g} {unit}, and {tolerance:g} are allowed"
    return f"decides for element {got.argmax()}, not {expected.argmax()}"
