"""The container: one version of a model as one file, `.edgm`, which can be checked as it arrives.

    8 bytes   "edgm" 0 0 0 1
    u32 LE    length of the manifest       u32 LE   length of the signatures
    the bytes of manifest.json, then the signatures, then every file the manifest lists, in the order of their names

There is no name, path, offset or compression in it, so there is nothing to lie with: what lies where and how much
there must be follows from the manifest alone. The manifest has a digest for each 256 KiB of each file, so a reader need
never hold more than that, nor hand out a byte before it is known to be right, and a bad link costs it a chunk.

`ContainerReader` takes bytes in as they come and gives verified pieces; `write` gives the bytes of a container, each of
which has been through a `ContainerReader`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import msgspec

from edged.core import manifest as manifests
from edged.core.errors import BundleError
from edged.core.manifest import CHUNK_BYTES, MAX_MANIFEST_BYTES, File, Manifest

SUFFIX = ".edgm"
MAGIC = b"edgm\0\0\0\1"
MAX_SIGNATURES_BYTES = 64 << 10
PREFIX = struct.Struct("<8sII")


class Head(msgspec.Struct, frozen=True):
    """What comes before the files. `data` are the manifest's own bytes, `signatures` those of whoever signed them."""

    manifest: Manifest
    data: bytes
    signatures: bytes

    @property
    def digest(self) -> str:
        """The identity of this version: the SHA-256 of the manifest's bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def transfer(self) -> str:
        """What a container with these very signatures is called on its way: the SHA-256 of its head, in hex.

        The head states the digests of everything after it, so this names each byte of the container.
        """
        start = PREFIX.pack(MAGIC, len(self.data), len(self.signatures))
        return hashlib.sha256(start + self.data + self.signatures).hexdigest()

    @property
    def length(self) -> int:
        """How many bytes come before the first file."""
        return PREFIX.size + len(self.data) + len(self.signatures)

    @property
    def size(self) -> int:
        """How many bytes the whole container has."""
        return self.length + sum(file.bytes for file in self.manifest.files.values())


class Piece(NamedTuple):
    """Verified bytes of a file, and where in it they begin. Files come one after another, and their pieces in order."""

    name: str
    offset: int
    data: bytes


def read_head(data: bytes) -> Head:
    """The head of a container, from its first bytes; what follows the head is ignored.

    Raises:
        BundleError: it is no container, or not a sound one, or it breaks off in the head.
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
    """Reads a container that comes in pieces of any size.

    `head` is there as soon as enough has come; its digests are only worth as much as its signatures, so look at those
    before using what follows. After an error the reader stands at byte `verified` of the container and can be fed from
    there again, which is worth while if the error is `retryable`: then a chunk was damaged on its way.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.verified = 0
        self._held = bytearray()
        self._wanted = PREFIX.size
        self._plan: Iterator[_Chunk] = iter(())
        self._next: _Chunk | None = None
        self._whole = hashlib.sha256()

    @property
    def complete(self) -> bool:
        """Whether all of it has come, and is right."""
        return self.head is not None and self._next is None

    def feed(self, data: bytes | memoryview) -> Iterator[Piece]:
        """Take in the next bytes. Iterate to the end.

        Raises:
            BundleError: they cannot be part of a sound container.
        """
        rest = memoryview(data)
        while rest:
            if self.complete:
                raise BundleError(f"the container goes on after its end, which is at byte {self.verified}", hint=_AGAIN)
            missing = self._wanted - len(self._held)
            self._held += rest[:missing]
            rest = rest[missing:]
            if len(self._held) == self._wanted:
                yield from self._take()

    def close(self) -> None:
        """Raises BundleError if the container has not come to its end."""
        if not self.complete:
            raise _broken_off(self.verified + len(self._held))

    def _take(self) -> Iterator[Piece]:
        """Judge what is held, which is now a whole prefix, head or chunk."""
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
        if hashlib.sha256(held).hexdigest() != chunk.sha256:
            raise BundleError(
                f"{chunk.name}: the {len(held)} bytes from {chunk.offset} on are damaged: their SHA-256 is not the "
                "manifest's",
                hint=_AGAIN,
                retryable=True,
            )
        if chunk.offset == 0:
            self._whole = hashlib.sha256()
        self._whole.update(held)
        if chunk.whole and self._whole.hexdigest() != chunk.whole:
            raise BundleError(
                f"{chunk.name}: each chunk has the digest the manifest states, and the whole has not",
                hint="make the container again: edgectl pack",
            )
        self.verified += len(held)
        self._expect_next()
        return Piece(chunk.name, chunk.offset, held)

    def _expect_next(self) -> None:
        self._next = next(self._plan, None)
        self._wanted = self._next.bytes if self._next else 0


def write(manifest: bytes, signatures: bytes, body: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a container. `body` are the contents of the files, one after another in the order of their names.

    Raises:
        BundleError: nobody could read it: the manifest is not sound, or has no digests of chunks, or not of this body.
    """
    reader = ContainerReader()
    start = PREFIX.pack(MAGIC, len(manifest), len(signatures)) + manifest + signatures
    for data in chain([start], body):
        for _ in reader.feed(data):
            pass
        yield data
    reader.close()


def measure(data: bytes) -> File:
    """What a manifest says of a file with this content. Raises BundleError if it is empty or too big for one."""
    if not 1 <= len(data) <= manifests.MAX_FILE_BYTES:
        raise BundleError(f"a file has {len(data)} bytes", hint=f"1 to {manifests.MAX_FILE_BYTES} are allowed")
    view = memoryview(data)
    chunks = (view[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
    return File(
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chunks=tuple(hashlib.sha256(chunk).hexdigest() for chunk in chunks),
    )


class _Chunk(NamedTuple):
    """What is expected next; `whole` is the digest of the file that ends with it, "" where it goes on."""

    name: str
    offset: int
    bytes: int
    sha256: str
    whole: str


def _chunks(manifest: Manifest) -> Iterator[_Chunk]:
    for name, file in sorted(manifest.files.items()):
        for index, sha256 in enumerate(file.chunks):
            offset = index * CHUNK_BYTES
            last = index == len(file.chunks) - 1
            yield _Chunk(name, offset, min(CHUNK_BYTES, file.bytes - offset), sha256, file.sha256 if last else "")


def _lengths(data: bytes) -> tuple[int, int]:
    """How many bytes the manifest and the signatures have."""
    magic, manifest, signatures = PREFIX.unpack_from(data)
    if magic[:4] != MAGIC[:4]:
        raise BundleError("not a container: it does not begin with edgm", hint="name an .edgm file: edgectl pack")
    if magic != MAGIC:
        raise BundleError(
            f"the container is of version {int.from_bytes(magic[4:], 'big')}, and only 1 is understood",
            hint="update edged, or pack it with the edgectl of this edged",
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
                hint="make the container with edgectl pack, which adds them",
            )


_AGAIN = "fetch it again"


def _broken_off(at: int) -> BundleError:
    return BundleError(f"the container breaks off after {at} bytes", hint=_AGAIN, retryable=True)
