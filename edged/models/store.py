"""Models on a board: factory models, which are never changed and always available, and installed models.

A factory version of a model is configured by `path`: a bundle's folder, an .edgm file or a bare .tflite file. Without a
path, the factory versions are the versions shipped with `edged`:

    <factory>/<name>/<version>/             bundles

    <state>/../unpacked/<digest>/           content of configured paths: a runtime reads files, not containers, and
                                            the files must not change. Made again when missing

    <state>/<name>/state.json               the ledger: the only truth about installed versions (edged/core/ledger.py)
                   state.copy.json          a copy, in case the card loses the first; a start replaces both if they
                                            differ
                   versions/<digest>/       bundles, immutable
                   current                  a link to the active version; derived, in case both ledgers are lost
                   arriving/                a bundle to be moved into versions/

`Store` finds bundles, and changes only `unpacked`. The updater changes installed versions.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from edged.core import container
from edged.core import ledger as ledgers
from edged.core import manifest as manifests
from edged.core.container import Head
from edged.core.errors import BundleError, ConfigError, EdgedError, StoreError, closest, some
from edged.core.ledger import EMPTY, Installed, Ledger, versions_to_serve
from edged.core.manifest import version_key
from edged.models.atomic_files import ASIDE, Disk, refusal
from edged.models.bundle import BARE_SUFFIX as BARE
from edged.models.bundle import MANIFEST, Bundle, derive, digest, head_of_folder, open_folder, refuse_draft, unpack
from edged.system.later import tempfile

log = logging.getLogger("edged.models")

_PACKAGE = Path(__file__).parents[1]

FACTORY = next(filter(Path.is_dir, [_PACKAGE / "firmware_models"]), _PACKAGE.parent / "firmware_models")
"""The models shipped with `edged`: inside the installed package, or beside the package in a checkout."""

MAX_LEDGER_BYTES = 1 << 20
_BLOCK = 256 << 10
MAX_HEAD_BYTES = 2 << 20
"""More than the head of a container or of a delta can have."""

BRING = "bring one: edgectl update-model FILE"
"""Hint for a model without a sound version."""

VERSIONS = "versions"
"""The folder of a model's installed versions."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,3}")
_KINDS = f"name a bundle's folder, which has a {MANIFEST}, an {container.SUFFIX} file or a {BARE} file"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ModelFolder:
    """Folder of a model's installed versions. Reads reflect the present disk; every method raises StoreError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = folder / VERSIONS
        self.arriving = folder / "arriving"
        self.link = folder / "current"

    def version(self, digest: str) -> Path:
        """The folder of an installed version."""
        return self.versions / digest

    def read(self) -> Ledger:
        """Return the ledger, or the copy of a damaged ledger; if both are lost, a ledger recovered from other files.

        Empty without any installation: both files and the link of the first confirmation are missing.
        """
        linked = self._linked()
        lost = linked is not None
        for file in self._ledgers():
            try:
                with file.open("rb") as opened:
                    return ledgers.decode(opened.read(MAX_LEDGER_BYTES))
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error("%s cannot be read: %s", file, error.strerror)
            except StoreError as error:
                log.error("%s: %s", file, error)
            lost = True
        if not lost:
            return EMPTY
        log.error("%s: the ledger is lost; rejections and pins are forgotten", self.folder)
        return ledgers.recovered(dict(self._found()), linked)

    def holds(self, ledger: Ledger) -> bool:
        """Return whether the ledger is in the file and in the copy; without any installation,
        whether both are missing.
        """
        there = {_content(file) for file in self._ledgers()}
        return there == {ledgers.encode(ledger)} or (ledger == EMPTY and there == {None})

    def write(self, ledger: Ledger, disk: Disk) -> None:
        """Replace the ledger, and then the copy."""
        disk.make_folder(self.folder)
        for file in self._ledgers():
            disk.replace(file, ledgers.encode(ledger))

    def present(self) -> dict[str, int]:
        """Return the versions with a folder, and the bytes in each."""
        present = {}
        try:
            for folder in _entries(self.versions):
                with suppress(FileNotFoundError):  # the folder may be removed during the read
                    if _DIGEST.fullmatch(folder.name):
                        present[folder.name] = sum(file.lstat().st_size for file in folder.iterdir())
        except OSError as error:
            raise refusal(self.versions, error) from error
        return present

    def current(self) -> str | None:
        """Return the version named by the link."""
        try:
            return self.link.readlink().name
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refusal(self.link, error) from error

    def free(self) -> int:
        """Return the free bytes on the present or future disk of the folder."""
        try:
            there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            disk = os.statvfs(there)
            return disk.f_bavail * disk.f_frsize
        except OSError as error:
            raise refusal(self.folder, error) from error

    def litter(self) -> tuple[str, ...]:
        """Return the remains of interrupted steps, relative to the folder."""
        try:
            return tuple(
                sorted(
                    entry.name
                    for entry in _entries(self.folder)
                    if entry == self.arriving or entry.name.endswith(ASIDE)
                )
            )
        except OSError as error:
            raise refusal(self.folder, error) from error

    def _linked(self) -> str | None:
        """Return the version named by the link, or None if unreadable."""
        try:
            return self.current()
        except StoreError:
            return None

    def _found(self) -> Iterator[tuple[str, Installed]]:
        """Yield the versions whose manifest matches the name of the folder."""
        for each in self.present():
            folder = self.version(each)
            try:
                if digest(folder) == each:
                    manifest = manifests.decode((folder / MANIFEST).read_bytes())
                    yield each, Installed(version=manifest.version, created=manifest.created)
            except (OSError, BundleError) as error:
                log.error("%s: %s", folder, error)

    def _ledgers(self) -> tuple[Path, Path]:
        return self.folder / "state.json", self.folder / "state.copy.json"


class FactoryVersion(NamedTuple):
    """Number and place of a version: a folder, an .edgm file or a .tflite file."""

    version: str
    path: Path


class MissingModelError(ConfigError):
    """No version of a model, or not the requested version, is present; an installation is the remedy."""


class Store:
    """Finder of bundles by name and version. Each call reads the disk, so models may come and go.

    `paths` holds the configured paths by model; a new configuration replaces it whole.
    """

    def __init__(
        self,
        factory: Path,
        state: Path | None = None,
        *,
        paths: Mapping[str, Path] | None = None,
        unpacked: Path | None = None,
    ) -> None:
        """Set up with `state`, the folder of installed models; None for factory models alone.

        .edgm files are unpacked into `unpacked`, and files at other paths are copied there. Without `unpacked`, .edgm
        files are unpacked into a folder removed with this process.
        """
        self.paths = paths or {}
        self._factory = factory
        self._state = state
        self._unpacked = unpacked

    def having(self, paths: Mapping[str, Path]) -> Store:
        """The same store, with other paths for models."""
        return Store(self._factory, self._state, paths=paths, unpacked=self._unpacked)

    def names(self) -> tuple[str, ...]:
        """Return the names of all models with a version, in alphabetical order."""
        names = {*_folders(self._factory, _NAME), *self.paths, *self.installed()}
        return tuple(sorted(name for name in names if self.versions(name)))

    def installed(self) -> tuple[str, ...]:
        """Return the names of models with any installation, in alphabetical order."""
        return tuple(sorted(_folders(self._state, _NAME))) if self._state else ()

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a model without the candidate, oldest first; none for an unknown model."""
        if not _NAME.fullmatch(name):
            return ()
        confirmed = [each.version for each in self._ledger(name).versions.values() if each.confirmed]
        if name in self.paths:
            given = [each.version for each in self.factory(name).values()]
        else:
            given = _folders(self._factory / name, _VERSION)
        return tuple(sorted({*given, *confirmed}, key=version_key))

    def find(self, name: str, version: str | None = None) -> Bundle:
        """Open and verify a model: the version with this number, or the active version, or the best other if damaged.

        Raises:
            MissingModelError: no such model or version exists.
            EdgedError: the bundle is damaged, or differs from the folder's name.
        """
        versions = self.versions(name)
        if not versions and name in self.paths:
            return self._open_path(self.paths[name], name)
        if not versions:
            raise MissingModelError(f"there is no model {name!r} in {self._factory}", hint=self._suggestion(name))
        damaged: list[EdgedError] = []
        for path in self._ranked(name) if version is None else self._numbered(name, version):
            try:
                return self._open(path, name)
            except (BundleError, StoreError) as error:
                log.error("%s", error)
                damaged.append(error)
        if damaged:
            raise damaged[0]
        raise MissingModelError(f"the model {name!r} has no version {version}", hint=f"there is {some(versions)}")

    def open(self, name: str, digest: str) -> Bundle:
        """Open and verify the version with this digest.

        Raises:
            EdgedError: the bundle is damaged, another version, or missing.
        """
        if self._state and self.model(name).version(digest).is_dir():
            return open_version(self.model(name).version(digest), name)
        known = self.factory(name).get(digest)
        if known is None:
            raise BundleError(f"the version {digest[:12]} of {name} is missing", hint="install the version again")
        bundle = self._open(known.path, name)
        if bundle.digest != digest:
            raise BundleError(f"{known.path} holds another version than before", hint="reload: edgectl reload")
        return bundle

    def model(self, name: str) -> ModelFolder:
        """Return the present or future folder of a model's installed versions."""
        assert self._state is not None, "a store without a state folder has no shelves"
        return ModelFolder(self._state / name)

    def factory(self, name: str) -> dict[str, FactoryVersion]:
        """Return the factory versions of a model by digest, newest first, without unreadable ones."""
        return dict(self._factory_versions(name))

    def tidy(self, disk: Disk) -> None:
        """Remove unpacked or copied files of paths that no model has any more. Raises StoreError."""
        if self._unpacked is None:
            return
        needed = {digest for name in self.paths for digest in self.factory(name)}
        try:
            unpacked = _entries(self._unpacked)
        except OSError as error:
            raise refusal(self._unpacked, error) from error
        for folder in unpacked:
            if folder.name not in needed:
                disk.remove(folder)

    def _ledger(self, name: str) -> Ledger:
        """Return the ledger; an empty ledger if unreadable, since factory versions remain readable."""
        try:
            return self.model(name).read() if self._state else EMPTY
        except StoreError as error:
            log.error("%s", error)
            return EMPTY

    def _factory_versions(self, name: str) -> Iterator[tuple[str, FactoryVersion]]:
        for path in self._factory_paths(name):
            try:
                if path == self.paths.get(name):
                    found, version = _identify(path, name)
                else:
                    found, version = digest(path), path.name
            except (BundleError, StoreError) as error:
                _complain(path, str(error))
            else:
                yield found, FactoryVersion(version, path)

    def _factory_paths(self, name: str) -> list[Path]:
        if name in self.paths:
            return [self.paths[name]]
        versions = sorted(_folders(self._factory / name, _VERSION), key=version_key, reverse=True)
        return [self._factory / name / version for version in versions]

    def _ranked(self, name: str) -> Iterator[Path]:
        """Yield the places to serve from, best first; damaged ones come last, for their error."""
        factory = self.factory(name)
        ledger = self._ledger(name)
        for each in dict.fromkeys(versions_to_serve(ledger, tuple(factory))):
            yield self.model(name).version(each) if each in ledger.versions else factory[each].path
        sound = {each.path for each in factory.values()}
        yield from (path for path in self._factory_paths(name) if path not in sound)

    def _numbered(self, name: str, version: str) -> Iterator[Path]:
        """Yield the places of the versions with this number."""
        if not _VERSION.fullmatch(version):
            return
        for found, each in self._ledger(name).versions.items():
            if each.confirmed and version_key(each.version) == version_key(version):
                yield self.model(name).version(found)
        if name in self.paths:
            yield from (
                each.path for each in self.factory(name).values() if version_key(each.version) == version_key(version)
            )
            return
        for folder in self._factory_paths(name):
            if version_key(folder.name) == version_key(version):
                yield folder

    def _open(self, path: Path, name: str) -> Bundle:
        return self._open_path(path, name) if path == self.paths.get(name) else open_version(path, name)

    def _open_path(self, path: Path, name: str) -> Bundle:
        return open_path(path, name, self._unpacked)

    def _suggestion(self, name: str) -> str:
        names = self.names()
        close = closest(name, names)
        known = f"there is {some(names)}" if names else "install one"
        return f"did you mean {close!r}? {known}" if close else known


