"""Proof of a model: the tensors match the manifest, and the golden samples give the stated outputs.

Loading alone proves little: a model with a flipped byte loads and runs, and so does a sound model on a runtime that
miscomputes.
"""

from __future__ import annotations

import math
from functools import cached_property
from math import prod
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edged.api import Arrays, Backend, BundleError, ModelError, Runner, TensorSpec
from edged.core.detection_spec import DetectObjects, SsdPostprocess
from edged.core.errors import quantity
from edged.core.manifest import Golden, Manifest
from edged.core.sample_agreement import SampleAgreement
from edged.models.bundle import Bundle
from edged.models.npy import read_array, unreadable
from edged.system.later import zipfile

MAX_SAMPLES = 1000
MAX_GOLDEN_BYTES = 64 << 20


class TensorSpecs(Protocol):
    """Inputs and outputs of a model, loaded or read from a file."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs in order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the outputs in order."""


class Proof(msgspec.Struct, frozen=True):
    """Result of a proof: number of golden samples, and the worst difference of an element of an output.

    `worst` is in quantisation steps, or absolute for outputs without quantisation. Zero samples prove only that the
    model loads and has the manifest's tensors.
    """

    samples: int
    worst: float

    def words(self, manifest: Manifest) -> str:
        """Return the proof in words."""
        if not self.samples:
            return "loads, but has no golden samples"
        quantised = all(spec.scale for spec in manifest.outputs)
        off = quantity(self.worst, "quantisation step") if quantised else f"{self.worst:.3g}"
        return f"right on {quantity(self.samples, 'golden sample')}, off by at most {off}"


class SelfTest:
    """Self-test of the runners of a bundle. The golden samples are read once, for the first."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def prove(self, runner: Runner) -> Proof:
        """Check a loaded model against the manifest and run the golden samples, from rest, and leave the model at rest.

        Raises:
            BundleError: the tensors differ from the manifest, or the golden samples are damaged.
            ModelError: the model fails, or computes other outputs.
        """
        manifest = self._bundle.manifest
        check_tensors(manifest, runner)
        if manifest.golden is None:
            return Proof(0, 0.0)
        runner.reset()
        worst = 0.0
        for index, (given, expected) in enumerate(self._samples):
            worst = max(worst, _prove_sample(manifest, manifest.golden, runner, index, given, expected))
        runner.reset()
        return Proof(len(self._samples), worst)

    @cached_property
    def _samples(self) -> list[tuple[Arrays, Arrays]]:
        """The inputs and outputs of each sample."""
        golden = self._bundle.manifest.golden
        assert golden is not None
        inputs, outputs = golden_samples(self._bundle, golden)
        return list(zip(zip(*inputs, strict=True), zip(*outputs, strict=True), strict=True))


def prove(bundle: Bundle, runner: Runner) -> Proof:
    """Prove a runner of a bundle. Raises the errors of `SelfTest.prove`."""
    return SelfTest(bundle).prove(runner)


def class_path(backend: Backend) -> str:
    """The class of a backend, as "module:Class"."""
    return f"{type(backend).__module__}:{type(backend).__qualname__}"


def shaped(backend: Backend, manifest: Manifest) -> Backend:
    """Return the backend with the shapes of the model's inputs, if the backend resizes open shapes."""
    if not hasattr(backend, "shapes"):
        return backend
    return replace(backend, shapes=tuple(each.tensor.shape for each in manifest.inputs))


def check_tensors(manifest: Manifest, model: TensorSpecs) -> None:
    """Compare shape, dtype and quantisation of a model's tensors with the manifest; names may differ.

    Raises:
        BundleError: they differ; the message states both.
    """
    inputs = tuple(each.tensor for each in manifest.inputs)
    sizeless = _sizeless(manifest)
    for kind, said, found in (("input", inputs, model.inputs), ("output", manifest.outputs, model.outputs)):
        if len(said) != len(found):
            raise _differs(manifest, f"{len(said)} {kind}s", f"{len(found)}")
        for index, (one, other) in enumerate(zip(said, found, strict=True)):
            if not (_same(one, other) or (kind == "output" and index in sizeless and not one.shape)):
                raise _differs(manifest, f"{kind} {index} is {_words(one)}", _words(other))


