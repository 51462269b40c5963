"""The delta, `.edgd`: the difference between a version on the board and the container of another version.

    8 bytes   "edgd" 0 0 0 1
    u32 LE    length of the manifest       u32 LE   length of the signatures       u16 LE   number of files
    32 bytes  digest of the base: the SHA-256 of its manifest
    the bytes of the new manifest.json, then its signatures
    for every file the new manifest lists, in the order of their names:
        u8 method   u8 number of the base's file, in order of names   u32 LE length of the packed data
    the packed data, one after another

"same" copies the base's file, without data. "full" is the file itself, packed. "subtract" is the packed bytewise
difference between the file and the base's file (modulo 256, the base padded with zeros): after fine-tuning, most
weights are equal and the others moved little, so nearly all bytes are zero. Packed data is raw LZMA2 with FILTERS,
without a header that could request more memory.

`rebuild` returns the bytes of the new version's container without verification: the reader of a container compares
each chunk with the signed manifest, and thus detects a wrong base, a damaged base and a damaged delta alike.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np

from edged.core import container
from edged.core.digest import sha256
from edged.core.errors import BundleError
from edged.core.manifest import MAX_MANIFEST_BYTES

SUFFIX: Final = ".edgd"
MAGIC: Final = b"edgd\0\0\0\1"
PREFIX: Final = struct.Struct("<8sIIH32s")
FILTERS: Final = [{"id": 0x21, "preset": 6, "dict_size": 1 << 20}]  # 0x21 is LZMA2
SAME, FULL, SUBTRACT = 0, 1, 2
BLOCK: Final = 256 << 10

_ENTRY = struct.Struct("<BBI")
_MAX_FILES = 64
_MAX_HEAD_BYTES = PREFIX.size + MAX_MANIFEST_BYTES + container.MAX_SIGNATURES_BYTES + _MAX_FILES * _ENTRY.size


class DeltaEntry(NamedTuple):
    """Recipe for one file: a method, the number of the base's file, and the length of the packed data in bytes."""

    method: int
    base: int
    packed: int


class DeltaHead(msgspec.Struct, frozen=True):
    """Part of a delta before the packed data: head of the new version's container, and recipes for the files."""

    version: container.Head
    base: str
    entries: tuple[DeltaEntry, ...]

    @property
    def data(self) -> bytes:
        """Return all bytes before the packed data."""
        manifest, signatures = self.version.data, self.version.signatures
        prefix = PREFIX.pack(MAGIC, len(manifest), len(signatures), len(self.entries), bytes.fromhex(self.base))
        return b"".join([prefix, manifest, signatures, *(_ENTRY.pack(*entry) for entry in self.entries)])

    @property
    def transfer(self) -> str:
        """Return the identifier of a transfer of the delta: the SHA-256 of this head, in hexadecimal."""
        return sha256(self.data)

    @property
    def length(self) -> int:
        """Return the number of bytes before the packed data."""
        start = PREFIX.size + len(self.version.data) + len(self.version.signatures)
        return start + len(self.entries) * _ENTRY.size

    @property
    def size(self) -> int:
        """Return the number of bytes of the whole delta."""
        return self.length + sum(entry.packed for entry in self.entries)


class Readable(Protocol):
    """Reader of a delta's bytes."""

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, or fewer at the end."""


class DeltaBase(Protocol):
    """The version that a delta builds on."""

    digest: str

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Return bytes of the file with this number in order of names; fewer than `size` at the end or without a file.

        Raises:
            BundleError: the file cannot be read.
        """


def head_length(data: bytes) -> int:
    """Return the length of the head of a delta that begins with these PREFIX.size bytes.

    Raises:
        BundleError: `data` is not the beginning of a delta, or is too short.
    """
    if len(data) < PREFIX.size:
        raise _broken_off()
    magic, manifest, signatures, files, _ = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise BundleError("not a delta of version 1: the file does not begin with edgd 1", hint=_FULL)
    length: int = PREFIX.size + manifest + signatures + files * _ENTRY.size
    if length > _MAX_HEAD_BYTES:
        raise BundleError(f"the delta's head has {length} bytes", hint=f"at most {_MAX_HEAD_BYTES} are allowed")
    return length


