"""What is sent: a container, verified before a byte of it leaves, and read from any place."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import IO

from edged.api import BundleError, StoreError
from edged.core.container import Head, Reader
from edged.models.bundle import examine

STDIN = "-"
_BLOCK = 256 << 10


class Parcel:
    """A container's file, and what is written on it."""

    def __init__(self, head: Head, file: IO[bytes]) -> None:
        self.title = f"{head.manifest.name} {head.manifest.version}"
        self.id = head.transfer
        self.digest = head.digest
        self.size = head.size
        self._file = file

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at its end. From any thread."""
        return os.pread(self._file.fileno(), count, offset)


def open_parcel(name: str) -> Parcel:
    """The container of that file name, or from standard input for "-".

    Raises:
        BundleError: it is not sound.
        StoreError: it cannot be read.
    """
    if name == STDIN:
        return _from_stdin()
    path = Path(name)
    if path.is_dir():
        raise BundleError(f"{name} is a folder", hint=f"make one file of it: edgectl pack {name}")
    return Parcel(examine(path), path.open("rb"))


def _from_stdin() -> Parcel:
    """Standard input can be read once, and what is sent may have to be read again: keep it, as far as it is sound."""
    reader = Reader()
    try:
        kept = tempfile.TemporaryFile()  # noqa: SIM115 it goes with the parcel
        while block := sys.stdin.buffer.read(_BLOCK):
            for _ in reader.feed(block):
                pass
            kept.write(block)
        kept.flush()
    except OSError as error:
        hint = "set TMPDIR to a folder with room for it"
        raise StoreError(f"standard input cannot be kept: {error.strerror}", hint=hint) from error
    reader.close()
    assert reader.head is not None  # or it would not have come to its end
    return Parcel(reader.head, kept)