def open_path(path: Path, name: str = "", unpacked: Path | None = None) -> Bundle:
    """Open and verify the model in a bundle's folder, an .edgm file or a bare .tflite file.

    The model of a bare file is named `name`. An .edgm file is unpacked into `unpacked` on first use; without
    `unpacked`, or if the disk refuses, into a folder removed with this process. Other files are copied into `unpacked`,
    if given.

    Raises:
        BundleError: the bundle is unsound.
        StoreError: the bundle cannot be read or unpacked.
    """
    _check_kind(path)
    if path.suffix != container.SUFFIX or path.is_dir():
        bundle = derive(path, name) if path.suffix == BARE else open_folder(path)
        return bundle if unpacked is None else _copied(bundle, unpacked / bundle.digest)
    try:
        head = _head(path)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", hint=error.hint) from error
    if unpacked is not None:
        try:
            return _unpacked(path, unpacked / head.digest)
        except StoreError as error:
            log.warning("%s is unpacked into a temporary folder, for this run: %s", path, error)
    return _unpacked(path, Path(_temporary().name) / head.digest)


def _unpacked(path: Path, folder: Path) -> Bundle:
    """Open the version of an .edgm file in a folder, after unpacking it there if necessary."""
    disk = Disk()
    try:
        with suppress(BundleError):
            return open_folder(folder)
        disk.make_folder(folder.parent)
        aside = folder.with_name(folder.name + ASIDE)
        with path.open("rb") as file:
            unpack(file, aside, disk)
    except OSError as error:
        raise _unreadable(path, error) from error
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", hint=error.hint) from error
    disk.remove(folder)
    disk.place(aside, folder)
    return open_folder(folder)