def read_head(data: bytes) -> DeltaHead:
    """Return the head of a delta from its first bytes; bytes after the head are ignored.

    Raises:
        BundleError: `data` is not a delta, is invalid, or ends within the head.
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


def rebuild(delta: Readable, base: DeltaBase) -> Iterator[bytes]:
    """Yield the container of the new version, in pieces of at most BLOCK bytes after the first.

    Raises:
        BundleError: the delta is invalid or for another base, or the base cannot be read.
    """
    start = _exactly(delta, PREFIX.size)
    head = read_head(start + _exactly(delta, head_length(start) - len(start)))
    if head.base != base.digest:
        raise BundleError(
            f"the delta builds on version {head.base[:12]}, but the base is {base.digest[:12]}", hint=_FULL
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
    """Return a delta. `files` holds method, number of the base's file and packed data by file, in order of names.

    Raises:
        BundleError: the result would be invalid.
    """
    entries, data = [], []
    for method, number, packed in files:
        entries.append(DeltaEntry(method, number, len(packed)))
        data.append(packed)
    delta = b"".join([DeltaHead(version, base, tuple(entries)).data, *data])
    read_head(delta)
    return delta


def pack(pieces: Iterable[bytes]) -> bytes:
    """Return the packed form of data."""
    import lzma  # few updates are deltas

    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=FILTERS)
    return b"".join([*map(packer.compress, pieces), packer.flush()])


def subtract(file: bytes, base: bytes) -> bytes:
    """Return the bytewise difference between a file and another."""
    return _sum(file, (-np.frombuffer(base, np.uint8)).tobytes())


def _check(version: container.Head, entries: tuple[DeltaEntry, ...]) -> None:
    files = version.manifest.files
    if len(entries) != len(files):
        raise BundleError(f"the delta makes {len(entries)} files, and the manifest lists {len(files)}", hint=_FULL)
    for (name, file), entry in zip(sorted(files.items()), entries, strict=True):
        if entry.method not in (SAME, FULL, SUBTRACT) or (entry.method == SAME and entry.packed):
            raise BundleError(f"{name}: the delta has an unknown method for this file", hint=_FULL)
        if entry.packed > _most_packed(file.bytes):
            raise BundleError(f"{name}: {entry.packed} bytes are more than {file.bytes} can be packed to", hint=_FULL)


def _most_packed(size: int) -> int:
    """Return the largest size of packed data: LZMA2 stores noise with 3 bytes for each 64 KiB, and 1 at the end."""
    return size + size // 1000 + 64


def _copied(base: DeltaBase, number: int, size: int) -> Iterator[bytes]:
    for offset in range(0, size, BLOCK):
        yield _sum(bytes(min(BLOCK, size - offset)), base.read(number, offset, min(BLOCK, size - offset)))


def _added(pieces: Iterable[bytes], base: DeltaBase, number: int) -> Iterator[bytes]:
    offset = 0
    for piece in pieces:
        yield _sum(piece, base.read(number, offset, len(piece)))
        offset += len(piece)


def _sum(one: bytes, other: bytes) -> bytes:
    """Return the bytewise sum, as long as `one`; `other` is cut, or padded with zeros."""
    total = np.frombuffer(one, np.uint8).copy()
    added = np.frombuffer(other, np.uint8)[: len(one)]
    total[: len(added)] += added
    return total.tobytes()


def _unpacked(delta: Readable, packed: int, size: int) -> Iterator[bytes]:
    """Yield the next `packed` bytes of a delta unpacked; they must hold exactly `size` bytes."""
    import lzma

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
