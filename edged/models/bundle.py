"""A bundle: a folder with a model, its manifest, the files the manifest vouches for, and signatures if it has any.

What `open_folder` returns has been read back from disk and agrees with its manifest to the last byte. `unpack` makes
such a folder from a container, and `examine` reads either through without keeping it. `derive` makes the manifest that
a bare .tflite file lacks, from its tensors and its TFLite metadata.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import groupby
from math import prod
from pathlib import Path
from typing import IO, Protocol

import msgspec
from msgspec.structs import replace

from edged.core import manifest as manifests
from edged.core.container import MAX_SIGNATURES_BYTES, Head, Piece, Reader
from edged.core.errors import BundleError, EdgedError, StoreError
from edged.core.manifest import (
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    Channel,
    Classify,
    Decision,
    File,
    Input,
    Manifest,
    Normalise,
    Step,
    WindowSpec,
)
from edged.core.tflite_file import TensorMetadata, TfliteFile, inspect
from edged.core.types import TensorSpec

MANIFEST = "manifest.json"
SIGNATURES = "manifest.json.sig"
_BLOCK = 256 << 10


class Bundle(msgspec.Struct, frozen=True):
    """A verified manifest and the folder it was found in."""

    manifest: Manifest
    folder: Path

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / self.manifest.model

    def file(self, name: str) -> Path:
        """The path of a file the manifest lists. Raises BundleError if it lists none of that name."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder}: the manifest lists no file {name!r}", hint="list it in `files`")
        return self.folder / name


def open_folder(folder: Path) -> Bundle:
    """Open a bundle's folder and verify all of it: nothing missing, nothing changed, nothing extra.

    Labels and normalisation that the manifest leaves out are taken from the model's TFLite metadata.

    Raises:
        BundleError: it is not a sound bundle; the message names the file. `retryable`: it could not be read for now.
    """
    try:
        manifest = manifests.decode(_read(folder / MANIFEST, MAX_MANIFEST_BYTES))
        _refuse_strangers(folder, manifest)
        for name, expected in manifest.files.items():
            _verify(folder / name, expected)
        return Bundle(_complete(manifest, folder / manifest.model), folder)
    except BundleError as error:
        raise BundleError(f"{folder}: {error.message}", hint=error.hint, retryable=error.retryable) from error


def digest(folder: Path) -> str:
    """The identity of the version in a folder: the SHA-256 of its manifest.json, in hex. Nothing else is looked at.

    Raises:
        BundleError: there is none, or it is too big to be one.
    """
    return hashlib.sha256(_read(folder / MANIFEST, MAX_MANIFEST_BYTES)).hexdigest()


class Disk(Protocol):
    """What `unpack` does to a disk. Each may raise StoreError."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder that is not there yet."""

    def write(self, file: Path, pieces: Iterable[bytes]) -> None:
        """Make a file of these pieces, and sync it."""

    def sync_folder(self, folder: Path) -> None:
        """Make sure that what was made in a folder stays there."""

    def remove(self, folder: Path) -> None:
        """Remove a folder with all that is in it, if it is there."""


def unpack(container: IO[bytes], folder: Path, disk: Disk) -> Head:
    """Make a folder of the container read from a stream, in place of whatever is there; its head.

    Only verified bytes are written, no more of them than the manifest states, and the manifest comes last: what a power
    cut leaves is no bundle. After an error nothing is left.

    Raises:
        BundleError: it is not a sound container.
        StoreError: the disk refuses.
    """
    disk.remove(folder)
    try:
        disk.make_folder(folder)
        reader = Reader()
        for name, pieces in groupby(_pieces(container, reader), lambda piece: piece.name):
            disk.write(folder / name, (piece.data for piece in pieces))
        head = _finish(reader)
        if head.signatures:
            disk.write(folder / SIGNATURES, [head.signatures])
        disk.write(folder / MANIFEST, [head.data])
        disk.sync_folder(folder)
    except EdgedError:
        disk.remove(folder)
        raise
    return head


