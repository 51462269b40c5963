"""Record of models that a child process has loaded, run and closed without a crash: proofs.json in the state folder.

The daemon may load a model in the record directly. An unreadable record, or an entry of another runtime or processor,
proves nothing: the model is tried in a child process again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.core.errors import StoreError
from edged.core.manifest_parts import Digest

MAX_PROOFS = 128
"""Maximum number of models in a record; the oldest are removed first."""

MAX_RECORD_BYTES = 256 << 10
MAX_TITLE = 200


class SafeLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A safe model: SHA-256 of the `file`, signature, `shapes` of the inputs, and the environment of the proof.

    `backend` is the class ("module:Class"), `runtime` the title of the runtime ("" if untitled), and `processor` a
    digest of the processor's identification.
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
    """Return a record of the newest loads as bytes; the last load is the newest."""
    newest = tuple(loads)[-MAX_PROOFS:]
    return msgspec.json.encode(_Record(schema="edged.proofs/1", loads=newest)) + b"\n"


def decode(data: bytes) -> tuple[SafeLoad, ...]:
    """Return the loads in a record. Raises StoreError if the record is damaged."""
    if len(data) > MAX_RECORD_BYTES:
        raise StoreError(f"the record of proofs is larger than {MAX_RECORD_BYTES} bytes", hint=_NO_MATTER)
    try:
        return msgspec.json.decode(data, type=_Record).loads
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"the record of proofs is damaged: {error}", hint=_NO_MATTER) from error


_NO_MATTER = "no action is needed: models are tried again, and a new record is written"
