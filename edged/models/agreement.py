"""Agreement of an accelerated model with its twin on the CPU, checked at load and at intervals in service.

The golden samples state the correct outputs; the twin computes the outputs of this very board, and an accelerator must
agree with the twin within the manifest's tolerance. A model without golden samples gets noise, which is meaningless,
but still reveals an accelerator with different results.
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
from edged.core.manifest import Golden, Manifest
from edged.core.sample_agreement import SampleAgreement
from edged.models.bundle import Bundle
from edged.models.selftest import Proof, check_tensors, golden_samples

SAMPLES = 16
KEPT_BYTES = 1 << 20
"""Limit of the kept samples in bytes; at least one sample is kept."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of one sample: the worst difference of an element, in steps (or absolute), and the fault in words.

    `worst` is NaN if any element is, and then no label is decided. `same` is true if the same label is decided, None if
    the model decides no label.
    """

    worst: float
    same: bool | None = None
    problem: str = ""


class _Sample(NamedTuple):
    inputs: Arrays
    outputs: Arrays


class Agreement:
    """Outputs of a twin for some samples, for comparison. Any thread may compare a runner that this thread may run."""

    def __init__(self, manifest: Manifest, samples: Sequence[_Sample]) -> None:
        self._manifest = manifest
        self._rule = SampleAgreement(manifest)
        self._samples = samples

    def compare(self, runner: Runner) -> Iterator[Comparison]:
        """Yield a comparison for each sample, from rest. Raises the runner's errors."""
        runner.reset()
        for sample in self._samples:
            yield self._compare(sample, runner.run(sample.inputs))
        runner.reset()

    def prove(self, runner: Runner) -> Proof:
        """Compare a runner on all samples, from rest, and leave the runner at rest.

        Raises:
            ModelError: the runner disagrees.
            BundleError: the tensors differ from the manifest.
        """
        check_tensors(self._manifest, runner)
        worst = [self._hold(runner, index, found) for index, found in enumerate(self.compare(runner))]
        return Proof(len(worst), max(worst))

    def check(self, runner: Runner) -> None:
        """Compare a runner on the first sample alone, from rest, and leave the runner at rest. Raises ModelError."""
        runner.reset()
        sample = self._samples[0]
        self._hold(runner, 0, self._compare(sample, runner.run(sample.inputs)))
        runner.reset()

    def times(self, runner: Runner, runs: int, within: float = math.inf) -> list[float]:
        """Return the seconds of up to `runs` single runs begun `within` so many seconds, after one untimed run.

        The runner starts from rest, and is left at rest.
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
        golden, rule = self._manifest.golden or Golden(), self._rule
        decides = self._manifest.golden is not None  # noise decides no label
        problem = rule.problem(golden, outputs, sample.outputs, decides=decides)
        worst = rule.worst(outputs, sample.outputs)
        otherwise = rule.decides_otherwise(golden, outputs, sample.outputs)
        same = None if otherwise is None else not (math.isnan(worst) or otherwise)
        return Comparison(worst=worst, same=same, problem=problem)


def agreement(bundle: Bundle, twin: Runner) -> Agreement:
    """Compute the twin's outputs from rest, and leave the twin at rest.

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
