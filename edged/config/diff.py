"""Difference between two configurations: the parts to be added, removed and changed by a reload."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from edged.config.load import SINGLE_TABLES
from edged.config.options import Config


class Change(msgspec.Struct, frozen=True):
    """Names in one section of the configuration: new, gone, and with another meaning."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class Changes(msgspec.Struct, frozen=True):
    """Difference between two configurations, by section. `tables` names single tables such as [device] or [mqtt]."""

    sources: Change = Change()
    models: Change = Change()
    pipelines: Change = Change()
    sinks: Change = Change()
    tables: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Changes()


def changes(old: Config, new: Config, *, models: Collection[str] = (), pipelines: Collection[str] = ()) -> Changes:
    """Return the parts to be added, removed or changed by a reload.

    A pipeline has changed with the table of the pipeline, the source, the model or a sink. A model has changed with a
    possible delegate of the model, and with the rules for all delegates. The names in `models` and `pipelines` count as
    changed too: these parts do not run, and the new configuration may let them.
    """
    sources = _compare(old.sources, new.sources)
    redefined = _compare(old.delegates, new.delegates)
    touched = {*redefined.added, *redefined.removed, *redefined.changed}
    ruled = old.accelerators != new.accelerators
    moved = {
        name
        for name, entry in new.models.items()
        if (touched and entry.delegate in ("auto", *touched)) or (ruled and (entry.delegate != "cpu" or entry.isolate))
    }
    remade = _compare(old.models, new.models, touched={*moved, *models})
    sinks = _compare(old.sinks, new.sinks)
    shaken = {
        name
        for name, entry in new.pipelines.items()
        if entry.source in sources.changed or entry.model in remade.changed or {*entry.sinks} & {*sinks.changed}
    }
    rebuilt = _compare(old.pipelines, new.pipelines, touched={*shaken, *pipelines})
    tables = tuple(table for table in SINGLE_TABLES if getattr(old, table) != getattr(new, table))
    return Changes(sources, remade, rebuilt, sinks, tables)


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], touched: Collection[str] = ()) -> Change:
    return Change(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(name for name in new if name in old and (new[name] != old[name] or name in touched)),
    )