def examine(bundle: Path) -> Head:
    """Read a container's file, or a bundle's folder, to its end and verify all of it; its head.

    Raises:
        BundleError: it is not sound.
        StoreError: it cannot be read.
    """
    if bundle.is_dir():
        open_folder(bundle)
        return head_of_folder(bundle)
    try:
        with bundle.open("rb") as container:
            reader = Reader()
            for _ in _pieces(container, reader):
                pass
            return _finish(reader)
    except OSError as error:
        raise StoreError(f"{bundle} cannot be read: {error.strerror}", hint="name an .edgm file or a folder") from error
    except BundleError as error:
        raise BundleError(f"{bundle}: {error.message}", hint=error.hint) from error


def head_of_folder(folder: Path) -> Head:
    """What the container of a folder begins with. Raises BundleError; the files are not looked at."""
    manifest = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
    signed = (folder / SIGNATURES).exists()
    signatures = _read(folder / SIGNATURES, MAX_SIGNATURES_BYTES) if signed else b""
    return Head(manifests.decode(manifest), manifest, signatures)


def derive(tflite: Path) -> Bundle:
    """A bundle for a bare .tflite file that classifies.

    Its one input is a picture `[1, height, width, channels]` of uint8 samples, rows of channels `[1, length,
    channels]`, or one row `[1, channels]`. Labels, normalisation and threshold come from the TFLite metadata. Without
    them labels are numbered, and an 8-bit picture model takes pixels as they are.

    Raises:
        BundleError: it is no sound TFLite file, or only a manifest can say how to use it.
    """
    try:
        data = _read(tflite, MAX_FILE_BYTES)
        structure = inspect(data)
        manifest = _derived(tflite, structure, File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        return Bundle(manifests.decode(manifests.encode(manifest)), tflite.parent)
    except BundleError as error:
        raise BundleError(f"{tflite}: {error.message}", hint=error.hint) from error


# Reading a container


def _pieces(container: IO[bytes], reader: Reader) -> Iterator[Piece]:
    try:
        while block := container.read(_BLOCK):
            yield from reader.feed(block)
    except OSError as error:
        raise StoreError(f"the container cannot be read: {error.strerror}", hint=_AGAIN) from error


def _finish(reader: Reader) -> Head:
    reader.close()
    assert reader.head is not None  # or it would not have come to its end
    return reader.head


# Verifying


_AGAIN = "fetch or install the model again"


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise _unreadable("cannot be listed", error) from error
    extra = names - {MANIFEST, SIGNATURES, *manifest.files}
    if extra:
        name = os.fsencode(min(extra)).decode("utf-8", "replace")  # a damaged folder may name anything
        raise BundleError(f"{name} is not in the manifest", hint="remove it, or list it in `files`")


def _verify(path: Path, expected: File) -> None:
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            raise BundleError(f"{path.name} has {size} bytes, and the manifest says {expected.bytes}", hint=_AGAIN)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected.sha256:
        raise BundleError(f"{path.name} is damaged: its SHA-256 is not the manifest's", hint=_AGAIN)


def _read(path: Path, limit: int) -> bytes:
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BundleError(f"{path.name} has {size} bytes", hint=f"at most {limit} are allowed")
        return file.read(limit)


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file and nothing else: a link could lead out of the bundle, a device or a pipe could hang us.

    A card that fails does so while it is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleError(f"{path.name} is not a regular file", hint=_AGAIN)
        with os.fdopen(descriptor, "rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(f"{path.name} cannot be read", error) from error


def _unreadable(what: str, error: OSError) -> BundleError:
    """What cannot be read is damaged, unless it is the board that lacks what it takes to read it."""
    scarce = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    hint = "restart edged, or end other processes" if scarce else _AGAIN
    return BundleError(f"{what}: {error.strerror}", hint=hint, retryable=scarce)


# Completing a manifest from TFLite metadata


def _complete(manifest: Manifest, model: Path) -> Manifest:
    needs_labels = isinstance(manifest.postprocess, Classify) and not manifest.labels
    if manifest.backend == "tflite" and (needs_labels or not manifest.preprocess):
        manifest = _with_metadata(manifest, inspect(_read(model, MAX_FILE_BYTES)))
    if needs_labels and not manifest.labels:
        raise BundleError(
            "there are no labels in the manifest, and none in TFLite metadata", hint="give the manifest `labels`"
        )
    return manifest


def _with_metadata(manifest: Manifest, structure: TfliteFile) -> Manifest:
    fed = [index for index, each in enumerate(manifest.inputs) if each.feed == "window"]
    if not manifest.preprocess and len(fed) == 1 and fed[0] < len(structure.input_metadata):
        manifest = replace(manifest, preprocess=_normalisation(structure.input_metadata[fed[0]]))
    post = manifest.postprocess
    if isinstance(post, Classify) and not manifest.labels and post.output < len(structure.output_metadata):
        manifest = replace(manifest, labels=structure.output_metadata[post.output].labels)
    manifests.encode(manifest)  # it holds what the metadata say to the bounds of a manifest
    return manifest


def _normalisation(metadata: TensorMetadata) -> tuple[Step, ...]:
    return (Normalise(mean=metadata.mean, std=metadata.std),) if metadata.mean and metadata.std else ()


# Deriving a manifest


_GIVE_MANIFEST = "put it in a folder with a manifest.json that says how to use it"


def _derived(tflite: Path, structure: TfliteFile, file: File) -> Manifest:
    if len(structure.inputs) != 1:
        raise BundleError(f"it has {len(structure.inputs)} inputs, and one is expected", hint=_GIVE_MANIFEST)
    source, scores = structure.inputs[0], _scores(structure)
    window = _window(source)
    heard, said = (
        found[0] if found else TensorMetadata() for found in (structure.input_metadata, structure.output_metadata)
    )
    return Manifest(
        schema=manifests.SCHEMA,
        name=_name(tflite),
        version="0",
        files={tflite.name: file},
        model=tflite.name,
        window=window,
        inputs=(Input(tensor=source),),
        outputs=structure.outputs,
        preprocess=_normalisation(heard) or _pixels_as_they_are(window, source),
        labels=said.labels or tuple(f"class_{index}" for index in range(scores)),
        postprocess=Classify(decision=Decision(threshold=said.threshold or 0.0)),
    )


def _window(tensor: TensorSpec) -> WindowSpec:
    match tensor.shape:
        case (1, height, width, depth):
            return WindowSpec(length=1, hop=1, sample_shape=(height, width, depth), dtype="uint8")
        case (1, length, columns):
            return WindowSpec(length=length, hop=length, channels=_channels(columns))
        case (1, columns):
            return WindowSpec(length=1, hop=1, channels=_channels(columns))
    raise BundleError(f"what to make of an input of shape {list(tensor.shape)} is not clear", hint=_GIVE_MANIFEST)


def _channels(count: int) -> tuple[Channel, ...]:
    # One more than is allowed is enough to be refused. A hostile file may claim billions.
    return tuple(Channel(name=f"c{index}") for index in range(min(count, 4097)))


def _scores(structure: TfliteFile) -> int:
    if not structure.outputs:
        raise BundleError("it has no output", hint=_GIVE_MANIFEST)
    shape = structure.outputs[0].shape
    if not shape or prod(shape) != shape[-1]:
        raise BundleError(f"an output of shape {list(shape)} is no list of scores", hint=_GIVE_MANIFEST)
    return min(shape[-1], 100_001)


def _pixels_as_they_are(window: WindowSpec, tensor: TensorSpec) -> tuple[Step, ...]:
    """What makes stored values of the pixels' own: 0 to 255 in uint8, and the same less 128 in int8."""
    if not window.sample_shape or tensor.dtype not in ("uint8", "int8") or not tensor.scale > 0:
        return ()
    darkest = 0 if tensor.dtype == "uint8" else -128
    return (Normalise(mean=(float(tensor.zero_point - darkest),), std=(1.0 / tensor.scale,)),)


def _name(tflite: Path) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", tflite.stem.lower()).strip("-_")
    return name[:64] or "model"
