"""Preprocessing: from a window to the model's input tensors.

Each input fed by the window has a chain of its own, put together once: pick the channels, apply the manifest's steps in
place on one float32 buffer, quantise. Two shortcuts give the same result faster: the quantiser performs a final
`normalise` in its own multiplication; and if each pixel is mapped to a byte by itself, the chain runs once over all 256
values, and pictures are translated by the resulting table, or by comparisons if the table has few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.core.manifest import (
    Clip,
    DetectAnomaly,
    Input,
    Manifest,
    Normalise,
    NoStep,
    PreprocessStep,
    Standardise,
    WindowSpec,
)
from edged.core.tensors import Encode, at_rest, dequantise, lookup, quantiser
from edged.core.types import Arrays, TensorSpec

Apply = Callable[[NDArray[Any], NDArray[np.float32]], None]
"""Function for a step, from the first array into the second; both may be the same array."""


class Preprocessor:
    """Preprocessing of windows for a model. All returned arrays are valid until the next call."""

    def __init__(self, manifest: Manifest) -> None:
        """Set up for a manifest that has been checked: shapes, channels and outputs agree."""
        self.prepared: NDArray[np.float32] | None = None
        """Real values of the first input after the steps; kept only if the model's score needs them."""
        self._manifest = manifest
        self._inputs = [at_rest(each.tensor) for each in manifest.inputs]
        self._feeds = [
            (index, self._feed(index, each)) for index, each in enumerate(manifest.inputs) if each.feed == "window"
        ]
        self._loops = [
            (index, _loop(manifest, each)) for index, each in enumerate(manifest.inputs) if each.feed == "feedback"
        ]

    def __call__(self, samples: NDArray[Any]) -> Arrays:
        """Return the inputs for a window's samples `(length, *sample shape)`, of the window's dtype."""
        for index, feed in self._feeds:
            self._inputs[index] = feed(samples)
        return self._inputs

    def feed_back(self, outputs: Arrays) -> None:
        """Store the outputs for inputs of the next run."""
        for index, loop in self._loops:
            loop(outputs, self._inputs[index])

    def reset(self) -> None:
        """Forget stored outputs."""
        for index, _ in self._loops:
            tensor = self._manifest.inputs[index].tensor
            np.copyto(self._inputs[index], at_rest(tensor))

    def _feed(self, index: int, each: Input) -> Encode:
        if self._manifest.picture is not None and self._manifest.picture.layout == "nchw":
            return self._channels_first(index, each)
        return self._feed_as_sampled(index, each)

    def _channels_first(self, index: int, each: Input) -> Encode:
        """Return the feed for a tensor (1, channels, height, width) from pixels with their channels last."""
        tensor = np.empty(each.tensor.shape, each.tensor.numpy_dtype)
        last = (1, *self._manifest.window.shape)
        channels_last = msgspec.structs.replace(each.tensor, shape=last)
        feed = self._feed_as_sampled(index, msgspec.structs.replace(each, tensor=channels_last))
        if index == 0 and self.prepared is not None:
            self.prepared = np.moveaxis(self.prepared, -1, 1)
        inside = np.moveaxis(tensor.reshape(1, last[-1], *last[1:-1]), 1, -1)

        def turn(samples: NDArray[Any]) -> NDArray[Any]:
            np.copyto(inside, feed(samples))
            return tensor

        return turn

    def _feed_as_sampled(self, index: int, each: Input) -> Encode:
        window = self._manifest.window
        names = [channel.name for channel in window.channels]
        columns = [names.index(name) for name in each.channels]
        steps = tuple(_of_columns(step, columns) for step in self._manifest.preprocess)
        if steps == (NoStep(),):
            steps = _as_they_are(window, each.tensor)
        shape = (window.length, len(columns)) if columns else (window.length, *window.shape)
        if index == 0 and _needs_prepared(self._manifest):
            chain, self.prepared = _keeping_chain(steps, window, shape, each.tensor)
        elif _maps_bytes(window, steps, each.tensor):
            chain = lookup(each.tensor, _table(steps, window, each.tensor))
        else:
            chain = _chain(steps, window, shape, each.tensor)
        return _picking(columns, shape, window, chain) if columns else chain


def _needs_prepared(manifest: Manifest) -> bool:
    posts = [part.postprocess for part in manifest.parts.values()]
    return any(isinstance(post, DetectAnomaly) and post.score != "output" for post in posts)


def _as_they_are(window: WindowSpec, tensor: TensorSpec) -> tuple[PreprocessStep, ...]:
    """Return the steps by which an 8-bit tensor stores the pixels of a picture unchanged; () for other inputs."""
    if not window.is_picture or tensor.dtype not in ("uint8", "int8"):
        return ()
    darkest = float(np.iinfo(tensor.numpy_dtype).min)
    if not tensor.scale:
        return (Normalise(mean=(-darkest,), std=(1.0,)),)
    return (Normalise(mean=(tensor.zero_point - darkest,), std=(1.0 / tensor.scale,)),)


def _of_columns(step: PreprocessStep, columns: list[int]) -> PreprocessStep:
    """Return the step for some of the window's columns."""
    if not columns or not isinstance(step, Normalise):
        return step
    mean = step.mean if len(step.mean) == 1 else tuple(step.mean[column] for column in columns)
    std = step.std if len(step.std) == 1 else tuple(step.std[column] for column in columns)
    return Normalise(mean=mean, std=std)


