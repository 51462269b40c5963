"""Warnings about a valid configuration: keys and tables without effect, or without effect yet.

`warnings` looks at the models on the disk, as `check_models` does. A warning is a `Problem` of a configuration fit to
run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from edged.config.load import model_paths
from edged.config.options import Config
from edged.core.errors import EdgedError
from edged.core.tables import Problem, TablePath, dotted
from edged.models.store import BRING, MissingModelError, Store


def warnings(config: Config, store: Store) -> tuple[Problem, ...]:
    """Return a warning for each key or table without effect, in the order of the tables."""
    models = _models(config, store.having(model_paths(config)))
    return (*_updates(config), *_mqtt(config), *models, *_pipelines(config), *_unused(config))


def _warning(config: Config, place: TablePath, found: str, allowed: str, hint: str) -> Problem:
    origin = place
    while origin not in config.origins and origin:
        origin = origin[:-1]
    return Problem(config.origins.get(origin, ""), dotted(place), found, allowed, hint)


def _updates(config: Config) -> Iterator[Problem]:
    if config.updates.require_signature:
        return
    for key in ("allowed_signers", "revoked", "threshold"):
        if ("updates", key) in config.origins:
            yield _warning(
                config,
                ("updates", key),
                "no effect, as require_signature is false",
                "require_signature = true beside this key",
                "set require_signature = true, or unsigned models are installed too",
            )


def _mqtt(config: Config) -> Iterator[Problem]:
    if ("mqtt", "discovery_prefix") in config.origins and not config.mqtt.home_assistant:
        yield _warning(
            config, ("mqtt", "discovery_prefix"), "no effect, as home_assistant is false",
            "home_assistant = true beside this key", "set home_assistant = true, or remove the key",
        )  # fmt: skip


def _models(config: Config, store: Store) -> Iterator[Problem]:
    for name, entry in config.models.items():
        users = [user for user, pipeline in config.pipelines.items() if pipeline.model == name]
        place = ("models", name) if ("models", name) in config.origins else ("pipelines", *users[:1], "model")
        if not users:
            yield _warning(
                config, place, "no pipeline uses it", "a model of a pipeline",
                f'write [pipelines.NAME] with model = "{name}", or remove the table',
            )  # fmt: skip
        if entry.url and entry.version:
            yield _warning(
                config, (*place, "url"), f"no effect, as `version` keeps the model at {entry.version}",
                "a `url` without `version`", "remove one of the two keys",
            )  # fmt: skip
        try:
            bundle = store.find(name, entry.version)
        except MissingModelError as error:
            if users:
                yield _warning(config, place, error.message, "an installed model", f"{BRING}; {error.hint}")
            continue
        except EdgedError:
            continue  # reported by check_models
        if entry.path is None:
            continue
        given = store.factory(name)
        if not _is_sound(store, name, given):
            yield _warning(
                config,
                (*place, "path"),
                f"no sound model at this path; the installed version {bundle.manifest.version} serves",
                "a bundle's folder, an .edgm file or a .tflite file",
                "put the file back, or a rollback has no factory version to return to",
            )
        elif bundle.digest not in given:
            yield _warning(
                config,
                (*place, "path"),
                f"the installed version {bundle.manifest.version} serves in place of this path",
                "a model without installed versions",
                f"return to the path: edgectl rollback {name} --to factory",
            )
        elif bundle.manifest.name != name:
            yield _warning(
                config, (*place, "path"), f"a bundle of the model {bundle.manifest.name!r}", f"a bundle of {name!r}",
                f"rename the table to [models.{bundle.manifest.name}], or updates of that model do not reach it",
            )  # fmt: skip


def _is_sound(store: Store, name: str, digests: Iterable[str]) -> bool:
    """Return whether a rollback has a factory version to return to."""
    for digest in digests:
        with suppress(EdgedError):
            store.open(name, digest)
            return True
    return False


def _pipelines(config: Config) -> Iterator[Problem]:
    for name, entry in config.pipelines.items():
        place = ("pipelines", name)
        if (*place, "keep_every") in config.origins and entry.drop != "thin":
            yield _warning(
                config, (*place, "keep_every"), f'drop is "{entry.drop}"', 'drop = "thin" beside this key',
                'set drop = "thin", or remove the key',
            )  # fmt: skip
        if any(config.sinks[sink].kind == "mqtt" for sink in entry.sinks):
            continue
        for key in ("durability", "drop", "priority"):
            if (*place, key) in config.origins:
                yield _warning(
                    config, (*place, key), "no sink of the pipeline sends to the broker", 'a sink of the kind "mqtt"',
                    'add "mqtt" to `sinks`, or remove the key',
                )  # fmt: skip


def _unused(config: Config) -> Iterator[Problem]:
    used = {
        "sources": {entry.source for entry in config.pipelines.values()},
        "sinks": {sink for entry in config.pipelines.values() for sink in entry.sinks},
    }
    for section, names in used.items():
        for name in getattr(config, section):
            if name not in names:
                yield _warning(
                    config, (section, name), "no pipeline uses it", f"{section} of a pipeline",
                    "name the table in a pipeline, or remove it",
                )  # fmt: skip