def _sizeless(manifest: Manifest) -> tuple[int, ...]:
    """Return the indices of outputs that may have any size: boxes, of which the file does not state the number."""
    match manifest.postprocess:
        case DetectObjects(decoder=SsdPostprocess() as decoder):
            return decoder.outputs
    return ()


def _differs(manifest: Manifest, said: str, found: str) -> BundleError:
    return BundleError(
        f"{manifest.name} {manifest.version}: the manifest says {said}, the model {found}",
        hint="make the bundle again from this model",
    )


def _same(one: TensorSpec, other: TensorSpec) -> bool:
    """Return whether a tensor is as stated; sizes known to the runtime only have no shape in a file."""
    return (
        other.shape in (one.shape, ())
        and (one.dtype, one.zero_point) == (other.dtype, other.zero_point)
        and math.isclose(one.scale, other.scale, rel_tol=1e-6)
    )


def _words(spec: TensorSpec) -> str:
    quantisation = f" (scale {spec.scale:.8g}, zero point {spec.zero_point})" if spec.scale else ""
    return f"{spec.dtype} {list(spec.shape)}{quantisation}"


def _prove_sample(
    manifest: Manifest, golden: Golden, runner: Runner, index: int, inputs: Arrays, expected: Arrays
) -> float:
    """Return the worst difference in a sample."""
    agreement, outputs = SampleAgreement(manifest), runner.run(inputs)
    if problem := agreement.problem(golden, outputs, expected):
        raise ModelError(
            f"{manifest.name} {manifest.version} fails its self-test on {runner.info.runtime}: "
            f"golden sample {index}: {problem}",
            hint="another version of the runtime, or of the model, is needed",
        )
    return agreement.worst(outputs, expected)


# The golden samples


def golden_samples(bundle: Bundle, golden: Golden) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return the golden inputs and outputs, an array of shape `(n, *tensor shape)` for each tensor.

    Raises:
        BundleError: the samples cannot be read, or belong to another model.
    """
    manifest = bundle.manifest
    specs = {f"input_{index}": each.tensor for index, each in enumerate(manifest.inputs)}
    specs |= {f"output_{index}": spec for index, spec in enumerate(manifest.outputs)}
    try:
        with zipfile.ZipFile(bundle.file(golden.file)) as archive:
            arrays = {name: _read(archive, name, spec) for name, spec in specs.items()}
            extra = set(archive.namelist()) - {f"{name}.npy" for name in specs}
    except unreadable() as error:
        raise _broken(bundle, f"cannot be read: {error}") from error
    except BundleError as error:
        raise _broken(bundle, error.message) from error
    if extra:
        raise _broken(bundle, f"holds {min(extra)}, which is no array of this model's")
    if len({len(array) for array in arrays.values()}) != 1:
        raise _broken(bundle, "its arrays differ in their number of samples")
    count = len(manifest.inputs)
    return list(arrays.values())[:count], list(arrays.values())[count:]


def _read(archive: zipfile.ZipFile, name: str, spec: TensorSpec) -> NDArray[Any]:
    """Return the samples of a tensor."""

    def problem(shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> str:
        samples = shape[0] if shape else 0
        if (shape[1:], dtype, fortran) != (spec.shape, spec.numpy_dtype, False):
            return f"{dtype} {list(shape[1:])}, and the tensor is {_words(spec)}"
        if not 1 <= samples <= MAX_SAMPLES or prod(shape) * dtype.itemsize > MAX_GOLDEN_BYTES:
            return f"{samples} samples, and 1 to {MAX_SAMPLES} in 64 MB are allowed"
        return ""

    return read_array(archive, f"{name}.npy", problem)


def _broken(bundle: Bundle, problem: str) -> BundleError:
    return BundleError(
        f"{bundle.folder}: the golden samples: {problem}", hint="make them again with the model they came from"
    )
