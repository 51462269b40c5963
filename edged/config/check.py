"""The configuration held against the models that it names, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edged import __version__
from edged.api import SourceConfig
from edged.config.load import convert, publishes
from edged.config.options import Config, ModelEntry, PipelineEntry
from edged.core import contract
from edged.core.description import Description, pipeline_output
from edged.core.errors import ConfigError, EdgedError
from edged.core.manifest import NO_DELEGATES, Decision, Manifest, Regress
from edged.core.postprocess import Postprocessor
from edged.core.tables import Problem, Tables
from edged.core.topics import Topics
from edged.models.bundle import Bundle
from edged.models.store import MissingModelError, Store

# -- holding it against the models ----------------------------------------------------------------------------------


def find_bundle(name: str, entry: ModelEntry, store: Store) -> Bundle:
    """The bundle that serves as [models.<name>]: what was installed of it or, before that, what is at its path.

    Raises:
        MissingModelError: there is none yet, or not of the version that is asked for.
        EdgedError: it is not sound.
    """
    return store.having({name: entry.path} if entry.path else {}).find(name, entry.version)


def decision_for(entry: PipelineEntry, manifest: Manifest) -> Decision | None:
    """The model's decision with what the pipeline's table overrides, None where it overrides nothing."""
    if not entry.decision:
        return None
    own = Decision() if isinstance(manifest.postprocess, Regress) else manifest.postprocess.decision
    return msgspec.structs.replace(own, **entry.decision)


def check_models(config: Config, store: Store) -> tuple[Problem, ...]:
    """Return the problems of the models that the configuration names: damaged, or unfit for their source.

    That one is not here yet is no error.
    """
    tables = Tables(convert)
    tables.origins = config.origins
    bundles = {name: _check_model(tables, config, name, store) for name in config.models}
    for name, entry in config.pipelines.items():
        if bundle := bundles[entry.model]:
            _check_pipeline(tables, name, entry, config.sources[entry.source].options, bundle.manifest)
    return tuple(tables.problems)


def _check_model(tables: Tables, config: Config, name: str, store: Store) -> Bundle | None:
    entry = config.models[name]
    try:
        return find_bundle(name, entry, store)
    except MissingModelError:
        return None  # it may be brought: see config_warnings.py
    except EdgedError as error:
        users = [user for user, pipeline in config.pipelines.items() if pipeline.model == name]
        has_table = ("models", name) in config.origins
        place = ("models", name) if has_table else ("pipelines", users[0], "model")
        tables.blame(place, error, "a sound model")
        return None


def _check_pipeline(tables: Tables, name: str, entry: PipelineEntry, source: SourceConfig, manifest: Manifest) -> None:
    place = ("pipelines", name)
    try:
        contract.match(manifest.window, source.describe(), entry.source, entry.model)
    except ConfigError as error:
        tables.blame(place, error, "a source that gives what the model needs")
    try:
        Postprocessor(manifest, decision_for(entry, manifest))
    except ConfigError as error:
        tables.blame((*place, "decision"), error, "what the model can decide")


def describe(config: Config, manifests: Mapping[str, Manifest | None]) -> Description:
    """What a device with this configuration offers; `manifests` are its models', None for one that cannot be read."""
    return Description(
        topics=Topics(config.mqtt.prefix, config.device.name),
        version=__version__,
        broker=config.mqtt.broker,
        tls=config.mqtt.tls,
        path=config.mqtt.path if config.mqtt.transport == "websockets" else "",
        pipelines=tuple(
            msgspec.structs.replace(
                pipeline_output(name, manifests[entry.model]),
                source=entry.source,
                published=publishes(config, entry),
            )
            for name, entry in config.pipelines.items()
        ),
        sources=tuple(config.sources),
        models=tuple(config.models),
        accelerated=tuple(
            name for name, entry in config.models.items() if _may_be_accelerated(entry.delegate, manifests[name])
        ),
    )


def _may_be_accelerated(wanted: str, manifest: Manifest | None) -> bool:
    if wanted in NO_DELEGATES:
        return wanted == "auto" and manifest is not None and bool(manifest.variants)
    return True
