"""An accelerated model must agree with its twin on the CPU: when it is loaded, and now and then as it serves.

The golden samples say what a model should compute; the twin says what it computes on this very board, and that is what
an accelerator is held against, within the manifest's tolerance. A model without golden samples is given noise: it means
nothing, and shows an accelerator that computes something else all the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.api import Arrays, ModelError, Runner, TensorSpec
from edged.core.manifest import Classify, Golden, Manifest
from edged.core.tensors import decides_otherwise, difference, disagreement
from edged.models.bundle import Bundle
from edged.models.selftest import Proof, check_tensors, golden_samples

SAMPLES = 16
KEPT_BYTES = 1 << 20
"""So many samples are kept, or fewer where they are large, but one at least."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How one sample came out: the worst difference in any element, in steps (or absolute), and what is wrong.

    `worst` is NaN where any element is, and decides nothing; `same` is whether the same label is decided for, None
    where the model has none to decide for.
    """

    worst: float
    same: bool | None = None
    problem: str = ""


class _Sample(NamedTuple):
    inputs: Arrays
    outputs: Arrays


class Agreement:
    """What a twin said of some samples, to hold others against. Any thread may ask, of a runner it may run."""

    def __init__(self, manifest: Manifest, samples: Sequence[_Sample]) -> None:
        self._manifest = manifest
        self._samples = samples

    def compare(self, runner: Runner) -> Iterator[Comparison]:
        """How a runner does on each sample, from rest. Raises what the runner raises."""
        runner.reset()
        for sample in self._samples:
            yield self._compare(sample, runner.run(sample.inputs))
        runner.reset()

    def prove(self, runner: Runner) -> Proof:
        """Hold a runner against all samples, from rest, and leave it at rest.

        Raises:
            ModelError: it disagrees, and how.
            BundleError: it has other tensors than the manifest says.
        """
        check_tensors(self._manifest, runner)
        worst = [self._hold(runner, index, found) for index, found in enumerate(self.compare(runner))]
        return Proof(len(worst), max(worst))

    def check(self, runner: Runner) -> None:
        """Hold a runner against the first sample alone, from rest, and leave it at rest. Raises ModelError."""
        runner.reset()
        sample = self._samples[0]
        self._hold(runner, 0, self._compare(sample, runner.run(sample.inputs)))
        runner.reset()

    def times(self, runner: Runner, runs: int, within: float = math.inf) -> list[float]:
        """Seconds of so many single runs, or of those begun `within` so many seconds, after one that is not timed.

        From rest, and left at rest.
        """
        runner.reset()
        feeds = cycle(sample.inputs for sample in self._samples)
        runner.run(next(feeds))
        seconds = []
        end = time.perf_counter() + within
        for inputs in islice(feeds, runs):
            begun = time.perf_counter()
            if begun > end:
                break
            runner.run(inputs)
            seconds.append(time.perf_counter() - begun)
        runner.reset()
        return seconds

    def _hold(self, runner: Runner, index: int, found: Comparison) -> float:
        if found.problem:
            model = f"{self._manifest.name} {self._manifest.version}"
            raise ModelError(
                f"{model} on {runner.info.delegate} disagrees with the CPU on sample {index}: {found.problem}",
                hint="another version of the delegate or of the model is needed: edgectl prove",
            )
        return found.worst

    def _compare(self, sample: _Sample, outputs: Arrays) -> Comparison:
        manifest = self._manifest
        deciding = manifest.postprocess.output if isinstance(manifest.postprocess, Classify) else None
        worst, same, problem = 0.0, None, ""
        for number, (spec, got, expected) in enumerate(zip(manifest.outputs, outputs, sample.outputs, strict=True)):
            golden = manifest.golden or Golden()
            decides = number == deciding and manifest.golden is not None  # noise is nothing to decide for
            problem = problem or disagreement(spec, got, expected, golden, decides=decides)
            worst = float(np.maximum(worst, difference(got, expected)))
            if number == deciding:
                same = not (math.isnan(worst) or decides_otherwise(got, expected))
        return Comparison(worst=worst, same=same, problem=problem)


def agreement(bundle: Bundle, twin: Runner) -> Agreement:
    """Have the twin say what it computes, from rest, and leave it at rest.

    Raises:
        BundleError: the golden samples are damaged.
        ModelError: the twin fails.
    """
    samples: list[_Sample] = []
    size = 0
    twin.reset()
    for inputs in islice(_inputs(bundle), SAMPLES):
        outputs = [output.copy() for output in twin.run(inputs)]
        size += sum(array.nbytes for array in (*inputs, *outputs))
        if samples and size > KEPT_BYTES:
            break
        samples.append(_Sample(inputs, outputs))
    twin.reset()
    return Agreement(bundle.manifest, samples)


def _inputs(bundle: Bundle) -> Iterator[Arrays]:
    manifest = bundle.manifest
    if manifest.golden is not None:
        inputs, _ = golden_samples(bundle, manifest.golden)
        yield from ([array.copy() for array in arrays] for arrays in zip(*inputs, strict=True))
        return
    random = np.random.default_rng(0)
    for _ in range(SAMPLES):
        yield [_noise(random, each.tensor) for each in manifest.inputs]


def _noise(random: np.random.Generator, spec: TensorSpec) -> NDArray[Any]:
    dtype = spec.numpy_dtype
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return random.integers(bounds.min, bounds.max, spec.shape, dtype=dtype, endpoint=True)
    if dtype.kind == "b":
        return random.integers(0, 2, spec.shape).astype(dtype)
    return random.standard_normal(spec.shape).astype(dtype)
