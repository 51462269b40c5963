"""A bundle: a folder with a model, its manifest, and the files the manifest vouches for.

What `open_folder` returns has been read back from disk and agrees with its manifest to the last byte.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from edged.core import manifest as manifests
from edged.core.errors import BundleError
from edged.core.manifest import MAX_MANIFEST_BYTES, File, Manifest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A verified manifest and the folder it was found in."""

    manifest: Manifest
    folder: Path

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / self.manifest.model

    def file(self, name: str) -> Path:
        """The path of a file the manifest lists. Raises BundleError if it lists none of that name."""
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.folder}: the manifest lists no file {name!r}", hint="make the bundle again with it"
            )
        return self.folder / name


def open_folder(folder: Path) -> Bundle:
    """Open a bundle's folder and verify all of it: nothing missing, nothing changed, nothing extra.

    Raises:
        BundleError: it is not a sound bundle; the message names the file.
    """
    manifest = manifests.decode(_read_manifest(folder))
    _refuse_strangers(folder, manifest)
    for name, expected in manifest.files.items():
        _verify(folder / name, expected)
    return Bundle(manifest, folder)


_AGAIN = "fetch or install the model again"


def _read_manifest(folder: Path) -> bytes:
    with _open(folder / MANIFEST) as file:
        return file.read(MAX_MANIFEST_BYTES + 1)


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise BundleError(f"{folder} cannot be listed: {error}", hint=_AGAIN) from error
    extra = names - {MANIFEST, *manifest.files}
    if extra:
        raise BundleError(f"{folder / min(extra)} is not in the manifest", hint="remove it, or list it in `files`")


def _verify(path: Path, expected: File) -> None:
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            raise BundleError(f"{path} has {size} bytes, and the manifest says {expected.bytes}", hint=_AGAIN)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected.sha256:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the manifest's", hint=_AGAIN)


def _open(path: Path) -> BufferedReader:
    """Open a regular file for reading; a link, a folder or a device is refused without being opened for good."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint=_AGAIN) from error
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise BundleError(f"{path} is not a regular file", hint=_AGAIN)
    return file
