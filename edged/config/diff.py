"""The difference between two configurations: what a reload adds, removes and changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from edged.config.load import SINGLE_TABLES
from edged.config.options import Config

# -- what a reload touches ------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True):
    """Names in one section of the configuration that came, went, or mean something else now."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class Changes(msgspec.Struct, frozen=True):
    """What differs between two configurations. `tables` are those of [device], [mqtt], ... that differ."""

    sources: Change = Change()
    models: Change = Change()
    pipelines: Change = Change()
    sinks: Change = Change()
    tables: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Changes()


def changes(old: Config, new: Config, *, models: Collection[str] = (), pipelines: Collection[str] = ()) -> Changes:
    """What a reload has to touch, and nothing more.

    A pipeline has changed with its own table and with anything it is made of: its source, its model, its sinks. A model
    has changed with a delegate that it may run on, and with the rules for all of them. Those of `models` and of
    `pipelines` count as changed too: they do not run, and what kept them from it may be over.
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
