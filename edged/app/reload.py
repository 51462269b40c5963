"""The parts touched by a reload: pure functions from two configurations to names."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edged.config.options import Config

if TYPE_CHECKING:
    from edged.config.diff import Change, Changes

_RESTART_TABLES = {"device", "mqtt", "spool"}
"""Tables in every topic and below every sink: a change restarts all parts."""


class Names(NamedTuple):
    """Parts to bring up or take down."""

    sources: tuple[str, ...]
    models: tuple[str, ...]
    pipelines: tuple[str, ...]
    sinks: tuple[str, ...]


def everything(config: Config) -> Names:
    """Return the names of all parts of a configuration."""
    return Names(tuple(config.sources), tuple(config.models), tuple(config.pipelines), tuple(config.sinks))


def leaving(touched: Changes) -> Names:
    """Return the parts to take down: removed or changed."""
    return Names(*(change.removed + change.changed for change in _changes(touched)))


def arriving(touched: Changes) -> Names:
    """Return the parts to bring up: added or changed."""
    return Names(*(change.added + change.changed for change in _changes(touched)))


def restarts_everything(touched: Changes) -> bool:
    """Return whether all parts are to be taken down and brought up, and the broker's connection too."""
    return bool(_RESTART_TABLES & set(touched.tables))


def affected_models(old: Config, new: Config, touched: Changes | None) -> set[str]:
    """Return the models with pipelines in a reload, or all if `touched` is None."""
    if touched is None:
        return {*old.models, *new.models}
    models, pipelines = touched.models, touched.pipelines
    leaving = [old.pipelines[name].model for name in (*pipelines.removed, *pipelines.changed)]
    arriving = [new.pipelines[name].model for name in (*pipelines.added, *pipelines.changed)]
    return {*leaving, *arriving, *models.added, *models.removed, *models.changed}


class TouchedNames(NamedTuple):
    """Names of tables and parts touched by a reload, as "pipelines.motion"."""

    all: list[str]
    added: list[str]
    removed: list[str]


def touched_names(touched: Changes) -> TouchedNames:
    """Return the names of all tables and parts touched by a reload."""
    names = TouchedNames([*touched.tables], [], [])
    for family, change in zip(Names._fields, _changes(touched), strict=True):
        names.all.extend(f"{family}.{name}" for name in (*change.added, *change.removed, *change.changed))
        names.added.extend(f"{family}.{name}" for name in change.added)
        names.removed.extend(f"{family}.{name}" for name in change.removed)
    return names


def _changes(touched: Changes) -> tuple[Change, ...]:
    return touched.sources, touched.models, touched.pipelines, touched.sinks
