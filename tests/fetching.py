"""Fetching in tests: at once, with pauses too short to notice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.transfer.http_fetch import ExpectedFile, Fetched, Fetcher
from edged.transfer.options import FetchOptions
from edged.transfer.partial_files import ArrivalCheck, PartialFiles, Transfer

ID = "f0" * 32
BUNDLE = ExpectedFile("a bundle", lambda start: start.startswith(b"edgm"))


def options(**given: Any) -> FetchOptions:
    """Return quick options, overridden by `given`."""
    return FetchOptions(**{"pause": 0.001, "longest_pause": 0.01, "proxy": "none", **given})


def open_transfer(folder: Path, check: Callable[[], ArrivalCheck] | None = None) -> Transfer:
    return PartialFiles(folder / "incoming", 64 << 20, 4, reserve=0).open(ID, check=check)


def fetch(
    url: str, folder: Path, *, check: Callable[[], ArrivalCheck] | None = None, **given: Any
) -> tuple[bytes, Fetched]:
    """Return the received bytes and the outcome."""
    with open_transfer(folder, check) as transfer:
        fetched = Fetcher(options(**given), expected=BUNDLE).fetch(url, transfer)
        return transfer.path.read_bytes(), fetched
