"""The models a board has: the factory's, which are never written to and always there to return to, and those installed.

A factory version of a model is what the configuration gives a `path` for: a bundle's folder, an .edgm file or a bare
.tflite file. Without a path, the factory versions are those that came with `edged`:

    <factory>/<name>/<version>/             bundles

    <state>/../unpacked/<digest>/           what the paths of the configuration hold: a runtime reads files, not
                                            containers, and nobody may write to them. Made again at need

    <state>/<name>/state.json               the ledger: the only truth about what is installed (edged/core/ledger.py)
                   state.copy.json          the same, for the day the card has lost the first; both are replaced at
                                            a start where they are not the same
                   versions/<digest>/       bundles, immutable
                   current                  a link to the active one; derived, and for the day both ledgers are lost
                   arriving/                a bundle on its way into versions/

`Store` finds bundles, and changes nothing but `unpacked`. Who changes what is installed is models/updater.py.
"""

from __future__ import annotations

import difflib
import logging
import re
import shutil
import tempfile
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
from edged.core.errors import BundleError, ConfigError, EdgedError, StoreError, some
from edged.core.ledger import EMPTY, Installed, Ledger, versions_to_serve
from edged.core.manifest import version_key
from edged.models.atomic_files import ASIDE, Disk, refusal
from edged.models.bare_file import SUFFIX as BARE
from edged.models.bundle import MANIFEST, Bundle, derive, digest, head_of_folder, open_folder, refuse_draft, unpack

log = logging.getLogger("edged.models")

_PACKAGE = Path(__file__).parents[1]

FACTORY = next(filter(Path.is_dir, [_PACKAGE / "firmware_models"]), _PACKAGE.parent / "firmware_models")
"""The models that came with `edged`: inside the package where it was installed, beside it in a checkout."""

MAX_LEDGER_BYTES = 1 << 20
_BLOCK = 256 << 10
MAX_HEAD_BYTES = 2 << 20
"""More than the head of a container or of a delta can have."""

BRING = "bring one: edgectl update-model FILE"
"""The hint where no version of a model is here, or none is sound."""

VERSIONS = "versions"
"""The folder of a model's installed versions."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,3}")
_KINDS = f"name a bundle's folder, which has a {MANIFEST}, an {container.SUFFIX} file or a {BARE} file"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ModelFolder:
    """Where one model's installed versions are. Reads are of the disk as it is; everything raises StoreError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = folder / VERSIONS
        self.arriving = folder / "arriving"
        self.link = folder / "current"

    def version(self, digest: str) -> Path:
        """The folder of an installed version."""
        return self.versions / digest

    def read(self) -> Ledger:
        """The ledger, or where it is damaged its copy; where both are lost, what else is here tells.

        Empty where there never was one: neither of them is there, nor the link that follows the first confirmation.
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
        """Whether this is in the file and in its copy; of a model that nothing was ever installed of there is none."""
        there = {_content(file) for file in self._ledgers()}
        return there == {ledgers.encode(ledger)} or (ledger == EMPTY and there == {None})

    def write(self, ledger: Ledger, disk: Disk) -> None:
        """Replace the ledger, and then its copy."""
        disk.make_folder(self.folder)
        for file in self._ledgers():
            disk.replace(file, ledgers.encode(ledger))

    def present(self) -> dict[str, int]:
        """The versions that have a folder, and how many bytes are in it."""
        present = {}
        try:
            for folder in _entries(self.versions):
                with suppress(FileNotFoundError):  # it is being removed while somebody only asks
                    if _DIGEST.fullmatch(folder.name):
                        present[folder.name] = sum(file.lstat().st_size for file in folder.iterdir())
        except OSError as error:
            raise refusal(self.versions, error) from error
        return present

    def current(self) -> str | None:
        """The version that the link names."""
        try:
            return self.link.readlink().name
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refusal(self.link, error) from error

    def free(self) -> int:
        """Free bytes on the disk that this is on, or will be."""
        try:
            there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            return shutil.disk_usage(there).free
        except OSError as error:
            raise refusal(self.folder, error) from error

    def litter(self) -> tuple[str, ...]:
        """What an interrupted step has left behind, relative to the folder."""
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
        """The version that the link names, as far as that can be read."""
        try:
            return self.current()
        except StoreError:
            return None

    def _found(self) -> Iterator[tuple[str, Installed]]:
        """The versions whose manifest is what their folder is called after."""
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
    """A version's number, and where it is: a folder, an .edgm file or a .tflite file."""

    version: str
    path: Path


class MissingModelError(ConfigError):
    """No version of a model is here, or not the one that was asked for; it may be brought."""


