"""The record of models that a child process has loaded, run and closed without harm: proofs.json in the state folder.

A model in the record may be loaded by the daemon itself. A record that cannot be read proves nothing, and so does one
of another runtime or processor: then the model is tried in a child once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.core.errors import StoreError
from edged.core.manifest import Digest

MAX_PROOFS = 128
"""The number of models that are remembered; the oldest is forgotten first."""

MAX_RECORD_BYTES = 256 << 10
MAX_TITLE = 200


class SafeLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that did no harm: the SHA-256 of its `file`, the signature that ran, the `shapes` of its inputs, on what.

    `backend` is the class ("module:Class"), `runtime` its title, "" where it has none, and `processor` a digest of what
    identifies the processor.
    """

    file: Digest
    signature: Annotated[str, Meta(max_length=MAX_TITLE)] | None
    shapes: tuple[tuple[int, ...], ...]
    backend: Annotated[str, Meta(max_length=MAX_TITLE)]
    runtime: Annotated[str, Meta(max_length=MAX_TITLE)]
    processor: Digest


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: Literal["edged.proofs/1"]
    loads: Annotated[tuple[SafeLoad, ...], Meta(max_length=MAX_PROOFS)]


def encode(loads: Iterable[SafeLoad]) -> bytes:
    """The bytes of a record of the newest of these loads; the last is the newest."""
    newest = tuple(loads)[-MAX_PROOFS:]
    return msgspec.json.encode(_Record(schema="edged.proofs/1", loads=newest)) + b"\n"


def decode(data: bytes) -> tuple[SafeLoad, ...]:
    """The loads in a record. Raises StoreError if it is damaged."""
    if len(data) > MAX_RECORD_BYTES:
        raise StoreError(f"the record of proofs is larger than {MAX_RECORD_BYTES} bytes", hint=_NO_MATTER)
    try:
        return msgspec.json.decode(data, type=_Record).loads
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"the record of proofs is damaged: {error}", hint=_NO_MATTER) from error


_NO_MATTER = "models are tried again, and a new record is written"
