"""A bundle: a folder with a model, the manifest, the files listed there, and optional signatures.

A bundle returned by `open_folder` has been read back from disk and agrees with the manifest to the last byte. `unpack`
makes such a folder from a container, and `examine` verifies either without keeping a copy. `derive` makes the missing
manifest of a bare .tflite file from tensors and TFLite metadata.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import replace

from edged.core import manifest as manifests
from edged.core.container import MAX_SIGNATURES_BYTES, ContainerReader, Head, Piece
from edged.core.detection_spec import AnchorFile, AnchorTable, DetectObjects, SsdAnchors
from edged.core.digest import file_sha256, sha256
from edged.core.errors import BundleError, EdgedError, StoreError
from edged.core.labels import numbered
from edged.core.manifest import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, File, Input, Manifest, PreprocessStep, unlabelled
from edged.core.manifest_outcomes import Embed
from edged.core.manifest_parts import FILE_NAME
from edged.core.references import MAX_REFERENCE_FILE, References
from edged.core.tflite_file import TfliteFile, inspect

if TYPE_CHECKING:
    from edged.core.derived import Derived

MAX_ANCHORS_BYTES = 4 << 20
MANIFEST = "manifest.json"
DRAFT, DRAFT_MODEL = "manifest.toml", "model.tflite"
"""Files of a draft (`edgectl model draft`), from which `edgectl pack` makes a bundle."""

SIGNATURES = "manifest.json.sig"
BARE_SUFFIX = ".tflite"
_BLOCK = 256 << 10


class Bundle(msgspec.Struct, frozen=True):
    """A verified manifest, the folder, and the identity of the version: see `digest`.

    `derived` describes the derivation of the manifest of a bare file; empty for a real manifest. `references` are the
    reference vectors of embeddings, by the name of their file.
    """

    manifest: Manifest
    folder: Path
    derived: tuple[str, ...] = ()
    digest: str = ""
    references: Mapping[str, References] = {}

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / self.manifest.model

    @property
    def path(self) -> Path:
        """Return the opened path: the folder, or the bare file."""
        return self.model if self.derived else self.folder

    @property
    def is_there(self) -> bool:
        """Return whether all files still exist, though possibly with other content."""
        try:
            return all((self.folder / name).is_file() for name in self.manifest.files)
        except OSError:
            return False

    def file(self, name: str) -> Path:
        """Return the path of a file in the manifest. Raises BundleError for any other name."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder}: the manifest lists no file {name!r}", hint="list it in `files`")
        return self.folder / name


def names_bare(url: str) -> bool:
    """Return whether the path of a URL names a bare file."""
    return url.partition("#")[0].partition("?")[0].endswith(BARE_SUFFIX)


def open_folder(folder: Path) -> Bundle:
    """Open a bundle's folder and verify completely: no file missing, changed or added.

    Labels missing in the manifest are taken from the model's TFLite metadata, and so is the normalisation of float
    inputs; pixels of a picture are fed unchanged into 8-bit inputs.

    Raises:
        BundleError: the bundle is unsound; the message names the file. `retryable` if a file cannot be read at present.
    """
    refuse_draft(folder)
    try:
        data = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = manifests.decode(data)
        _refuse_strangers(folder, manifest)
        for name, expected in manifest.files.items():
            _verify(folder / name, expected)
        manifest = _complete(manifest, folder / manifest.model)
        return Bundle(manifest, folder, digest=sha256(data), references=references_in(folder, manifest))
    except BundleError as error:
        raise BundleError(f"{folder}: {error.message}", hint=error.hint, retryable=error.retryable) from error


def references_in(folder: Path, manifest: Manifest) -> dict[str, References]:
    """Return the reference vectors of the embeddings of a manifest, by file. Raises BundleError."""
    found = {}
    for part in manifest.parts.values():
        post = part.postprocess
        if isinstance(post, Embed) and post.references:
            from edged.models.references import read_references

            data = _read(folder / post.references, MAX_REFERENCE_FILE)
            found[post.references] = read_references(post.references, data, manifest.outputs[post.output])
    return found


def refuse_draft(folder: Path) -> None:
    """Raise BundleError for a draft, the folder that `edgectl model draft` makes."""
    if (folder / DRAFT).is_file() and not (folder / MANIFEST).exists():
        command = f"edgectl pack {quote(str(folder))}"
        raise BundleError(f"{folder} is a draft, with {DRAFT} and no {MANIFEST}", hint=f"make a bundle: {command}")


def digest(folder: Path) -> str:
    """Return the identity of the version in a folder: the SHA-256 of manifest.json, in hexadecimal. No other file is
    read.

    Raises:
        BundleError: the manifest is missing or too big.
    """
    return sha256(_read(folder / MANIFEST, MAX_MANIFEST_BYTES))


