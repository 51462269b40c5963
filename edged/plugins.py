"""Kinds of plug-ins: a table of the built-in ones, and entry points asked only for a kind the table does not know.

Nothing is imported until a configuration names it.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from edged.core.errors import ConfigError

BUILT_IN: dict[str, dict[str, str]] = {
    "sources": {
        "serial": "edged.sources.serial:SerialSource",
        "replay": "edged.sources.replay:ReplaySource",
        "synthetic": "edged.sources.synthetic:SyntheticSource",
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


def load(family: str, kind: str) -> type[Any]:
    """The configuration class of a kind of "sources", "backends" or "sinks".

    Raises:
        ConfigError: there is no such kind, or its module cannot be imported.
    """
    target = BUILT_IN[family].get(kind) or _entry_point(family, kind)
    if target is None:
        raise ConfigError(f"there is no kind {kind!r} of {family}", hint=_suggestion(family, kind))
    module, _, name = target.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # a stranger's module may raise anything as it is imported
        raise ConfigError(
            f"the plug-in {kind!r} ({target}) cannot be imported: {error}",
            hint="reinstall the package that provides it, into the same environment as edged",
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"the plug-in {kind!r} ({target}) is not a class", hint="name its configuration class")
    return found


def _entry_point(family: str, kind: str) -> str | None:
    from importlib.metadata import entry_points

    for point in entry_points(group=f"edged.{family}", name=kind):
        return point.value
    return None


def _suggestion(family: str, kind: str) -> str:
    from importlib.metadata import entry_points

    kinds = [*BUILT_IN[family], *(point.name for point in entry_points(group=f"edged.{family}"))]
    close = difflib.get_close_matches(kind, kinds, n=1)
    known = "known kinds: " + ", ".join(sorted(kinds))
    return f"did you mean {close[0]!r}? {known}" if close else known
