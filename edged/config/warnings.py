"""Warnings about a sound configuration: what it says without effect, or with none yet.

`warnings` looks at the models on the disk, as `check_models` does. A warning is a `Problem` that keeps nothing from
running.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from edged.config.load import model_paths
from edged.config.options import Config
from edged.core.errors import EdgedError
from edged.core.tables import Place, Problem, dotted
from edged.models.store import BRING, MissingModelError, Store


def warnings(config: Config, store: Store) -> tuple[Problem, ...]:
    """Everything that has no effect, in the order of the tables."""
    models = _models(config, store.having(model_paths(config)))
    return (*_updates(config), *_mqtt(config), *models, *_pipelines(config), *_unused(config))


def _warning(config: Config, place: Place, found: str, allowed: str, hint: str) -> Problem:
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
                "it keeps nothing out, as require_signature is false",
                "require_signature = true beside it",
                "set require_signature = true, or models that nobody signed are installed too",
            )


def _mqtt(config: Config) -> Iterator[Problem]:
    if ("mqtt", "discovery_prefix") in config.origins and not config.mqtt.home_assistant:
        yield _warning(
            config, ("mqtt", "discovery_prefix"), "nothing is announced, as home_assistant is false",
            "home_assistant = true beside it", "set home_assistant = true, or remove the key",
        )  # fmt: skip


def _models(config: Config, store: Store) -> Iterator[Problem]:
    for name, entry in config.models.items():
        users = [user for user, pipeline in config.pipelines.items() if pipeline.model == name]
        place = ("models", name) if ("models", name) in config.origins else ("pipelines", *users[:1], "model")
        if not users:
            yield _warning(
                config, place, "no pipeline uses it", "a model that a pipeline uses",
                f'write [pipelines.NAME] with model = "{name}", or remove the table',
            )  # fmt: skip
        if entry.url and entry.version:
            yield _warning(
                config, (*place, "url"), f"version {entry.version} is asked for, so that no other is installed",
                "a `url` without `version`", "remove one of the two keys",
            )  # fmt: skip
        try:
            bundle = store.find(name, entry.version)
        except MissingModelError as error:
            if users:
                yield _warning(config, place, error.message, "a model that is here", f"{BRING}; {error.hint}")
            continue
        except EdgedError:
            continue  # an error, and told as one
        if entry.path is None:
            continue
        given = store.factory(name)
        if not _is_sound(store, name, given):
            yield _warning(
                config,
                (*place, "path"),
                f"there is no sound model; version {bundle.manifest.version}, which was installed, serves without it",
                "a bundle's folder, an .edgm file or a .tflite file",
                "put it back, or there is nothing that a rollback could return to",
            )
        elif bundle.digest not in given:
            yield _warning(
                config,
                (*place, "path"),
                f"version {bundle.manifest.version}, which was installed, serves instead of it",
                "a model of which nothing was installed",
                f"return to what is at the path: edgectl rollback {name} --to factory",
            )
        elif bundle.manifest.name != name:
            yield _warning(
                config, (*place, "path"), f"a bundle of the model {bundle.manifest.name!r}", f"a bundle of {name!r}",
                f"rename the table to [models.{bundle.manifest.name}], or no update of that model reaches it",
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
                config, (*place, "keep_every"), f'drop is "{entry.drop}"', 'drop = "thin" beside it',
                'set drop = "thin", or remove the key',
            )  # fmt: skip
        if any(config.sinks[sink].kind == "mqtt" for sink in entry.sinks):
            continue
        for key in ("durability", "drop", "priority"):
            if (*place, key) in config.origins:
                yield _warning(
                    config, (*place, key), "none of its sinks sends to the broker", 'a sink of the kind "mqtt"',
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
                    config, (section, name), "no pipeline uses it", f"{section} that a pipeline uses",
                    "name it in a pipeline, or remove the table",
                )  # fmt: skip