class Store:
    """Finds bundles by name and version. It looks at the disk each time, so models may come and go.

    `paths` is what the configuration gives for models, by name; it is replaced whole when the configuration is.
    """

    def __init__(
        self,
        factory: Path,
        state: Path | None = None,
        *,
        paths: Mapping[str, Path] | None = None,
        unpacked: Path | None = None,
    ) -> None:
        """`state` is the folder of installed models; without one there are the factory's alone.

        .edgm files are unpacked into `unpacked`, and what other paths name is copied there. Without it, .edgm files are
        unpacked into a folder that goes with this process.
        """
        self.paths = paths or {}
        self._factory = factory
        self._state = state
        self._unpacked = unpacked

    def having(self, paths: Mapping[str, Path]) -> Store:
        """The same store, with other paths for models."""
        return Store(self._factory, self._state, paths=paths, unpacked=self._unpacked)

    def names(self) -> tuple[str, ...]:
        """The names of all models that have a version, in alphabetical order."""
        names = {*_folders(self._factory, _NAME), *self.paths, *self.installed()}
        return tuple(sorted(name for name in names if self.versions(name)))

    def installed(self) -> tuple[str, ...]:
        """The names of the models that something was installed of, in alphabetical order."""
        return tuple(sorted(_folders(self._state, _NAME))) if self._state else ()

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model, oldest first; none if there is no such model. The candidate is not among them."""
        if not _NAME.fullmatch(name):
            return ()
        confirmed = [each.version for each in self._ledger(name).versions.values() if each.confirmed]
        if name in self.paths:
            given = [each.version for each in self.factory(name).values()]
        else:
            given = _folders(self._factory / name, _VERSION)
        return tuple(sorted({*given, *confirmed}, key=version_key))

    def find(self, name: str, version: str | None = None) -> Bundle:
        """Open and verify a model: that version of it, or the active one, or the best there is where that is damaged.

        Raises:
            MissingModelError: there is no such model, or no such version of it.
            EdgedError: it is damaged, or is not what its folder says.
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
            EdgedError: it is damaged, something else, or not there.
        """
        if self._state and self.model(name).version(digest).is_dir():
            return open_version(self.model(name).version(digest), name)
        known = self.factory(name).get(digest)
        if known is None:
            raise BundleError(f"the version {digest[:12]} of {name} is not there", hint="install it again")
        bundle = self._open(known.path, name)
        if bundle.digest != digest:
            raise BundleError(f"{known.path} holds another version than before", hint="reload: edgectl reload")
        return bundle

    def model(self, name: str) -> ModelFolder:
        """Where the installed versions of a model are, or will be."""
        assert self._state is not None, "a store without a state folder has no shelves"
        return ModelFolder(self._state / name)

    def factory(self, name: str) -> dict[str, FactoryVersion]:
        """The factory's versions of a model by digest, newest first; those that cannot be read are left out."""
        return dict(self._factory_versions(name))

    def tidy(self, disk: Disk) -> None:
        """Remove what was unpacked or copied of paths that no model has any more. Raises StoreError."""
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
        """What is known to be installed; nothing where that cannot be read, for the factory's versions can."""
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
        """Yield the places of the versions with that number."""
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
        close = difflib.get_close_matches(name, names, n=1)
        known = f"there is {some(names)}" if names else "install one"
        return f"did you mean {close[0]!r}? {known}" if close else known


def open_path(path: Path, name: str = "", unpacked: Path | None = None) -> Bundle:
    """Open and verify the model in a bundle's folder, an .edgm file or a bare .tflite file.

    A bare file's version is called `name`. An .edgm file is unpacked into `unpacked`, unless it is there;
    without that, or where the disk refuses, into a folder that goes with this process. Anything else is copied into
    `unpacked`, where there is that.

    Raises:
        BundleError: it is not sound.
        StoreError: it cannot be read, or not be unpacked.
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
    """Open the version of an .edgm file that is in a folder, or unpack the file there first."""
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
    """Log what keeps a factory version from being read, once: it is looked at again and again."""
    log.error("%s: the factory's version cannot be had: %s", path, why.removeprefix(f"{path}: "))


def _copied(bundle: Bundle, folder: Path) -> Bundle:
    """The same version in a folder of our own; where it is if the disk refuses.

    A runtime maps the file: whoever writes to that while it serves ends the process with SIGBUS.
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
            log.warning("%s is used where it is: it must not be written to while it serves: %s", bundle.path, error)
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
    """Raise BundleError where something is at a path that is, by its name, no model."""
    if path.is_dir():
        refuse_draft(path)
        problem = "" if (path / MANIFEST).exists() else f"there is no {MANIFEST} in this folder"
    else:
        known = path.suffix in (BARE, container.SUFFIX) or not path.exists()
        problem = "" if known else f"its name ends in neither {BARE} nor {container.SUFFIX}"
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
    """Read all of a bare file, once as long as it is the same."""
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
    return StoreError(f"{path}: it cannot be read: {error.strerror}", hint=_KINDS)


def open_version(folder: Path, name: str) -> Bundle:
    """Open a bundle that must be of this model, and of the version or the digest that its folder is called.

    Raises:
        BundleError: it is damaged, or something else.
    """
    bundle = open_folder(folder)
    manifest = bundle.manifest
    if _DIGEST.fullmatch(folder.name):
        if bundle.digest != folder.name:
            raise BundleError(f"{folder}: manifest.json is damaged: its SHA-256 is another", hint="install it again")
    elif version_key(manifest.version) != version_key(folder.name) or manifest.name != name:
        raise BundleError(
            f"{folder} holds {manifest.name} {manifest.version}", hint="rename the folder to what its manifest says"
        )
    return bundle


def _content(file: Path) -> bytes | None:
    """What is in a file; None where it is not there, nothing where it cannot be read."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return b""


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is no such folder."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name) and entry.is_dir()]
    except OSError:  # not there, or not ours to read: no models either way
        return []
