"""Write a container file atomically, and name the version in a container."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edged.api import StoreError
from edged.core.container import Head


def save(file: Path, pieces: Iterable[bytes]) -> None:
    """Write a file aside, and rename the complete file. An error leaves the old file unchanged.

    Raises:
        StoreError: the disk fails, or the path is a device or a pipe.
    """
    if file.exists() and not file.is_file():
        raise StoreError(f"{file} is not a regular file", hint="name a file")
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
            hint="check the folder and the permissions",
        ) from error


def version_line(head: Head) -> str:
    """Return name, number and digest of a version, on a line."""
    return f"{head.manifest.name} {head.manifest.version} ({head.digest[:12]})"