class FolderWriter(Protocol):
    """Effects of `unpack` on a disk. Each may raise StoreError."""

    def make_folder(self, folder: Path) -> None:
        """Make a new folder."""

    def write(self, file: Path, pieces: Iterable[bytes]) -> None:
        """Make a file of these pieces, and sync the file."""

    def sync_folder(self, folder: Path) -> None:
        """Make the entries of a folder durable."""

    def remove(self, folder: Path) -> None:
        """Remove a folder with its content, if present."""


def unpack(container: IO[bytes], folder: Path, disk: FolderWriter) -> Head:
    """Make a folder from a container read from a stream, in place of any existing folder, and return the head.

    Only verified bytes are written, no more than stated in the manifest, and the manifest comes last: a power cut
    leaves no bundle. After an error the folder is removed.

    Raises:
        BundleError: the container is unsound.
        StoreError: the disk refuses.
    """
    disk.remove(folder)
    try:
        disk.make_folder(folder)
        reader = ContainerReader()
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
    """Read a container's file or a bundle's folder to the end, verify completely, and return the head.

    Raises:
        BundleError: the bundle is unsound.
        StoreError: the bundle cannot be read.
    """
    if bundle.is_dir():
        open_folder(bundle)
        return head_of_folder(bundle)
    try:
        with bundle.open("rb") as container:
            reader = ContainerReader()
            for _ in _pieces(container, reader):
                pass
            return _finish(reader)
    except OSError as error:
        raise StoreError(f"{bundle} cannot be read: {error.strerror}", hint="name an .edgm file or a folder") from error
    except BundleError as error:
        raise BundleError(f"{bundle}: {error.message}", hint=error.hint) from error


def head_of_folder(folder: Path) -> Head:
    """Return the head of the container of a folder. Raises BundleError; files are not read."""
    manifest = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
    signed = (folder / SIGNATURES).exists()
    signatures = _read(folder / SIGNATURES, MAX_SIGNATURES_BYTES) if signed else b""
    return Head(manifests.decode(manifest), manifest, signatures)


def derive(tflite: Path, name: str = "") -> Bundle:
    """Return a bundle for a bare .tflite classifier whose use is certain.

    The model is named `name`, or after the file.

    Raises:
        BundleError: the file is unsound, no CPU can run the model, or only a manifest can state its use; the hint has
            the part of the manifest to fill in.
    """
    try:
        if not re.match(FILE_NAME, tflite.name):
            raise BundleError(
                "a file with this name cannot be in a bundle", hint=f"rename it: {bare_name(tflite)}.tflite"
            )
        data = _read(Path(os.path.realpath(tflite)), MAX_FILE_BYTES)
        structure = inspect(data)
        sides = certain(structure)
        missing = {key: part for side in sides for key, part in side.part.items()}
        if missing:
            raise BundleError("; ".join(filter(None, (each.problem for each in sides))), hint=fill_in(tflite, missing))
        manifest = Manifest(
            schema=manifests.SCHEMA,
            name=name or bare_name(tflite),
            version="0",
            files={tflite.name: File(bytes=len(data), sha256=sha256(data))},
            model=tflite.name,
            inputs=(Input(tensor=structure.inputs[0]),),
            outputs=structure.outputs,
            **sides.input.fields,
            **sides.output.fields,
        )
        encoded = manifests.encode(with_metadata(manifest, structure))
        return Bundle(
            manifests.decode(encoded),
            tflite.parent,
            derived=tuple(side.fact for side in sides),
            digest=sha256(encoded),
        )
    except BundleError as error:
        raise BundleError(f"{tflite}: {error.message}", hint=error.hint) from error


def read_structure(tflite: Path) -> TfliteFile:
    """Return the structure of a .tflite file. Raises BundleError for an unreadable or other file."""
    try:
        return inspect(_read(Path(os.path.realpath(tflite)), MAX_FILE_BYTES))
    except BundleError as error:
        raise BundleError(f"{tflite}: {error.message}", hint=error.hint) from error


def certain(structure: TfliteFile) -> Derived:
    """Return the certain properties of a .tflite file. Raises BundleError if no CPU can run the model."""
    if structure.obstacle:
        reason, remedy = structure.obstacle
        raise BundleError(f"it {reason}", hint=remedy)
    if structure.strange_ops:
        raise BundleError(
            f"the model needs the custom op {structure.strange_ops[0][:100]}, which TFLite's runtimes do not have",
            hint="convert the model without this op",
        )
    from edged.core import derived  # most models have a manifest

    return derived.derive(structure)


def fill_in(tflite: Path, part: Mapping[str, Any]) -> str:
    """Return the hint with the missing part of a manifest."""
    kinds = (
        'its postprocess.kind is "classification" (with "labels"), "regression" (with "names"), "anomaly", '
        '"detection" (with "decoder" and "labels") or another kind of the manual; '
    )
    return (
        f"save this part of a manifest, completed, as part.json, and run edgectl pack {quote(str(tflite))} "
        "--version 1 --manifest part.json; "
        f"{kinds if 'postprocess' in part else ''}{msgspec.json.encode(part).decode()}"
    )


# Reading a container


