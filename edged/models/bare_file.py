"""A bare .tflite file as a version: the file states the computation, and the replaced version the meaning.

Window, channels, preprocessing, labels, postprocessing, needs, limits and reference statistics are inherited from the
version before; the tensors must be the same in number, shape and dtype. Quantisation is the file's own, since it
concerns the storage of numbers and not their meaning. Labels and normalisation in the TFLite metadata that differ from
the file before are the file's own, too. Golden samples cannot be inherited, since another model answers differently: a
bare file is only known to load and run, and is accepted only where unsigned versions are.

`inherit` makes the head of a container, always the same for the same file, version and contract: a repeated transfer is
recognised. `stand_for` makes the rest, so that a bare file may be read like a container.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
from msgspec.structs import replace

from edged.core import container
from edged.core import manifest as manifests
from edged.core.container import Head, measure
from edged.core.derived import object_labels
from edged.core.detection_spec import DetectObjects
from edged.core.errors import BundleError, StoreError, some
from edged.core.labels import numbered
from edged.core.manifest import MAX_FILE_BYTES, Manifest, WithLabels
from edged.core.manifest_parts import Name, Version
from edged.core.tflite_file import TfliteFile, inspect
from edged.core.types import TensorSpec
from edged.models.bundle import steps_in
from edged.models.delta import as_stream
from edged.system.later import hashlib

_BLOCK = 256 << 10
_PACK = "pack the model with a complete manifest: edgectl pack"


class Bare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model of a bare file, and the version; None for the version after the one in service."""

    model: Name
    version: Version | None = None


def transfer_id(bare: Bare, sha256: str) -> str:
    """Return the identifier of a transfer: the SHA-256, in hexadecimal, of the file's digest and description."""
    return hashlib.sha256(f"bare {bare.model} {bare.version or ''} {sha256}".encode()).hexdigest()


def is_bare(data: bytes) -> bool:
    """Return whether `data` is the beginning of a .tflite file."""
    return data[4:8] == b"TFL3"


def next_version(version: str) -> str:
    """Return the version with the last number raised by 1: 1.0.1 after 1.0.0."""
    front, dot, last = version.rpartition(".")
    return f"{front}{dot}{int(last) + 1}"


def nothing_to_inherit(model: str) -> BundleError:
    """Return the error for a bare file as first version of a model."""
    return BundleError(
        f"no version of {model} is present to inherit the contract from",
        hint=_PACK,
    )


def read(tflite: Path) -> bytes:
    """Return the content of a file.

    Raises:
        BundleError: the file is not a .tflite file, or too big.
        StoreError: the file cannot be read.
    """
    try:
        with tflite.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StoreError(f"{tflite} cannot be read: {error.strerror}", hint="check the path") from error
    if not is_bare(data):
        raise BundleError("not a .tflite file: it has no TFL3 in its head", hint="without --model it is a bundle")
    if len(data) > MAX_FILE_BYTES:
        raise BundleError("the .tflite file is too big", hint=f"at most {MAX_FILE_BYTES} bytes are allowed")
    return data


def inherit(data: bytes, base: Manifest, version: str, before_it: bytes | None = None) -> Head:
    """Return the head of the container of a bare file, with the contract of the version `base`.

    `before_it` is the file of that version: metadata common to both files were overruled by the manifest.

    Raises:
        BundleError: the file is damaged, or the tensors differ; the message names the first. Or the labels differ, and
            the contract names a missing label.
    """
    before = f"{base.name} {base.version}"
    old = inspect(before_it) if before_it is not None and is_bare(before_it) else None
    if base.signature is not None:
        raise BundleError(f"{before} is a signature of a file with several", hint=_PACK)
    found = inspect(data)
    inputs, outputs = _resized(base, found)
    tensors = _matched("input", before, tuple(each.tensor for each in base.inputs), inputs)
    manifest = replace(
        base,
        version=version,
        created=0,
        description=f"A bare file, with the contract of {before}.",
        files={base.model: measure(data)},
        inputs=tuple(replace(each, tensor=tensor) for each, tensor in zip(base.inputs, tensors, strict=True)),
        outputs=_matched("output", before, base.outputs, outputs),
        golden=None,
        variants=(),
    )
    manifest = _with_own_labels(_with_own_steps(manifest, found, old, before), found, old, before)
    return Head(manifest, manifests.encode(manifest), b"")


def own_parts(manifest: Manifest, base: Manifest) -> list[str]:
    """Return the parts that `inherit` took from the file instead of the version before, in words."""
    parts = []
    if manifest.labels != base.labels:
        parts.append(f"labels ({some(manifest.labels, 3)})")
    if manifest.preprocess != base.preprocess:
        parts.append("normalisation")
    return parts


