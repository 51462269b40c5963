"""Large modules of the standard library, imported when first used: `from edged.system.later import ssl`.

A board pays for a module in memory and in time before the first inference. A name of this module stands for a module,
which is imported with the first use of an attribute: asyncio because sensors are read before the control plane is up,
ssl and hashlib because of OpenSSL, which only TLS and large files need.

Other packages import such modules without need: asyncio and paho import ssl, paho also hashlib and urllib.request, and
zipfile imports bz2, lzma and shutil. During the import of such a package, the names stand for the modules in
`sys.modules` too, and the package works with the names. A thread that imports one of the modules meanwhile gets a name
that works as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

_removing = Lock()


class _Later(ModuleType):
    """A module, imported with the first use of an attribute, but without the modules in `rarely`."""

    def __init__(self, name: str, *rarely: ModuleType) -> None:
        super().__init__(name)
        self._rarely = rarely

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system
            raise AttributeError(name)
        return getattr(self._loaded(), name)

    def _loaded(self) -> ModuleType:
        _remove(self)
        if self.__name__ in sys.modules:
            return import_module(self.__name__)  # waits while another thread imports the module
        with _standing_in(self._rarely):
            return import_module(self.__name__)


class _Ssl(_Later):
    """The module ssl. Until the import, `except ssl.SSLError` catches nothing, since nobody can raise that error."""

    def __getattr__(self, name: str) -> Any:
        if name.endswith("Error") and sys.modules.get("ssl", self) is self:
            return ()
        return super().__getattr__(name)


@contextmanager
def _standing_in(names: tuple[ModuleType, ...]) -> Iterator[None]:
    """Have imports of modules not yet imported find these names."""
    for name in names:
        sys.modules.setdefault(name.__name__, name)
    try:
        yield
    finally:
        for name in names:
            _remove(name)
            package, _, module = name.__name__.rpartition(".")
            if package in sys.modules:  # users of `import package.module` look for an attribute of the package
                vars(sys.modules[package]).setdefault(module, name)


def _remove(name: ModuleType) -> None:
    """Remove a name that stands for a module from `sys.modules`, but never the module."""
    with _removing:
        if sys.modules.get(name.__name__) is name:
            del sys.modules[name.__name__]


if TYPE_CHECKING:
    import asyncio as asyncio
    import hashlib as hashlib
    import shutil as shutil
    import ssl as ssl
    import subprocess as subprocess
    import tempfile as tempfile
    import zipfile as zipfile
else:
    hashlib = _Later("hashlib")
    shutil = _Later("shutil")
    ssl = _Ssl("ssl")
    subprocess = _Later("subprocess")
    tempfile = _Later("tempfile")
    asyncio = _Later("asyncio", ssl, _Later("asyncio.sslproto"))
    zipfile = _Later("zipfile", _Later("bz2"), _Later("lzma"), shutil)

_paho = _Later("paho.mqtt.client", ssl, hashlib, _Later("urllib.request"))


def import_asyncio() -> None:
    """Import asyncio without ssl. Later imports find the module."""
    asyncio.run  # noqa: B018


def import_msgspec() -> None:
    """Import msgspec without typing_extensions: msgspec then asks typing for the same, as in any newer Python."""
    if sys.modules.setdefault("typing_extensions", cast(ModuleType, None)) is None:  # None makes an import fail
        try:
            import_module("msgspec")
        finally:
            del sys.modules["typing_extensions"]


def import_paho() -> None:
    """Import paho without ssl, hashlib and urllib.request. Later imports find the module."""
    _paho.Client  # noqa: B018
