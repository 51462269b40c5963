"""Deltas on disk: made of two versions' folders, and read like a container.

`expand` may replace a container in any read: `unpack(expand(delta, base), folder, disk)`. A failed reconstruction
raises like a damaged container, and the full bundle is required.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from edged.core import container
from edged.core.delta import (
    BLOCK,
    FULL,
    MAGIC,
    PREFIX,
    SAME,
    SUBTRACT,
    DeltaHead,
    head_length,
    pack,
    read_head,
    rebuild,
    subtract,
    write,
)
from edged.core.errors import BundleError, EdgedError
from edged.core.manifest import Manifest, decode
from edged.models.bundle import MANIFEST, digest, examine
from edged.models.container_check import ContainerCheck

WORTH_IT = 0.5
"""A delta is below this share of the container, or not made at all."""


def make_delta(old: Path, new: Path) -> bytes | None:
    """Return the delta between the versions in two folders, or None if not much smaller than the container.

    Raises:
        BundleError: a bundle is unsound, or the new version does not fit a container.
        StoreError: a folder cannot be read.
    """
    base, version = examine(old), examine(new)
    files = [_smallest(old, base.manifest, new, version.manifest, name) for name in sorted(version.manifest.files)]
    delta = write(version, base.digest, files)
    return delta if len(delta) < version.size * WORTH_IT else None


def expand(delta: IO[bytes], base: Path) -> IO[bytes]:
    """Return the container made of a delta and the version in a folder, as a stream to be read once.

    Reading raises BundleError, also for an unreadable base: the full bundle needs no base. As with any container, only
    signatures and digests prove the content.
    """
    return as_stream(rebuild(delta, _Folder(base)))


def as_stream(pieces: Iterator[bytes]) -> IO[bytes]:
    """Return pieces of bytes as a file to be read once; reading raises the errors of `pieces`."""
    return io.BufferedReader(_Stream(pieces), BLOCK)


class DeltaCheck:
    """Check of a delta during the transfer. `approve` gets the head, and raises BundleError to end the transfer.

    Packed data have no digests of their own: data of the right length count as correct until the rebuilt container is
    read.
    """

    def __init__(self, approve: Callable[[DeltaHead], None]) -> None:
        self.total: int | None = None
        self.verified = 0
        self._approve = approve
        self._held = b""

    def feed(self, data: bytes, /) -> None:
        """Add the next bytes. Raises BundleError if the bytes cannot be correct, and then starts again."""
        if self.total is not None:
            self.verified += len(data)
            return
        held, self._held = self._held + data, b""
        if len(held) < PREFIX.size or len(held) < head_length(held):
            self._held = held
            return
        head = read_head(held)
        self._approve(head)
        self.total = head.size
        self.verified = len(held)


class VersionCheck:
    """Check of a container or a delta during the transfer, chosen by the first bytes.

    `approve` gets the head of the version's container, the identifier of the transfer, and the base of a delta ("" for
    a container). It raises BundleError to end the transfer.
    """

    def __init__(self, approve: Callable[[container.Head, str, str], None]) -> None:
        self._approve = approve
        self._check: ContainerCheck | DeltaCheck | None = None
        self._held = b""

    @property
    def total(self) -> int | None:
        """Return the length, once the head has arrived."""
        return self._check.total if self._check else None

    @property
    def verified(self) -> int:
        """Return the position up to which the data are correct, as far as known."""
        return self._check.verified if self._check else 0

    def feed(self, data: bytes, /) -> None:
        """Read the next bytes. Raises BundleError."""
        if self._check is None:
            data, self._held = self._held + data, b""
            if len(data) < len(MAGIC):
                self._held = data
                return
            self._check = self._check_for(data)
        try:
            self._check.feed(data)
        except EdgedError:
            if not self._check.verified:
                self._check = None  # the next bytes may belong to another file
            raise

    def _check_for(self, data: bytes) -> ContainerCheck | DeltaCheck:
        if data.startswith(MAGIC):
            return DeltaCheck(lambda head: self._approve(head.version, head.transfer, head.base))
        return ContainerCheck(lambda head: self._approve(head, head.transfer, ""))


def _smallest(old: Path, base: Manifest, new: Path, version: Manifest, name: str) -> tuple[int, int, bytes]:
    """Return the recipe for a file of the new version: a method, the number of the base's file, and packed data."""
    known = sorted(base.files)
    for number, other in enumerate(known):
        if base.files[other].sha256 == version.files[name].sha256:
            return SAME, number, b""
    full = pack(_blocks(new / name))
    twin = base.model if name == version.model else name
    if twin not in base.files:
        return FULL, 0, full
    less = pack(_differences(new / name, old / twin))
    return (SUBTRACT, known.index(twin), less) if len(less) < len(full) else (FULL, 0, full)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _differences(path: Path, base: Path) -> Iterator[bytes]:
    with base.open("rb") as other:
        for block in _blocks(path):
            yield subtract(block, other.read(len(block)))


class _Folder:
    """A version's folder, as the base of a delta."""

    def __init__(self, folder: Path) -> None:
        self.digest = digest(folder)
        self._files = [folder / name for name in sorted(decode((folder / MANIFEST).read_bytes()).files)]

    def read(self, file: int, offset: int, size: int) -> bytes:
        if file >= len(self._files):
            return b""
        try:
            with self._files[file].open("rb") as opened:
                return os.pread(opened.fileno(), size, offset)
        except OSError as error:
            raise BundleError(
                f"{self._files[file]} cannot be read: {error.strerror}", hint="fetch or send the full bundle"
            ) from error


class _Stream(io.RawIOBase):
    """Pieces of bytes, to be read as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        taken = min(len(into), len(self._rest))
        into[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken
