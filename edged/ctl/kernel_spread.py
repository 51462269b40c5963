"""Measure the differences between kernels of the runtime on golden samples, as the tolerance for other boards.

A board may compute with other kernels than the workstation: another processor's, or an older runtime's. So the
tolerance of golden samples is half as wide again as what XNNPACK, the built-in and the reference kernels differ by
here, and at least a quantisation step; a sample that they decide differently is no golden one.
"""

from __future__ import annotations

from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edged.api import Backend, ControlError, EdgedError, Runner
from edged.backends.tflite import OtherKernels, TfliteBackend
from edged.core.errors import quantity
from edged.core.manifest import Golden, Manifest
from edged.core.sample_agreement import SampleAgreement
from edged.core.tensors import difference, other_share
from edged.ctl.golden_samples import GoldenSample
from edged.ctl.local_model import apart, load_apart
from edged.models.selftest import shaped

_MARGIN = 1.5
_LEAST_STEPS = 1.0
_LEAST_SHARE = 1e-4
"""Share of the largest value of a float output: sums in another order differ by less."""


class Spread(NamedTuple):
    """Worst difference of quantised outputs (in steps), of float outputs, and of classes of pixels (share of others);
    and samples with another decision.
    """

    steps: float
    absolute: float
    pixels: float
    otherwise: frozenset[int]


def spread(samples: list[GoldenSample], manifest: Manifest, runner: Runner) -> Spread:
    """Run the samples on other kernels, from rest, and compare."""
    rule = SampleAgreement(manifest)
    worst = {True: 0.0, False: 0.0}
    pixels = 0.0
    otherwise = set()
    runner.reset()
    for index, sample in enumerate(samples):
        outputs = runner.run(sample.inputs)
        for number in rule.elementwise:
            quantised = bool(manifest.outputs[number].scale)
            worst[quantised] = max(worst[quantised], difference(outputs[number], sample.outputs[number]))
        pixels = max([pixels, *(other_share(outputs[number], sample.outputs[number]) for number in rule.class_maps)])
        if rule.decides_otherwise(manifest.golden or Golden(), outputs, sample.outputs):
            otherwise.add(index)
    return Spread(worst[True], worst[False], pixels, frozenset(otherwise))


def measure(samples: list[GoldenSample], manifest: Manifest, model: Path, backend: Backend) -> Spread | None:
    """Return the spread over all other kernels of the runtime; None for a backend without other kernels."""
    found = []
    with apart(model.name) as host:
        for other in _others(shaped(backend, manifest)):
            with suppress(EdgedError):  # not every op is in all of them
                runner = load_apart(host, other, model, manifest.signature)
                found.append(spread(samples, manifest, runner))
                runner.close()
    if not found:
        return None
    return Spread(
        max(each.steps for each in found),
        max(each.absolute for each in found),
        max(each.pixels for each in found),
        frozenset().union(*(each.otherwise for each in found)),
    )


def tolerance(found: Spread, samples: list[GoldenSample], manifest: Manifest) -> Golden:
    """Return the tolerance for samples with these differences between kernels."""
    floats = [
        float(np.abs(np.nan_to_num(sample.outputs[index].astype(np.float64))).max(initial=0.0))
        for sample in samples
        for index in SampleAgreement(manifest).elementwise
        if not manifest.outputs[index].scale
    ]
    least = Golden().steps if manifest.variants else _LEAST_STEPS  # an accelerator rounds as it likes
    return Golden(
        steps=float(max(least, ceil(_MARGIN * found.steps))),
        absolute=_rounded(min(1e30, max(_MARGIN * found.absolute, _LEAST_SHARE * max(floats, default=0.0), 1e-6))),
        pixels=min(1.0, max(Golden().pixels, _MARGIN * found.pixels)),
    )


def share(golden: Golden, samples: list[GoldenSample], manifest: Manifest) -> float:
    """Return the largest ratio of the tolerance to the range of an output, of the dtype or as measured."""
    shares = [golden.pixels if manifest.class_maps else 0.0]
    for index in SampleAgreement(manifest).elementwise:
        spec = manifest.outputs[index]
        if spec.scale:
            limits = np.iinfo(spec.numpy_dtype)
            shares.append(golden.steps / (limits.max - limits.min))
        else:
            seen = np.stack([sample.outputs[index].astype(np.float64) for sample in samples])
            reach = float(np.ptp(seen)) or float(np.abs(seen).max(initial=0.0))
            shares.append(golden.absolute / reach if reach else 0.0)
    return max(shares)


def words(found: Spread, manifest: Manifest) -> str:
    """Return the differences between kernels, in words."""
    kernels = "the runtime's kernels (XNNPACK, built-in, reference)"
    if not (found.steps or found.absolute or found.pixels):
        return f"{kernels} compute the same outputs"
    return f"{kernels} differ by up to {off(found.steps, found.absolute, found.pixels, manifest)}"


def off(steps: float, absolute: float, pixels: float, manifest: Manifest) -> str:
    """Return differences of outputs in words: in quantisation steps, absolute for outputs without quantisation, and as
    a share of pixels for classes of pixels.
    """
    parts = []
    others = [spec for index, spec in enumerate(manifest.outputs) if index not in manifest.class_maps]
    if any(spec.scale for spec in others):
        parts.append(quantity(steps, "quantisation step"))
    if any(not spec.scale for spec in others):
        parts.append(f"{absolute:.2g}")
    if manifest.class_maps:
        parts.append(f"{pixels:.1%} of the pixels")
    return " and ".join(parts)


def without(samples: list[GoldenSample], otherwise: frozenset[int]) -> list[GoldenSample]:
    """Return the samples with the same decision by all kernels. Raises ControlError if none is left."""
    kept = [sample for index, sample in enumerate(samples) if index not in otherwise]
    if not kept:
        raise ControlError(
            "the runtime's own kernels decide differently on every golden sample",
            hint="give --golden windows of which the model is surer",
        )
    return kept


def _others(backend: Backend) -> list[Backend]:
    if type(backend) is not TfliteBackend:
        return []
    return [
        OtherKernels(**{name: getattr(backend, name) for name in backend.__struct_fields__}, reference=reference)
        for reference in (False, True)
    ]


def _rounded(value: float) -> float:
    """Two digits, rounded up."""
    scale = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f"{ceil(value / scale) * scale:.1e}")
