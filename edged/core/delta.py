"""The delta: what turns a version that is already there into the container of another, `.edgd`.

    8 bytes   "edgd" 0 0 0 1
    u32 LE    length of the manifest       u32 LE   length of the signatures       u16 LE   number of files
    32 bytes  the digest of the base: the SHA-256 of its manifest
    the bytes of the new manifest.json, then its signatures
    for every file the new manifest lists, in the order of their names:
        u8 method   u8 number of the base's file, in the order of theirs   u32 LE length of the packed data
    the packed data, one after another

"same" is the base's file as it is and has no data. "full" is the file itself, packed. "subtract" is the file less the
base's file, byte by byte (modulo 256, the base going on with zeros), packed: after a fine-tuning most weights are equal
and the rest moved by little, so nearly all of it is zeros. Packed is raw LZMA2 with FILTERS, which has no header that
could ask for more memory.

`rebuild` gives the bytes of the new version's container and promises nothing of them: whoever reads a container holds
each chunk against the signed manifest, and so finds a wrong base, a rotten one, and a damaged delta alike.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np

from edged.core import container
from edged.core.errors import BundleError
from edged.core.manifest import MAX_MANIFEST_BYTES

SUFFIX: Final = ".edgd"
MAGIC: Final = b"edgd\0\0\0\1"
PREFIX: Final = struct.Struct("<8sIIH32s")
FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
SAME, FULL, SUBTRACT = 0, 1, 2
BLOCK: Final = 256 << 10

_ENTRY = struct.Struct("<BBI")
_MAX_FILES = 64
_MAX_HEAD_BYTES = PREFIX.size + MAX_MANIFEST_BYTES + container.MAX_SIGNATURES_BYTES + _MAX_FILES * _ENTRY.size


class DeltaEntry(NamedTuple):
    """How one file is made: by a method, of the base's file with this number, from so many bytes of packed data."""

    method: int
    base: int
    packed: int


class DeltaHead(msgspec.Struct, frozen=True):
    """What comes before the packed data: the head of the new version's container, and how its files are made."""

    version: container.Head
    base: str
    entries: tuple[DeltaEntry, ...]

    @property
    def data(self) -> bytes:
        """Its bytes: all that come before the packed data."""
        manifest, signatures = self.version.data, self.version.signatures
        prefix = PREFIX.pack(MAGIC, len(manifest), len(signatures), len(self.entries), bytes.fromhex(self.base))
        return b"".join([prefix, manifest, signatures, *(_ENTRY.pack(*entry) for entry in self.entries)])

    @property
    def transfer(self) -> str:
        """What the delta is called on its way: the SHA-256 of this head, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def length(self) -> int:
        """How many bytes come before the packed data."""
        start = PREFIX.size + len(self.version.data) + len(self.version.signatures)
        return start + len(self.entries) * _ENTRY.size

    @property
    def size(self) -> int:
        """How many bytes the whole delta has."""
        return self.length + sum(entry.packed for entry in self.entries)


class Readable(Protocol):
    """Where a delta comes from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, `size` of them unless it ends."""


class Base(Protocol):
    """The version a delta builds on."""

    digest: str

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Bytes of the file with this number, in the order of names; fewer than `size` where it ends or is not there.

        Raises:
            BundleError: it cannot be read.
        """


def head_length(data: bytes) -> int:
    """How many bytes the head has, of a delta that begins with these PREFIX.size bytes.

    Raises:
        BundleError: it is no delta, or breaks off before.
    """
    if len(data) < PREFIX.size:
        raise _broken_off()
    magic, manifest, signatures, files, _ = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise BundleError("not a delta that is understood here: it does not begin with edgd 1", hint=_FULL)
    length: int = PREFIX.size + manifest + signatures + files * _ENTRY.size
    if length > _MAX_HEAD_BYTES:
        raise BundleError(f"the delta's head has {length} bytes", hint=f"at most {_MAX_HEAD_BYTES} are allowed")
    return length


def read_head(data: bytes) -> DeltaHead:
    """The head of a delta, from its first bytes; what follows the head is ignored.

    Raises:
        BundleError: it is no delta, or not a sound one, or breaks off in the head.
    """
    if len(data) < head_length(data):
        raise _broken_off()
    _, manifest, signatures, files, base = PREFIX.unpack_from(data)
    end = PREFIX.size + manifest + signatures
    lengths = container.PREFIX.pack(container.MAGIC, manifest, signatures)
    version = container.read_head(lengths + data[PREFIX.size : end])
    entries = tuple(DeltaEntry(*fields) for fields in _ENTRY.iter_unpack(data[end : end + files * _ENTRY.size]))
    _check(version, entries)
    return DeltaHead(version, base.hex(), entries)