def _with_own_labels(manifest: Manifest, found: TfliteFile, old: TfliteFile | None, before: str) -> Manifest:
    labels = _labels_in(found, manifest)
    if not labels or labels in (manifest.labels, _labels_in(old, manifest)):
        return manifest
    assert isinstance(manifest.postprocess, WithLabels)
    decision, reference = manifest.postprocess.decision, manifest.reference
    named = {*decision.thresholds, *decision.background, *(reference.shares if reference else ())}
    lost = sorted(named - set(labels))
    if lost or len(labels) != len(manifest.labels):
        lacking = f"and no {lost[0]!r}, which {before} names" if lost else f"{len(labels)} of them"
        raise BundleError(
            f"the labels in the file's metadata are others than those of {before}: {some(labels, 3)}, {lacking}",
            hint=_PACK,
        )
    return replace(manifest, labels=labels)


def _labels_in(file: TfliteFile | None, manifest: Manifest) -> tuple[str, ...]:
    post = manifest.postprocess
    if file is None or not isinstance(post, WithLabels):
        return ()
    if isinstance(post, DetectObjects):
        return object_labels(file)
    if post.output >= len(file.output_metadata):
        return ()
    return numbered(file.output_metadata[post.output].labels)


def _with_own_steps(manifest: Manifest, found: TfliteFile, old: TfliteFile | None, before: str) -> Manifest:
    own, olds = (steps_in(manifest, file) if file else () for file in (found, old))
    if not own or own in (manifest.preprocess, olds):
        return manifest
    if manifest.preprocess != olds:
        raise BundleError(
            f"the file's metadata state another normalisation than before, and {before} has preprocessing of its own",
            hint=_PACK,
        )
    return replace(manifest, preprocess=own)


def stand_for(head: Head, file: IO[bytes]) -> IO[bytes]:
    """Return a stream of the container with this head, made of the file."""
    return as_stream(container.write(head.data, head.signatures, _blocks(file)))


class BareCheck:
    """Check of a bare file of `total` bytes during the transfer, against the announced digest."""

    def __init__(self, total: int, sha256: str) -> None:
        self.total = total
        self.verified = 0
        self._sha256 = sha256
        self._head = b""
        self._whole = hashlib.sha256()

    def feed(self, data: bytes, /) -> None:
        """Add the next bytes. Raises BundleError if the bytes cannot be correct, and then starts again."""
        self._head = (self._head + data)[:8]
        self._whole.update(data)
        self.verified += len(data)
        if len(self._head) == 8 and not is_bare(self._head):
            self._start_over()
            raise BundleError("not a .tflite file: it has no TFL3 in its head", hint="send the file itself")
        if self.verified == self.total and self._whole.hexdigest() != self._sha256:
            self._start_over()
            raise BundleError("the file was damaged in transit", hint="send the file again", retryable=True)

    def _start_over(self) -> None:
        self.verified = 0
        self._head = b""
        self._whole = hashlib.sha256()


def _resized(base: Manifest, found: TfliteFile) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the file's inputs, with open shapes resized as in the version before, and the resulting outputs."""
    stated = tuple(each.tensor.shape for each in base.inputs)
    inputs = tuple(
        replace(tensor, shape=shape) if _fits(tensor.shape, shape, axes) else tensor
        for tensor, shape, axes in zip(found.inputs, stated, found.dynamic, strict=False)
    )
    inputs += found.inputs[len(inputs) :]
    if inputs == found.inputs:
        return inputs, found.outputs
    return inputs, tuple(replace(tensor, shape=()) for tensor in found.outputs)  # sizes known to the runtime only


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Return whether a shape with open axes can become another."""
    return len(shape) == len(wanted) and all(
        axis in axes or one == other for axis, (one, other) in enumerate(zip(shape, wanted, strict=True))
    )


def _matched(
    kind: str, before: str, said: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """Return the earlier tensors with the file's quantisation. Raises BundleError if they differ otherwise."""
    if len(said) != len(found):
        raise BundleError(f"{before} has {len(said)} {kind} tensors, and the file {len(found)}", hint=_PACK)
    for index, (one, other) in enumerate(zip(said, found, strict=True)):
        sized = replace(other, shape=other.shape or one.shape)  # no shape: known to the runtime only
        if _kind(one) != _kind(sized):
            raise BundleError(
                f"{kind} {index}, {one.name!r}, is {_words(one)} in {before}, and {_words(other)} in the file",
                hint=_PACK,
            )
    return tuple(
        replace(one, scale=other.scale, zero_point=other.zero_point) for one, other in zip(said, found, strict=True)
    )


def _kind(tensor: TensorSpec) -> tuple[tuple[int, ...], str, bool]:
    return tensor.shape, tensor.dtype, bool(tensor.scale)


def _words(tensor: TensorSpec) -> str:
    return f"{'quantised ' if tensor.scale else ''}{tensor.dtype} {list(tensor.shape)}"


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block
