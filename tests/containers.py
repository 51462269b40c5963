"""Containers made byte by byte, sound and unsound, without the code under test; and a disk for their content."""

import copy
import hashlib
import json
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bundles import COLOURS, DATA

CHUNK = 256 * 1024
MODEL = (DATA / "float.tflite").read_bytes()
NOTES = bytes(index * 7 % 251 for index in range(CHUNK + 100))
"""A file of two chunks."""

CONTENTS = {"model.tflite": MODEL, "notes.bin": NOTES}


def entry(content: bytes) -> dict[str, Any]:
    """Return a manifest's entry for a file."""
    chunks = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
    return {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "chunks": [hashlib.sha256(chunk).hexdigest() for chunk in chunks],
    }


def colours(**parts: Any) -> dict[str, Any]:
    """A sound manifest for CONTENTS, with `parts` replaced."""
    files = {name: entry(content) for name, content in CONTENTS.items()}
    return {**copy.deepcopy(COLOURS), "files": files, **parts}


def container(
    manifest: dict[str, Any] | bytes | None = None,
    *,
    signatures: bytes = b"",
    body: bytes = MODEL + NOTES,
    lengths: tuple[int, int] | None = None,
    magic: bytes = b"edgm\0\0\0\1",
) -> bytes:
    """Return a container with the given parts; `lengths` may be wrong."""
    manifest = colours() if manifest is None else manifest
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return magic + struct.pack("<II", *(lengths or (len(data), len(signatures)))) + data + signatures + body


class PlainDisk:
    """Disk that performs and records requests."""

    def __init__(self) -> None:
        self.effects: list[str] = []

    def make_folder(self, folder: Path) -> None:
        self.effects.append(f"make {folder.name}")
        folder.mkdir()

    def write(self, file: Path, pieces: Iterable[bytes]) -> None:
        self.effects.append(f"write {file.name}")
        with file.open("xb") as opened:
            for piece in pieces:
                opened.write(piece)

    def sync_folder(self, folder: Path) -> None:
        self.effects.append(f"sync {folder.name}")

    def remove(self, folder: Path) -> None:
        self.effects.append(f"remove {folder.name}")
        if folder.exists():
            shutil.rmtree(folder)
