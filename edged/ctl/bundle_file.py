"""What the verbs that make and show bundles share: writing a container whole or not at all, and saying which it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edged.api import StoreError
from edged.core.container import Head


def save(file: Path, pieces: Iterable[bytes]) -> None:
    """Write a file aside and put it in its place once all of it is there; after an error nothing has changed.

    Raises:
        StoreError: the disk refuses, or a device or a pipe is there.
    """
    if file.exists() and not file.is_file():
        raise StoreError(f"{file} is there and is no file", hint="name a file")
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as aside:
            try:
                aside.writelines(pieces)
                aside.flush()
                os.fchmod(aside.fileno(), 0o644)
                os.fsync(aside.fileno())
                Path(aside.name).replace(file)
            except BaseException:
                Path(aside.name).unlink()
                raise
    except OSError as error:
        raise StoreError(
            f"{file} cannot be written: {error.strerror}",
            hint="check that its folder is there and is yours to write to",
        ) from error


def version_line(head: Head) -> str:
    """A version in one line."""
    return f"{head.manifest.name} {head.manifest.version} ({head.digest[:12]})"
