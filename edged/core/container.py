"""The container, `.edgm`: one version of a model as one file, verified while being received.

    8 bytes   "edgm" 0 0 0 1
    u32 LE    length of the manifest       u32 LE   length of the signatures
    the bytes of manifest.json, then the signatures, then every file listed in the manifest, in order of names

The format has no names, paths, offsets or compression that could be forged: position and length of every file follow
from the manifest alone. The manifest has a digest for each 256 KiB of each file. A reader therefore never holds more
than 256 KiB, hands out verified bytes only, and loses at most a chunk on a bad link.

`ContainerReader` accepts bytes in pieces and yields verified pieces; `write` yields the bytes of a container, after
verification by a `ContainerReader`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import msgspec

from edged.core import manifest as manifests
from edged.core.digest import openssl_sha256, sha256
from edged.core.errors import BundleError
from edged.core.manifest import CHUNK_BYTES, MAX_MANIFEST_BYTES, File, Manifest

SUFFIX = ".edgm"
MAGIC = b"edgm\0\0\0\1"
MAX_SIGNATURES_BYTES = 64 << 10
PREFIX = struct.Struct("<8sII")


class Head(msgspec.Struct, frozen=True):
    """Part of a container before the files. `data` is the manifest as bytes, `signatures` the signatures over them."""

    manifest: Manifest
    data: bytes
    signatures: bytes

    @property
    def digest(self) -> str:
        """Return the identity of this version: the SHA-256 of the manifest's bytes, in hexadecimal."""
        return sha256(self.data)

    @property
    def transfer(self) -> str:
        """Return the identifier of a transfer of this container: the SHA-256 of the head, in hexadecimal.

        The head holds the digests of all following bytes, so the identifier covers the whole container.
        """
        start = PREFIX.pack(MAGIC, len(self.data), len(self.signatures))
        return sha256(start + self.data + self.signatures)

    @property
    def length(self) -> int:
        """Return the number of bytes before the first file."""
        return PREFIX.size + len(self.data) + len(self.signatures)

    @property
    def size(self) -> int:
        """Return the number of bytes of the whole container."""
        return self.length + sum(file.bytes for file in self.manifest.files.values())


class Piece(NamedTuple):
    """Verified bytes of a file, beginning at `offset`. Pieces arrive in order, file by file."""

    name: str
    offset: int
    data: bytes


def read_head(data: bytes) -> Head:
    """Return the head of a container from its first bytes; bytes after the head are ignored.

    Raises:
        BundleError: `data` is not a container, is invalid, or ends within the head.
    """
    if len(data) < PREFIX.size:
        raise _broken_off(len(data))
    manifest_bytes, signatures_bytes = _lengths(data)
    end = PREFIX.size + manifest_bytes
    if len(data) < end + signatures_bytes:
        raise _broken_off(len(data))
    said = data[PREFIX.size : end]
    manifest = manifests.decode(said)
    _require_chunks(manifest)
    return Head(manifest, said, data[end : end + signatures_bytes])