@lru_cache(maxsize=64)
def _complain(path: Path, why: str) -> None:
    """Log once why a factory version cannot be read, since it is read again and again."""
    log.error("%s: the factory's version cannot be had: %s", path, why.removeprefix(f"{path}: "))


def _copied(bundle: Bundle, folder: Path) -> Bundle:
    """Return the same version in a folder of edged, or in the original place if the disk refuses.

    A runtime maps the file: a write to a file in service ends the process with SIGBUS.
    """
    disk, aside = Disk(), folder.with_name(folder.name + ASIDE)
    with _COPYING:
        with suppress(BundleError):
            return replace(open_folder(folder), derived=bundle.derived)
        try:
            disk.make_folder(folder.parent)
            disk.remove(aside)
            disk.make_folder(aside)
            for each in bundle.manifest.files:
                disk.write(aside / each, _blocks(bundle.folder / each))
            disk.write(
                aside / MANIFEST,
                [manifests.encode(bundle.manifest) if bundle.derived else head_of_folder(bundle.folder).data],
            )
            disk.sync_folder(aside)
            disk.remove(folder)
            disk.place(aside, folder)
        except StoreError as error:
            log.warning("%s is used where it is: it must not be written to in service: %s", bundle.path, error)
            return bundle
        return replace(open_folder(folder), derived=bundle.derived)


