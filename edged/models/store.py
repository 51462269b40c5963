"""The models a board has: `<folder>/<name>/<version>/`, each of them a bundle."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from edged.core.errors import BundleError, ConfigError
from edged.core.manifest import version_key
from edged.models.bundle import Bundle, open_folder

_PACKAGE = Path(__file__).parents[1]

FACTORY = next(filter(Path.is_dir, [_PACKAGE / "firmware_models"]), _PACKAGE.parent / "firmware_models")
"""The models that came with `edged`: inside the package where it was installed, beside it in a checkout."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,3}")


class Store:
    """Finds bundles by name and version. It looks at the disk each time, so models may come and go."""

    def __init__(self, factory: Path) -> None:
        self._factory = factory

    def names(self) -> tuple[str, ...]:
        """The names of all models that have a version, in alphabetical order."""
        return tuple(sorted(name for name in _folders(self._factory, _NAME) if self.versions(name)))

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model, oldest first; none if there is no such model."""
        if not _NAME.fullmatch(name):
            return ()
        return tuple(sorted(_folders(self._factory / name, _VERSION), key=version_key))

    def find(self, name: str, version: str | None = None) -> Bundle:
        """Open and verify a model: that version of it, or the newest.

        Raises:
            ConfigError: there is no such model, or no such version of it.
            BundleError: it is damaged, or is not what its folder says.
        """
        versions = self.versions(name)
        if not versions:
            raise ConfigError(f"there is no model {name!r} in {self._factory}", hint=self._suggestion(name))
        wanted = versions[-1] if version is None else version
        for found in versions:
            if _VERSION.fullmatch(wanted) and version_key(found) == version_key(wanted):
                return _open(self._factory / name / found, name, found)
        raise ConfigError(f"the model {name!r} has no version {wanted}", hint=f"there is {', '.join(versions)}")

    def _suggestion(self, name: str) -> str:
        names = self.names()
        close = difflib.get_close_matches(name, names, n=1)
        known = f"there is {', '.join(names)}" if names else "install one"
        return f"did you mean {close[0]!r}? {known}" if close else known


def _open(folder: Path, name: str, version: str) -> Bundle:
    bundle = open_folder(folder)
    manifest = bundle.manifest
    if (manifest.name, version_key(manifest.version)) != (name, version_key(version)):
        raise BundleError(
            f"{folder} holds {manifest.name} {manifest.version}", hint="rename the folder to what its manifest says"
        )
    return bundle


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name) and entry.is_dir()]
    except OSError:  # not there, or not ours to read: no models either way
        return []
