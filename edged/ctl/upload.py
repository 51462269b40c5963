"""Files to send to a device, verified before sending, and readable at any offset: containers, deltas, bare models."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import IO

import msgspec

from edged.api import BundleError, ControlError, EdgedError, StoreError
from edged.core import delta as deltas
from edged.core.container import ContainerReader, Head
from edged.core.protocol import Args
from edged.core.tflite_file import inspect
from edged.models.bare_file import Bare, transfer_id
from edged.models.bare_file import read as read_bare
from edged.models.bundle import examine

STDIN = "-"
_BLOCK = 256 << 10
_MAX_HEAD_BYTES = 2 << 20


class Upload:
    """A file with the description of the version. `base` is the base of a delta, "" for a container."""

    def __init__(self, head: Head | deltas.DeltaHead, file: IO[bytes]) -> None:
        version, self.base = (head.version, head.base) if isinstance(head, deltas.DeltaHead) else (head, "")
        self._manifest = version.manifest
        self.version = f"{version.manifest.name} {version.manifest.version}"
        self.title = f"a delta for {self.version}" if self.base else self.version
        self.id = head.transfer
        self.digest = version.digest
        self.size = head.size
        self._file = file

    @property
    def announcement(self) -> Args:
        """Return the arguments of `receive-open`."""
        return {
            "id": self.id,
            "size": self.size,
            "digest": self.digest,
            "base": self.base or None,
            "name": self._manifest.name,
            "number": self._manifest.version,
        }

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, fewer at the end. Any thread may call.

        Raises:
            StoreError: the file cannot be read any more, or has become shorter since.
        """
        try:
            data = os.pread(self._file.fileno(), count, offset)
        except OSError as error:
            raise StoreError(f"{self.title} cannot be read any more: {error.strerror}", hint=_WHOLE) from error
        if not data:
            raise StoreError(f"{self.title}: the file has become shorter while it is sent", hint=_WHOLE)
        return data


class BareUpload(Upload):
    """A bare model file and the name of the model. The device makes a version, with a digest unknown before."""

    def __init__(self, bare: Bare, data: bytes) -> None:
        self.version = f"{bare.model} {bare.version}" if bare.version else f"this {bare.model}"
        self.title = f"a bare model for {bare.model}"
        self.digest = self.base = ""
        self.size = len(data)
        self._sha256 = hashlib.sha256(data).hexdigest()
        self.id = transfer_id(bare, self._sha256)
        self._bare = bare
        self._data = data

    @property
    def announcement(self) -> Args:
        """Return the arguments of `receive-open`."""
        return {
            "id": self.id,
            "size": self.size,
            "digest": self._sha256,
            "model": self._bare.model,
            "version": self._bare.version,
        }

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, fewer at the end. Any thread may call."""
        return self._data[offset : offset + count]


def open_bare(name: str, model: str, version: str | None) -> BareUpload:
    """Open a .tflite file, or standard input for "-", for a model.

    Raises:
        ControlError: the name of the model or the version is invalid.
        BundleError: the file is damaged.
        StoreError: the file cannot be read.
    """
    try:
        bare = msgspec.convert({"model": model, "version": version}, Bare)
    except msgspec.ValidationError as error:
        raise ControlError(f"--model {model} --version {version}: {error}", hint="as in `edgectl models`") from error
    data = read_bare(Path("/dev/stdin" if name == STDIN else name))
    inspect(data)
    return BareUpload(bare, data)


def open_uploads(bundle: str, delta: str = "") -> list[Upload]:
    """Return the uploads of a version, in the order to try: the delta, if any, and the whole container.

    A delta beside the container, with the same name, is included if made for exactly this container.

    Raises:
        BundleError: the container is not sound, or `delta` does not make it.
        StoreError: a file cannot be read.
    """
    whole = open_upload(bundle)
    if delta:
        return [_open_delta(Path(delta), whole), whole]
    try:
        return [_open_delta(Path(bundle).with_suffix(deltas.SUFFIX), whole), whole]
    except EdgedError:
        return [whole]


def open_upload(name: str) -> Upload:
    """Open a container by file name, or standard input for "-".

    Raises:
        BundleError: the container is damaged.
        StoreError: the file cannot be read.
    """
    if name == STDIN:
        return _from_stdin()
    path = Path(name)
    if path.is_dir():
        raise BundleError(f"{name} is a folder", hint=f"make one file of it: edgectl pack {shlex.quote(name)}")
    return Upload(examine(path), path.open("rb"))


def _open_delta(path: Path, whole: Upload) -> Upload:
    try:
        file = path.open("rb")
        head = deltas.read_head(os.pread(file.fileno(), _MAX_HEAD_BYTES, 0))
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", hint="name an .edgd file") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", hint=_AGAIN) from error
    if head.version.transfer != whole.id:
        raise BundleError(f"{path} is not a delta for this {whole.version}", hint=_AGAIN)
    if size != head.size:
        raise BundleError(f"{path} has {size} bytes, and its head says {head.size}", hint=_AGAIN)
    return Upload(head, file)


_WHOLE = "leave the file as it is until it has been sent"
_AGAIN = "make it again, after signing: edgectl pack NEW.edgm --delta-from OLD.edgm"


def _from_stdin() -> Upload:
    """Copy standard input to a file, while valid: sending may read the bytes several times."""
    reader = ContainerReader()
    try:
        kept = tempfile.TemporaryFile()  # noqa: SIM115 closed with the upload
        while block := sys.stdin.buffer.read(_BLOCK):
            for _ in reader.feed(block):
                pass
            kept.write(block)
        kept.flush()
    except OSError as error:
        hint = "set TMPDIR to a folder with room for it"
        raise StoreError(f"standard input cannot be kept: {error.strerror}", hint=hint) from error
    reader.close()
    assert reader.head is not None  # set before the end of a valid container
    return Upload(reader.head, kept)