def rebuild(delta: Readable, base: Base) -> Iterator[bytes]:
    """The container of the new version, in pieces of at most BLOCK bytes after the first.

    Raises:
        BundleError: this is no sound delta, or not one of this base; or the base cannot be read.
    """
    start = _exactly(delta, PREFIX.size)
    head = read_head(start + _exactly(delta, head_length(start) - len(start)))
    if head.base != base.digest:
        raise BundleError(
            f"the delta builds on the version {head.base[:12]}, and this is {base.digest[:12]}", hint=_FULL
        )
    version = head.version
    yield container.PREFIX.pack(container.MAGIC, len(version.data), len(version.signatures))
    yield version.data
    yield version.signatures
    for (_, file), entry in zip(sorted(version.manifest.files.items()), head.entries, strict=True):
        if entry.method == SAME:
            yield from _copied(base, entry.base, file.bytes)
        elif entry.method == FULL:
            yield from _unpacked(delta, entry.packed, file.bytes)
        else:
            yield from _added(_unpacked(delta, entry.packed, file.bytes), base, entry.base)


def write(version: container.Head, base: str, files: Iterable[tuple[int, int, bytes]]) -> bytes:
    """A delta. `files` are method, number of the base's file and packed data of each file, in the order of names.

    Raises:
        BundleError: nobody could read it.
    """
    entries, data = [], []
    for method, number, packed in files:
        entries.append(DeltaEntry(method, number, len(packed)))
        data.append(packed)
    delta = b"".join([DeltaHead(version, base, tuple(entries)).data, *data])
    read_head(delta)
    return delta


def pack(pieces: Iterable[bytes]) -> bytes:
    """Packed data."""
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=FILTERS)
    return b"".join([*map(packer.compress, pieces), packer.flush()])


def subtract(file: bytes, base: bytes) -> bytes:
    """A file less another, byte by byte."""
    return _sum(file, (-np.frombuffer(base, np.uint8)).tobytes())


def _check(version: container.Head, entries: tuple[DeltaEntry, ...]) -> None:
    files = version.manifest.files
    if len(entries) != len(files):
        raise BundleError(f"the delta makes {len(entries)} files, and the manifest lists {len(files)}", hint=_FULL)
    for (name, file), entry in zip(sorted(files.items()), entries, strict=True):
        if entry.method not in (SAME, FULL, SUBTRACT) or (entry.method == SAME and entry.packed):
            raise BundleError(f"{name}: the delta says nothing sensible of how it is made", hint=_FULL)
        if entry.packed > _most_packed(file.bytes):
            raise BundleError(f"{name}: {entry.packed} bytes are more than {file.bytes} can be packed to", hint=_FULL)


def _most_packed(size: int) -> int:
    """What LZMA2 makes of noise: it is stored, with three bytes for each 64 KiB and one at the end."""
    return size + size // 1000 + 64


def _copied(base: Base, number: int, size: int) -> Iterator[bytes]:
    for offset in range(0, size, BLOCK):
        yield _sum(bytes(min(BLOCK, size - offset)), base.read(number, offset, min(BLOCK, size - offset)))


def _added(pieces: Iterable[bytes], base: Base, number: int) -> Iterator[bytes]:
    offset = 0
    for piece in pieces:
        yield _sum(piece, base.read(number, offset, len(piece)))
        offset += len(piece)


def _sum(one: bytes, other: bytes) -> bytes:
    """Two files added byte by byte, as long as the first: the second is cut, or goes on with zeros."""
    total = np.frombuffer(one, np.uint8).copy()
    added = np.frombuffer(other, np.uint8)[: len(one)]
    total[: len(added)] += added
    return total.tobytes()


def _unpacked(delta: Readable, packed: int, size: int) -> Iterator[bytes]:
    """The `size` bytes that are packed in the next bytes of a delta, neither more nor less."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
    while not unpacker.eof:
        data = b""
        if unpacker.needs_input:
            if not packed:
                raise _damaged()
            data = _exactly(delta, min(BLOCK, packed))
            packed -= len(data)
        try:
            piece = unpacker.decompress(data, BLOCK)
        except lzma.LZMAError as error:
            raise _damaged() from error
        size -= len(piece)
        if size < 0:
            raise _damaged()
        if piece:
            yield piece
    if size or packed or unpacker.unused_data:
        raise _damaged()


def _exactly(delta: Readable, size: int) -> bytes:
    data = delta.read(size)
    if len(data) < size:
        raise _broken_off()
    return data


_FULL = "fetch or send the full bundle"


def _broken_off() -> BundleError:
    return BundleError("the delta breaks off", hint=_FULL, retryable=True)


def _damaged() -> BundleError:
    return BundleError("the delta is damaged", hint=_FULL, retryable=True)
