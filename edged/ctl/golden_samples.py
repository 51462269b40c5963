"""Make golden samples: the inputs of windows, or random tensors, with the outputs of the model on this machine."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edged.api import Arrays, Chunk, ControlError, Runner, Source, TensorSpec
from edged.core.manifest import Manifest
from edged.core.postprocess import NO_REFERENCES, Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.source_match import match_source
from edged.core.window import Windower
from edged.ctl.golden_labels import GoldenLabels
from edged.ctl.input_clipping import MAX_SHARE, Clipping
from edged.ctl.picture_files import is_pictures, picture_chunks, whole_form
from edged.sources.replay import ReplaySource

MAX_SAMPLES, MIN_SAMPLES = 16, 2
MAX_BYTES = 256 << 10
"""Limit for all samples, except for MIN_SAMPLES: the samples travel with the model over slow links."""


class GoldenSample(NamedTuple):
    """Inputs and outputs of a run of the model."""

    inputs: Arrays
    outputs: Arrays


def samples_of(
    file: Path, manifest: Manifest, runner: Runner, expected: GoldenLabels | None = None
) -> list[GoldenSample]:
    """Return samples of windows spread evenly over a file of samples or of windows.

    With `expected`, only labelled windows are used, and the model must decide for the label.

    Raises:
        EdgedError: the file cannot be read, does not fit the model, or has no window; a fifth of the values do not fit
            the model's input; or the model decides for another label.
    """
    count = sum(1 for _ in windows_of(file, manifest))
    if count == 0:
        raise ControlError(
            f"{file} has no whole window of {manifest.window.length} samples in a row",
            hint="record more, without gaps",
        )
    among = list(range(count)) if expected is None else expected.windows(count, file)
    places = np.linspace(0, len(among) - 1, min(len(among), _number(runner))).round().astype(int)
    chosen = {among[place] for place in places.tolist()}
    preprocess, clipping = Preprocessor(manifest), Clipping(manifest)
    postprocess = Postprocessor(manifest, None, expected.vectors if expected else NO_REFERENCES)
    runner.reset()
    taken: list[GoldenSample] = []
    for index, window in enumerate(windows_of(file, manifest)):
        if index in chosen:
            clipping.add(window)
            inputs = _copies(preprocess(window))
            outputs = _copies(runner.run(inputs))
            preprocess.feed_back(outputs)
            if expected is not None:
                expected.hold(index, postprocess(outputs, preprocess.prepared, float(index)))
            taken.append(GoldenSample(inputs, outputs))
    clipping.refuse(file)
    return taken


def random_samples(runner: Runner, deciding: int | None = None) -> list[GoldenSample]:
    """Return samples of random tensors, equal at each call.

    If the greatest element of the output `deciding` is the decision, the samples with the clearest decisions are
    chosen: between two nearly equal elements another processor may decide otherwise without a fault.
    """
    generator = np.random.default_rng(1)
    number = _number(runner)
    drawn: list[Arrays] = [
        [_random(generator, spec) for spec in runner.inputs] for _ in range(number if deciding is None else 4 * number)
    ]
    if deciding is not None:
        drawn = sorted(drawn, key=lambda inputs: _margin(runner, inputs, deciding), reverse=True)[:number]
    return answered(runner, drawn)


def answered(runner: Runner, inputs: Iterable[Arrays]) -> list[GoldenSample]:
    """Return samples of these inputs in order, from a reset runner."""
    runner.reset()
    return [GoldenSample(each, _copies(runner.run(each))) for each in inputs]


def _margin(runner: Runner, inputs: Arrays, deciding: int) -> float:
    """Return the distance of the two greatest elements of an output."""
    runner.reset()
    *_, second, first = 0.0, *np.sort(runner.run(inputs)[deciding].astype(np.float64), axis=None)
    return float(first - second)


def windows_of(file: Path, manifest: Manifest) -> Iterator[NDArray[Any]]:
    """Yield each window in a file of samples or of windows, or of pictures, valid until the next. Raises EdgedError."""
    window = manifest.window
    if is_pictures(file):
        windower = Windower(window, None, form=whole_form(manifest))
        for picture in picture_chunks(file, manifest):
            yield from (each.samples for each in windower.cut(picture))
        return
    stacked = file.suffix != ".csv" and _shape(file) == (window.length, *window.shape)
    source = ReplaySource(path=file, pace="fast", chunk=1) if stacked else _recording(file, manifest)
    _check_range(file, source, window.dtype)
    opened = source.open()
    try:
        if stacked:
            for chunk in _chunks(opened):
                yield from (each.samples for each in Windower(window, None).push(chunk.samples[0], 0.0))
        else:
            windower = Windower(window, None)
            for chunk in _chunks(opened):
                yield from (each.samples for each in windower.cut(chunk))
    finally:
        opened.close()


def _check_range(file: Path, source: ReplaySource, dtype: str) -> None:
    """Refuse a recording on another scale than a window of integers: values would be clipped or rounded to zero.

    Raises:
        ControlError: more than a fifth of the values are beyond the range, or the values are fractions from -1 to 1.
    """
    if np.dtype(dtype).kind not in "iu":
        return
    limits = np.iinfo(dtype)
    values = beyond = 0
    small, fractions = True, False
    opened = source.open()
    try:
        for chunk in _chunks(opened):
            samples = chunk.samples
            values += samples.size
            beyond += int(np.count_nonzero((samples < limits.min) | (samples > limits.max)))
            small = small and bool(np.all(np.abs(samples.astype(np.float64)) <= 1))
            fractions = fractions or bool(np.any(samples != np.rint(samples)))
    finally:
        opened.close()
    if beyond > MAX_SHARE * values:
        problem = f"{beyond / values:.0%} of the values are beyond {limits.min} to {limits.max}"
    elif small and fractions:
        problem = "the values are fractions from -1 to 1"
    else:
        return
    raise ControlError(
        f"{file}: {problem}, and the model's windows are of {dtype}",
        hint=f"record values from {limits.min} to {limits.max}, as the pixels of a picture are, or correct `window`",
    )


def _shape(file: Path) -> tuple[int, ...]:
    """Return the shape of an element of the array in a file."""
    return ReplaySource(path=file, pace="fast").describe().shape


def _recording(file: Path, manifest: Manifest) -> ReplaySource:
    channels = tuple(channel.name for channel in manifest.window.channels)
    source = ReplaySource(path=file, channels=channels, pace="fast", chunk=256)
    match_source(manifest.window, source.describe(), file.name, manifest.name)
    return source


def _chunks(source: Source) -> Iterator[Chunk]:
    try:
        while chunk := source.read(0):
            yield chunk
    except EOFError:
        return


def _random(generator: np.random.Generator, spec: TensorSpec) -> NDArray[Any]:
    """Return values over the range of a quantised tensor, normal floats, or small integers for possible indices."""
    dtype = spec.numpy_dtype
    if dtype.kind == "f":
        return generator.standard_normal(spec.shape).astype(dtype)
    if not spec.scale:
        return generator.integers(0, 2, spec.shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, spec.shape, dtype, endpoint=True)


def _number(runner: Runner) -> int:
    """Return the number of samples to make."""
    size = sum(prod(spec.shape) * spec.numpy_dtype.itemsize for spec in (*runner.inputs, *runner.outputs))
    return max(MIN_SAMPLES, min(MAX_SAMPLES, MAX_BYTES // size))


def _copies(arrays: Arrays) -> Arrays:
    return [np.array(array) for array in arrays]


def npz(samples: Sequence[GoldenSample]) -> bytes:
    """Return the bytes of golden.npz."""
    arrays: dict[str, NDArray[Any]] = {}
    for kind, side in (("input", 0), ("output", 1)):
        for index in range(len(samples[0][side])):
            arrays[f"{kind}_{index}"] = np.stack([sample[side][index] for sample in samples])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # the stub takes a name for allow_pickle
    return file.getvalue()
