"""Submitted files, and the way from file to folder: for a container, a delta to a version, or a bare model file.

Every function here reads or writes disks and so blocks: not for the thread of the event loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, NamedTuple

from msgspec.structs import replace

from edged.core import delta
from edged.core import manifest as manifests
from edged.core.container import Head, read_head
from edged.core.errors import BundleError, StoreError
from edged.core.manifest_parts import Version
from edged.models.atomic_files import Disk, refusal
from edged.models.bare_file import Bare, inherit, next_version, stand_for
from edged.models.bare_file import read as read_bare
from edged.models.bundle import Bundle, head_of_folder, open_folder, unpack
from edged.models.delta import expand
from edged.models.store import MAX_HEAD_BYTES, Store
from edged.system.later import hashlib

RESERVE = 1 << 20
"""Bytes left free by unpacking, for ledgers and other files of the board."""


class Submission(NamedTuple):
    """A file to install, with the head of the version: a container, a delta to the version `base`, or a `bare` file."""

    file: Path
    head: Head
    base: str = ""
    bare: bool = False


def read(file: Path) -> Submission:
    """Read the head of a container or a delta.

    Raises:
        BundleError: the file is neither.
        StoreError: the file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_HEAD_BYTES)
    except OSError as error:
        raise refusal(file, error) from error
    if data.startswith(delta.MAGIC):
        head = delta.read_head(data)
        return Submission(file, head.version, head.base)
    return Submission(file, read_head(data))


def adopt(file: Path, bare: Bare, before: Bundle, floor: Version) -> Submission:
    """Give a bare file the contract of the version `before`, and the number after that version and the floor.

    If `before` is made of the same file, the submission is `before`.

    Raises:
        BundleError: the file is not a sound .tflite file, or the tensors differ from `before`.
        StoreError: the file cannot be read.
    """
    data = read_bare(file)
    manifest = before.manifest
    twin = manifest.files[manifest.model].sha256 == hashlib.sha256(data).hexdigest()
    if twin and bare.version in (None, manifest.version):
        return Submission(file, _head_of(before), bare=True)
    latest = max(floor, manifest.version, key=manifests.version_key)
    base = replace(manifest, name=bare.model)
    old = read_bare(before.model) if manifest.backend == "tflite" else None
    return Submission(file, inherit(data, base, bare.version or next_version(latest), old), bare=True)


def _head_of(bundle: Bundle) -> Head:
    """Return the head of a version's container. A bare file at a path has a derived head, for want of a manifest."""
    if bundle.derived:
        return Head(bundle.manifest, manifests.encode(bundle.manifest), b"")
    return head_of_folder(bundle.folder)


def unpack_beside(submission: Submission, store: Store, disk: Disk) -> Bundle:
    """Unpack a submission into the folder `arriving` of the model, and read the folder back.

    Raises:
        BundleError: the file is damaged, or a delta to an absent version.
        StoreError: the disk is full or refuses.
    """
    head = submission.head
    folder = store.model(head.manifest.name)
    disk.make_folder(folder.versions)
    missing = head.size + RESERVE - folder.free()
    if missing > 0:
        raise StoreError(
            f"{folder.folder}: there is no room for {head.manifest.name} {head.manifest.version}: "
            f"{missing} more bytes are needed",
            hint="free some space on this disk",
            retryable=True,
        )
    with submission.file.open("rb") as stream:
        unpacked = unpack(_container(submission, stream, store), folder.arriving, disk)
    if unpacked.digest != head.digest:
        raise BundleError("the container changed during the install", hint="send the file again", retryable=True)
    return open_folder(folder.arriving)


def place(submission: Submission, store: Store, disk: Disk) -> None:
    """Move a version from `arriving` into place, instead of any damaged folder there. Raises StoreError."""
    folder = store.model(submission.head.manifest.name)
    disk.remove(folder.version(submission.head.digest))
    disk.place(folder.arriving, folder.version(submission.head.digest))


def _container(submission: Submission, stream: IO[bytes], store: Store) -> IO[bytes]:
    """Return the container in or behind a file."""
    if submission.bare:
        return stand_for(submission.head, stream)
    if submission.base:
        return expand(stream, _base(submission.head.manifest.name, submission.base, store))
    return stream


def _base(name: str, base: str, store: Store) -> Path:
    """Return the folder of the base of a delta."""
    if base not in store.model(name).present() and base not in store.factory(name):
        raise BundleError(
            f"the delta builds on a version of {name} not on this board: {base[:12]}",
            hint="send the full bundle",
        )
    return store.open(name, base).folder