def _pieces(container: IO[bytes], reader: ContainerReader) -> Iterator[Piece]:
    try:
        while block := container.read(_BLOCK):
            yield from reader.feed(block)
    except OSError as error:
        raise StoreError(f"the container cannot be read: {error.strerror}", hint=_AGAIN) from error


def _finish(reader: ContainerReader) -> Head:
    reader.close()
    assert reader.head is not None  # present after a complete read
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
        name = os.fsencode(min(extra)).decode("utf-8", "replace")  # a damaged folder may hold any name
        raise BundleError(f"{name} is not in the manifest", hint="remove it, or list it in `files`")


def _verify(path: Path, expected: File) -> None:
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            raise BundleError(f"{path.name} has {size} bytes, and the manifest says {expected.bytes}", hint=_AGAIN)
        digest = file_sha256(file)
    if digest != expected.sha256:
        raise BundleError(f"{path.name} is damaged: the SHA-256 differs from the manifest's", hint=_AGAIN)


def _read(path: Path, limit: int) -> bytes:
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BundleError(f"{path.name} has {size} bytes", hint=f"at most {limit} are allowed")
        return file.read(limit)


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file only: a link could lead out of the bundle, and a device or a pipe could hang.

    A failing card raises errors during the read.
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
    """Return the error for an unreadable file: damaged, or retryable if the board lacks a resource."""
    scarce = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    hint = "restart edged, or end other processes" if scarce else _AGAIN
    return BundleError(f"{what}: {error.strerror}", hint=hint, retryable=scarce)


# Completing a manifest from TFLite metadata


def _complete(manifest: Manifest, model: Path) -> Manifest:
    needs_labels = bool(unlabelled(manifest))
    if manifest.backend == "tflite" and (needs_labels or not manifest.preprocess):
        manifest = with_metadata(manifest, inspect(_read(model, MAX_FILE_BYTES)))
    if unlabelled(manifest):
        raise BundleError(
            "there are no labels in the manifest, and none in TFLite metadata", hint="give the manifest `labels`"
        )
    return with_anchors(manifest, model.parent)


def with_anchors(manifest: Manifest, folder: Path) -> Manifest:
    """Return the manifest with the anchors of the file in the folder, if it names a file.

    Raises:
        BundleError: the file cannot be read as anchors.
    """
    post = manifest.postprocess
    if not (isinstance(post, DetectObjects) and isinstance(post.decoder, SsdAnchors)):
        return manifest
    origin = post.decoder.anchors
    if not isinstance(origin, AnchorFile):
        return manifest
    table = AnchorTable(rows=_anchors(origin.file, _read(folder / origin.file, MAX_ANCHORS_BYTES)), order=origin.order)
    manifest = replace(manifest, postprocess=replace(post, decoder=replace(post.decoder, anchors=table)))
    manifests.check(manifest)
    return manifest


def _anchors(file: str, data: bytes) -> tuple[tuple[float, float, float, float], ...]:
    import numpy as np  # in memory already, unless a verb of edgectl reads the bundle

    try:
        array = np.load(BytesIO(data), allow_pickle=False)
        if array.dtype.kind != "f" or array.shape != (len(array), 4) or not np.isfinite(array).all():
            raise ValueError(f"{array.dtype} {list(array.shape)}, not finite floats of [anchors, 4]")
    except (ValueError, TypeError, EOFError, OSError, SyntaxError) as error:
        raise BundleError(f"{file} cannot be read as anchors: {error}", hint=_AGAIN) from error
    return tuple(map(tuple, array.tolist()))


def with_metadata(manifest: Manifest, structure: TfliteFile) -> Manifest:
    """Return the manifest with preprocessing and labels of the file in place of missing ones."""
    if not manifest.preprocess:
        manifest = replace(manifest, preprocess=steps_in(manifest, structure))
    for name, post in unlabelled(manifest).items():
        if isinstance(post, DetectObjects):
            from edged.core import derived

            manifest = manifest.with_labels(name, derived.object_labels(structure))
        elif post.output < len(structure.output_metadata):
            manifest = manifest.with_labels(name, numbered(structure.output_metadata[post.output].labels))
    manifests.encode(manifest)  # checks the metadata against the bounds of a manifest
    return manifest


def steps_in(manifest: Manifest, structure: TfliteFile) -> tuple[PreprocessStep, ...]:
    """Return the preprocessing requested by a file's metadata, or the default."""
    from edged.core import derived

    fed = [index for index, each in enumerate(manifest.inputs) if each.feed == "window"]
    tensors = tuple(manifest.inputs[index].tensor for index in fed)
    metadata = tuple(structure.input_metadata[index] for index in fed if index < len(structure.input_metadata))
    return derived.default_steps(manifest.window, tensors, metadata)


def bare_name(tflite: Path) -> str:
    """The name of a .tflite file, made fit for a model."""
    name = re.sub(r"[^a-z0-9_-]+", "-", tflite.stem.lower()).strip("-_")
    return name[:64] or "model"
