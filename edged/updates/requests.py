"""Requests of clients: the arguments of each verb, checked as they come in."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from edged.api import ControlError
from edged.core.manifest import MAX_BUNDLE_BYTES
from edged.core.manifest_parts import Digest, Name, Version
from edged.core.protocol import Args
from edged.core.types import MAX_URL
from edged.models.bare_file import Bare
from edged.updates.jobs import InstallOptions

MAX_CHUNK = 45 << 10
"""Bytes in a chunk, so that a request in base64 stays below the protocol's limit."""

T = TypeVar("T")


def parse(args: Args, kind: type[T]) -> T:
    """Return the arguments of a verb as `kind`. Raises ControlError if they do not fit."""
    try:
        return msgspec.convert(args, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise ControlError(f"invalid request: {error}", hint="use the edgectl of this version of edged") from error


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of a verb. The server of the control socket sets `asked_by` to the user of the client."""

    asked_by: str = ""


def _bare(model: str | None, version: str | None) -> Bare | None:
    """Return the model and version of a bare file; None if no model is named."""
    return None if model is None else Bare(model=model, version=version)


class OpenRequest(_Request, frozen=True, kw_only=True):
    """Arguments of receive-open.

    `digest` is the SHA-256 of a version's manifest, or of a `bare` file. With `name`, `number` and `allow_downgrade` a
    version can be refused before it is sent; all of them are checked again in the file.
    """

    id: Digest
    size: Annotated[int, Meta(ge=1, le=2 * MAX_BUNDLE_BYTES)]
    digest: Digest
    base: Digest | None = None
    name: Name | None = None
    number: Version | None = None
    allow_downgrade: bool = False
    model: Name | None = None
    version: Version | None = None

    @property
    def bare(self) -> Bare | None:
        """Model and version of a bare file, None for a container or a delta."""
        return _bare(self.model, self.version)


class ChunkRequest(_Request, frozen=True, kw_only=True):
    """Arguments of receive-chunk. A `durable` chunk is on disk before the answer."""

    id: Digest
    offset: Annotated[int, Meta(ge=0)]
    data: Annotated[bytes, Meta(min_length=1, max_length=MAX_CHUNK)]
    durable: bool = False


class _InstallRequest(_Request, frozen=True, kw_only=True):
    allow_downgrade: bool = False
    confirm_within: Annotated[float, Meta(ge=0, le=30 * 86400)] = 0.0

    def options(self, origin: str, bare: Bare | None) -> InstallOptions:
        """Return the options of the install."""
        return InstallOptions(
            origin=origin,
            asked_by=self.asked_by,
            bare=bare,
            allow_downgrade=self.allow_downgrade,
            confirm_within=self.confirm_within,
        )


class DoneRequest(_InstallRequest, frozen=True, kw_only=True):
    """Arguments of receive-done."""

    id: Digest
    origin: Annotated[str, Meta(max_length=200)] = ""


class FetchRequest(_InstallRequest, frozen=True, kw_only=True):
    """Arguments of fetch."""

    url: Annotated[str, Meta(max_length=MAX_URL)]
    model: Name | None = None
    version: Version | None = None

    @property
    def bare(self) -> Bare | None:
        """Model and version of a bare file, None for a container or a delta."""
        return _bare(self.model, self.version)


class JobRequest(_Request, frozen=True, kw_only=True):
    """Arguments of job."""

    id: Annotated[str, Meta(max_length=50)]


class WatchRequest(JobRequest, frozen=True, kw_only=True):
    """Arguments of job-watch."""

    after: float = 0.0
    digest: Annotated[str, Meta(max_length=64)] = ""


class ModelRequest(_Request, frozen=True, kw_only=True):
    """Arguments of confirm."""

    model: Name


class RollbackRequest(ModelRequest, frozen=True, kw_only=True):
    """Arguments of rollback."""

    to: Annotated[str, Meta(max_length=64)] = ""


class PinRequest(ModelRequest, frozen=True, kw_only=True):
    """Arguments of pin."""

    pinned: bool


class RejectionRequest(ModelRequest, frozen=True, kw_only=True):
    """Arguments of clear-rejection."""

    digest: Annotated[str, Meta(min_length=1, max_length=64)]