def _picking(columns: list[int], shape: tuple[int, ...], window: WindowSpec, chain: Encode) -> Encode:
    picked = np.empty(shape, window.dtype)
    indices = np.array(columns, dtype=np.intp)

    def pick(samples: NDArray[Any]) -> NDArray[Any]:
        samples.take(indices, axis=1, out=picked, mode="clip")  # the other modes copy the output twice
        return chain(picked)

    return pick


def _maps_bytes(window: WindowSpec, steps: tuple[PreprocessStep, ...], tensor: TensorSpec) -> bool:
    return (
        window.dtype == "uint8" and tensor.dtype in ("uint8", "int8") and all(_is_alike_for_all(step) for step in steps)
    )


def _is_alike_for_all(step: PreprocessStep) -> bool:
    match step:
        case Clip():
            return True
        case Normalise(mean=mean, std=std):
            return len(mean) == len(std) == 1
    return False


def _table(steps: tuple[PreprocessStep, ...], window: WindowSpec, tensor: TensorSpec) -> NDArray[Any]:
    numbers = np.arange(256, dtype=np.uint8)
    chain = _chain(steps, window, numbers.shape, msgspec.structs.replace(tensor, shape=numbers.shape))
    return chain(numbers).copy()


def _chain(steps: tuple[PreprocessStep, ...], window: WindowSpec, shape: tuple[int, ...], tensor: TensorSpec) -> Encode:
    """Return the steps and the quantiser, which performs a final `normalise`."""
    match steps:
        case (*before, Normalise(mean=mean, std=std)):
            quantise = quantiser(tensor, shape, mean, std)
        case _:
            before, quantise = [*steps], quantiser(tensor, shape)
    if not before:
        return quantise
    prepare = _preparation(before, window, np.empty(shape, np.float32))
    return lambda samples: quantise(prepare(samples))


def _keeping_chain(
    steps: tuple[PreprocessStep, ...], window: WindowSpec, shape: tuple[int, ...], tensor: TensorSpec
) -> tuple[Encode, NDArray[np.float32]]:
    """Return the steps and the quantiser, and the buffer that holds the real values between them."""
    real = np.zeros(shape, np.float32)
    prepare = _preparation(steps, window, real)
    quantise = quantiser(tensor, shape)
    return lambda samples: quantise(prepare(samples)), real


def _preparation(steps: Sequence[PreprocessStep], window: WindowSpec, real: NDArray[np.float32]) -> Encode:
    """Return a function that performs the first step from the samples into `real`, and the others within `real`."""
    applies = [_step(step, window, real.shape) for step in steps] or [_copy]

    def prepare(samples: NDArray[Any]) -> NDArray[np.float32]:
        for apply in applies:
            apply(samples, real)
            samples = real
        return real

    return prepare


def _step(step: PreprocessStep, window: WindowSpec, shape: tuple[int, ...]) -> Apply:
    match step:
        case Normalise(mean=mean, std=std):
            return _normalise(mean, std, shape)
        case Standardise(floor=floor):
            return _standardise(floor, _axes(window), shape)
        case Clip(low=low, high=high):
            return _clip(np.float32(low), np.float32(high))
        case NoStep():
            return _copy


def _copy(source: NDArray[Any], real: NDArray[np.float32]) -> None:
    np.copyto(real, source)


def _normalise(mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, ...]) -> Apply:
    centre = np.broadcast_to(np.array(mean, dtype=np.float32), shape).copy()
    factor = np.broadcast_to((1.0 / np.array(std)).astype(np.float32), shape).copy()

    def normalise(source: NDArray[Any], real: NDArray[np.float32]) -> None:
        np.subtract(source, centre, out=real)
        np.multiply(real, factor, out=real)

    return normalise


def _clip(low: np.float32, high: np.float32) -> Apply:
    def clip(source: NDArray[Any], real: NDArray[np.float32]) -> None:
        np.maximum(source, low, out=real)
        np.minimum(real, high, out=real)

    return clip


def _axes(window: WindowSpec) -> tuple[int, ...]:
    """Return the axes of a window within one channel: a picture without an axis of channels is a single channel."""
    if window.channels:
        return (0,)
    rank = 1 + len(window.sample_shape)
    return tuple(range(rank - 1 if rank == 4 else rank))


def _standardise(floor: float, axes: tuple[int, ...], shape: tuple[int, ...]) -> Apply:
    count = prod(shape[axis] for axis in axes)
    squares = np.empty(shape, np.float32)

    def standardise(source: NDArray[Any], real: NDArray[np.float32]) -> None:
        # Sums are float64: a long window of large values would lose the mean in float32.
        mean = np.add.reduce(source, axis=axes, dtype=np.float64, keepdims=True) / count
        np.subtract(source, mean.astype(np.float32), out=real)
        np.multiply(real, real, out=squares)
        variance = np.add.reduce(squares, axis=axes, dtype=np.float64, keepdims=True) / count
        np.divide(real, np.maximum(np.sqrt(variance), floor).astype(np.float32), out=real)

    return standardise


def _loop(manifest: Manifest, each: Input) -> Callable[[Arrays, NDArray[Any]], None]:
    """Return a function from the outputs to the input fed by an output, in the input's quantisation."""
    index = [output.name for output in manifest.outputs].index(each.feedback)
    output, tensor = manifest.outputs[index], each.tensor
    if (output.dtype, output.scale, output.zero_point) == (tensor.dtype, tensor.scale, tensor.zero_point):
        return lambda outputs, array: np.copyto(array, outputs[index].reshape(array.shape))
    quantise = quantiser(tensor, output.shape)
    return lambda outputs, array: np.copyto(array, quantise(dequantise(output, outputs[index])))