_COPYING = threading.Lock()


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                yield block
    except OSError as error:
        raise _unreadable(file, error) from error


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edged-")


def _check_kind(path: Path) -> None:
    """Raise BundleError for an existing path that is, by its name, no model."""
    if path.is_dir():
        refuse_draft(path)
        problem = "" if (path / MANIFEST).exists() else f"there is no {MANIFEST} in this folder"
    else:
        known = path.suffix in (BARE, container.SUFFIX) or not path.exists()
        problem = "" if known else f"the name ends in neither {BARE} nor {container.SUFFIX}"
    if problem:
        raise BundleError(f"{path}: {problem}", hint=_KINDS)


def _identify(path: Path, name: str) -> tuple[str, str]:
    """The digest and the number of the version at a path. Raises BundleError or StoreError."""
    _check_kind(path)
    if path.suffix == BARE:
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        return _identify_bare(path, name, (status.st_ino, status.st_size, status.st_mtime_ns))
    head = _head(path)
    return head.digest, head.manifest.version


@lru_cache(maxsize=64)
def _identify_bare(path: Path, name: str, _file: tuple[int, int, int]) -> tuple[str, str]:
    """Read a whole bare file, once as long as the file is unchanged."""
    bundle = derive(path, name)
    return bundle.digest, bundle.manifest.version


def _head(path: Path) -> Head:
    if path.suffix != container.SUFFIX or path.is_dir():
        return head_of_folder(path)
    try:
        with path.open("rb") as file:
            return container.read_head(file.read(MAX_HEAD_BYTES))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be read: {error.strerror}", hint=_KINDS)


def open_version(folder: Path, name: str) -> Bundle:
    """Open a bundle of this model, and of the version or the digest in the folder's name.

    Raises:
        BundleError: the bundle is damaged, or another version.
    """
    bundle = open_folder(folder)
    manifest = bundle.manifest
    if _DIGEST.fullmatch(folder.name):
        if bundle.digest != folder.name:
            raise BundleError(
                f"{folder}: manifest.json is damaged: the SHA-256 differs", hint="install the version again"
            )
    elif version_key(manifest.version) != version_key(folder.name) or manifest.name != name:
        raise BundleError(
            f"{folder} holds {manifest.name} {manifest.version}", hint="rename the folder to match the manifest"
        )
    return bundle


def _content(file: Path) -> bytes | None:
    """Return the content of a file; None if missing, b"" if unreadable."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return b""


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder; none for a missing folder."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name) and entry.is_dir()]
    except OSError:  # missing or not permitted: no models either way
        return []
