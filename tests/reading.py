"""Reading of a source in tests: the next chunk, or the failure in its place."""

from __future__ import annotations

import time

from edged.api import Chunk, DeviceError, Source
from tests.patience import PATIENCE


def take(source: Source) -> Chunk:
    """Return the next chunk."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if chunk := source.read(1.0):
            return chunk
    raise AssertionError("nothing came")


def failure(source: Source) -> DeviceError:
    """Read until the source fails, and return the error."""
    try:
        while True:
            take(source)
    except DeviceError as error:
        return error
    finally:
        source.close()
