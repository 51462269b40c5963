"""Kinds of plug-ins: a table of built-in kinds, and entry points for other kinds.

A kind is imported once a configuration names it. A package adds a kind by an entry point in the group `edged.sources`,
`edged.backends` or `edged.sinks` that names the configuration class; built-in kinds cannot be replaced.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edged.api import Backend, SinkConfig, SourceConfig
from edged.core.errors import ConfigError, closest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BUILT_IN: dict[str, dict[str, str]] = {
    "sources": {
        "serial": "edged.sources.serial:SerialSource",
        "replay": "edged.sources.replay:ReplaySource",
        "images": "edged.sources.images:ImagesSource",
        "synthetic": "edged.sources.synthetic:SyntheticSource",
        "camera": "edged.sources.camera:CameraSource",
        "http_camera": "edged.sources.http_camera:HttpCameraSource",
        "rtsp": "edged.sources.rtsp:RtspSource",
        "command": "edged.sources.command:CommandSource",
    },
    "backends": {
        "tflite": "edged.backends.tflite:TfliteBackend",
        "fake": "edged.backends.fake:FakeBackend",
    },
    "sinks": {
        "mqtt": "edged.sinks.mqtt:MqttSink",
        "jsonl": "edged.sinks.jsonl:JsonlSink",
        "stdout": "edged.sinks.stdout:StdoutSink",
    },
}

CONTRACTS: dict[str, type[Any]] = {"sources": SourceConfig, "backends": Backend, "sinks": SinkConfig}


def load(family: str, kind: str) -> type[Any]:
    """Return the configuration class of a kind of "sources", "backends" or "sinks".

    Raises:
        ConfigError: the kind is unknown, or the module cannot be imported or has other content.
    """
    target = BUILT_IN[family].get(kind) or _entry_point(family, kind)
    module, _, name = target.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # a foreign module may raise any exception during the import
        raise ConfigError(
            f"the plug-in {kind!r} ({target}) cannot be imported: {error}",
            hint="reinstall the package that provides it, into the same environment as edged",
        ) from error
    contract = CONTRACTS[family]
    if not (isinstance(found, type) and issubclass(found, contract)):
        raise ConfigError(
            f"the plug-in {kind!r} ({target}) is not a configuration class of {family}",
            hint=f"its entry point must name a class derived from edged.api.{contract.__name__}",
        )
    return found


def kinds(family: str) -> list[str]:
    """Return all kinds of a family, built-in and installed, in order of name."""
    return sorted({*BUILT_IN[family], *(point.name for point in _points(family))})


def _entry_point(family: str, kind: str) -> str:
    targets = sorted({point.value for point in _points(family) if point.name == kind})
    if not targets:
        raise ConfigError(f"there is no kind {kind!r} of {family}", hint=_suggestion(family, kind))
    if len(targets) > 1:
        raise ConfigError(
            f"several packages provide the kind {kind!r} of {family}: {', '.join(targets)}",
            hint="uninstall all packages but one",
        )
    return targets[0]


def _points(family: str) -> list[EntryPoint]:
    from importlib.metadata import entry_points  # slow to import, and rarely asked

    return list(entry_points(group=f"edged.{family}"))


def _suggestion(family: str, kind: str) -> str:
    known = kinds(family)
    close = closest(kind, known)
    listed = "known kinds: " + ", ".join(known)
    return f"did you mean {close!r}? {listed}" if close else listed
