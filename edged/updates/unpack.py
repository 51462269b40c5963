"""What has come to be installed, and how it becomes a folder: a container, a delta that stands for one, or a bare file.

All of this reads and writes disks, and belongs on another thread than the event loop's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, NamedTuple

from msgspec.structs import replace

from edged.core import delta
from edged.core import manifest as manifests
from edged.core.container import Head, read_head
from edged.core.errors import BundleError, StoreError
from edged.core.manifest import Version
from edged.models.atomic_files import Disk, refusal
from edged.models.bare_file import Bare, inherit, next_version, stand_for
from edged.models.bare_file import read as read_bare
from edged.models.bundle import Bundle, head_of_folder, open_folder, unpack
from edged.models.delta import expand
from edged.models.store import MAX_HEAD_BYTES, Store

RESERVE = 1 << 20
"""Bytes that unpacking leaves free, for ledgers and whatever else the board has to write."""


class Submission(NamedTuple):
    """A file to be installed: a container, a delta to the version `base`, or `bare`; its head is known."""

    file: Path
    head: Head
    base: str = ""
    bare: bool = False


def read(file: Path) -> Submission:
    """A container or a delta.

    Raises:
        BundleError: it is neither.
        StoreError: it cannot be read.
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
    """A bare file with the contract of the version it would replace, as the one after that and after the floor.

    If that version is made of this very file, it is that version.

    Raises:
        BundleError: it is not a sound .tflite file, or its tensors are others.
        StoreError: it cannot be read.
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
    """Return the head of a version's container; that of a bare file at a path is derived, as it has no manifest."""
    if bundle.derived:
        return Head(bundle.manifest, manifests.encode(bundle.manifest), b"")
    return head_of_folder(bundle.folder)


def unpack_beside(arrival: Submission, store: Store, disk: Disk) -> Bundle:
    """Unpack it into the folder `arriving` of its model, and read it back.

    Raises:
        BundleError: it is damaged, or a delta to what is not here.
        StoreError: there is no room for it, or the disk refuses.
    """
    head = arrival.head
    shelf = store.shelf(head.manifest.name)
    disk.make_folder(shelf.versions)
    missing = head.size + RESERVE - shelf.free()
    if missing > 0:
        raise StoreError(
            f"{shelf.folder}: there is no room for {head.manifest.name} {head.manifest.version}: "
            f"{missing} more bytes are needed",
            hint="free some space on this disk",
            retryable=True,
        )
    with arrival.file.open("rb") as stream:
        unpacked = unpack(_whole(arrival, stream, store), shelf.arriving, disk)
    if unpacked.digest != head.digest:
        raise BundleError("the container changed while it was read", hint="send it again", retryable=True)
    return open_folder(shelf.arriving)


def place(arrival: Submission, store: Store, disk: Disk) -> None:
    """Put it from `arriving` into its place, which only something damaged can have. Raises StoreError."""
    shelf = store.shelf(arrival.head.manifest.name)
    disk.remove(shelf.version(arrival.head.digest))
    disk.place(shelf.arriving, shelf.version(arrival.head.digest))


def _whole(arrival: Submission, stream: IO[bytes], store: Store) -> IO[bytes]:
    """The container that a file is or stands for."""
    if arrival.bare:
        return stand_for(arrival.head, stream)
    if arrival.base:
        return expand(stream, _base(arrival.head.manifest.name, arrival.base, store))
    return stream


def _base(name: str, base: str, store: Store) -> Path:
    """The folder of the version that a delta is to be added to."""
    if base not in store.shelf(name).present() and base not in store.factory(name):
        raise BundleError(
            f"it is a delta to a version of {name} that is not on this board: {base[:12]}",
            hint="send the full bundle",
        )
    return store.open(name, base).folder