class ContainerReader:
    """Reader of a container that arrives in pieces of any size.

    `head` is set once enough bytes have arrived. Verify the signatures before using later pieces: without them the
    digests prove nothing. After an error the reader stands at byte `verified` and can be fed from there again; try this
    if the error is `retryable`, since then a chunk was damaged in transit.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.verified = 0
        self._held = bytearray()
        self._wanted = PREFIX.size
        self._plan: Iterator[_Chunk] = iter(())
        self._next: _Chunk | None = None
        self._whole = openssl_sha256()

    @property
    def complete(self) -> bool:
        """Return whether the whole container has arrived and is correct."""
        return self.head is not None and self._next is None

    def feed(self, data: bytes | memoryview) -> Iterator[Piece]:
        """Add the next bytes, and yield verified pieces. Iterate to the end.

        Raises:
            BundleError: the bytes are not part of a valid container.
        """
        rest = memoryview(data)
        while rest:
            if self.complete:
                raise BundleError(f"data follows the end of the container at byte {self.verified}", hint=_AGAIN)
            missing = self._wanted - len(self._held)
            self._held += rest[:missing]
            rest = rest[missing:]
            if len(self._held) == self._wanted:
                yield from self._take()

    def close(self) -> None:
        """Raise BundleError if the container is incomplete."""
        if not self.complete:
            raise _broken_off(self.verified + len(self._held))

    def _take(self) -> Iterator[Piece]:
        """Verify the held bytes, which are now a complete prefix, head or chunk."""
        held = bytes(self._held)
        try:
            if self._next is not None:
                self._held.clear()
                yield self._take_chunk(held, self._next)
            elif len(held) == PREFIX.size:
                self._wanted += sum(_lengths(held))
            else:
                self._held.clear()
                self._take_head(held)
        except BundleError:
            self._held.clear()
            self._wanted = self._next.bytes if self._next else PREFIX.size
            raise

    def _take_head(self, held: bytes) -> None:
        self.head = read_head(held)
        self.verified = len(held)
        self._plan = _chunks(self.head.manifest)
        self._expect_next()

    def _take_chunk(self, held: bytes, chunk: _Chunk) -> Piece:
        if openssl_sha256(held).hexdigest() != chunk.sha256:
            raise BundleError(
                f"{chunk.name}: the {len(held)} bytes from {chunk.offset} on are damaged: the SHA-256 differs from the "
                "manifest's",
                hint=_AGAIN,
                retryable=True,
            )
        if chunk.offset == 0:
            self._whole = openssl_sha256()
        self._whole.update(held)
        if chunk.whole and self._whole.hexdigest() != chunk.whole:
            raise BundleError(
                f"{chunk.name}: the chunks match the manifest, but the digest of the whole file does not",
                hint="make the container again: edgectl pack",
            )
        self.verified += len(held)
        self._expect_next()
        return Piece(chunk.name, chunk.offset, held)

    def _expect_next(self) -> None:
        self._next = next(self._plan, None)
        self._wanted = self._next.bytes if self._next else 0


def write(manifest: bytes, signatures: bytes, body: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a container. `body` yields the contents of the files in order of names.

    Raises:
        BundleError: the manifest is invalid, has no digests of chunks, or belongs to another body.
    """
    reader = ContainerReader()
    start = PREFIX.pack(MAGIC, len(manifest), len(signatures)) + manifest + signatures
    for data in chain([start], body):
        for _ in reader.feed(data):
            pass
        yield data
    reader.close()


def measure(data: bytes) -> File:
    """Return the manifest's entry for a file with this content. Raises BundleError if empty or too large."""
    if not 1 <= len(data) <= manifests.MAX_FILE_BYTES:
        raise BundleError(f"a file has {len(data)} bytes", hint=f"1 to {manifests.MAX_FILE_BYTES} are allowed")
    view = memoryview(data)
    chunks = (view[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
    return File(
        bytes=len(data),
        sha256=sha256(data),
        chunks=tuple(sha256(chunk) for chunk in chunks),
    )


class _Chunk(NamedTuple):
    """The next expected chunk; `whole` is the digest of the file if this chunk is its last, otherwise ""."""

    name: str
    offset: int
    bytes: int
    sha256: str
    whole: str


def _chunks(manifest: Manifest) -> Iterator[_Chunk]:
    for name, file in sorted(manifest.files.items()):
        for index, digest in enumerate(file.chunks):
            offset = index * CHUNK_BYTES
            last = index == len(file.chunks) - 1
            yield _Chunk(name, offset, min(CHUNK_BYTES, file.bytes - offset), digest, file.sha256 if last else "")


def _lengths(data: bytes) -> tuple[int, int]:
    """Return the lengths of the manifest and the signatures."""
    magic, manifest, signatures = PREFIX.unpack_from(data)
    if magic[:4] != MAGIC[:4]:
        raise BundleError("not a container: the file does not begin with edgm", hint="name an .edgm file: edgectl pack")
    if magic != MAGIC:
        raise BundleError(
            f"the container has version {int.from_bytes(magic[4:], 'big')}, but this edged reads only 1",
            hint="update edged, or pack the model with this version of edgectl",
        )
    if not 1 <= manifest <= MAX_MANIFEST_BYTES:
        raise BundleError(
            f"the container's manifest has {manifest} bytes", hint=f"1 to {MAX_MANIFEST_BYTES} are allowed"
        )
    if signatures > MAX_SIGNATURES_BYTES:
        raise BundleError(
            f"the container's signatures have {signatures} bytes", hint=f"at most {MAX_SIGNATURES_BYTES} are allowed"
        )
    return manifest, signatures


def _require_chunks(manifest: Manifest) -> None:
    for name, file in manifest.files.items():
        if not file.chunks:
            raise BundleError(
                f"manifest.json: files: {name}: a container needs the digests of its chunks",
                hint="make the container with edgectl pack",
            )


_AGAIN = "fetch or send the bundle again"


def _broken_off(at: int) -> BundleError:
    return BundleError(f"the container breaks off after {at} bytes", hint=_AGAIN, retryable=True)
