"""Checks of the configuration against the models on the disk and the code of the sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edged import __version__
from edged.api import SourceConfig
from edged.config.load import ConfigErrors, convert, load, publishes
from edged.config.options import Config, ModelEntry, PipelineEntry, SourceEntry
from edged.core import device_requirements
from edged.core.description import Description, PipelineOutput, pipeline_output
from edged.core.device_requirements import DeviceRequirements
from edged.core.errors import ConfigError, EdgedError
from edged.core.manifest import NO_DELEGATES, Manifest
from edged.core.manifest_outcomes import SegmentPicture
from edged.core.manifest_parts import Decision
from edged.core.pictures import PictureForm
from edged.core.postprocess import Postprocessor
from edged.core.source_match import match_source
from edged.core.tables import Problem, Tables
from edged.core.topics import Topics
from edged.models.bundle import Bundle
from edged.models.store import MissingModelError, Store


class Checked(NamedTuple):
    """A configuration (None if it has problems), the problems and the warnings."""

    config: Config | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()


def check(files: Sequence[Path], store: Store) -> Checked:
    """Read and check a configuration, with the models in a store: all tables that can be understood."""
    from edged.config.warnings import warnings  # a daemon serves without

    try:
        config = load(files)
    except ConfigErrors as errors:
        if errors.sound is None:
            return Checked(None, errors.problems)
        # Without the parts left out, tables for these parts would seem to be without effect.
        doubts = warnings(errors.sound, store) if errors.whole else ()
        return Checked(None, (*errors.problems, *check_models(errors.sound, store)), doubts)
    problems = check_models(config, store)
    return Checked(None if problems else config, problems, warnings(config, store))


def find_bundle(name: str, entry: ModelEntry, store: Store) -> Bundle:
    """Return the bundle that serves as [models.<name>]: an installed version or, before any, the version at the path.

    Raises:
        MissingModelError: the board has no version yet, or not the version of the table.
        EdgedError: the bundle is damaged.
    """
    return store.having({name: entry.path} if entry.path else {}).find(name, entry.version)


def decision_for(entry: PipelineEntry, manifest: Manifest) -> Decision | None:
    """Return the model's decision with the overrides of the pipeline's table, None without overrides.

    Raises:
        ConfigError: an override is for another kind of model.
    """
    if not entry.decision:
        return None
    own: Decision = getattr(manifest.postprocess, "decision", Decision())
    strangers = entry.decision.keys() - set(own.__struct_fields__)
    if strangers:
        raise ConfigError(
            f"`{min(strangers)}` is for a model that detects objects, and {manifest.name!r} does not",
            hint=f"delete the key {min(strangers)} from the table `decision` of the pipeline",
        )
    return msgspec.structs.replace(own, **entry.decision)


def picture_form(entry: PipelineEntry, manifest: Manifest) -> PictureForm | None:
    """Return the pictures that a pipeline wants of a source of pictures; None for a model that takes none."""
    spec = manifest.picture_spec
    return None if spec is None else PictureForm(spec, entry.region, entry.mask)


def check_models(config: Config, store: Store) -> tuple[Problem, ...]:
    """Return the problems of the configured models: damaged, or unfit for the source.

    A model yet to be installed is no problem.
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
        return None  # an update may bring a version: see warnings.py
    except EdgedError as error:
        users = [user for user, pipeline in config.pipelines.items() if pipeline.model == name]
        has_table = ("models", name) in config.origins
        place = ("models", name) if has_table else ("pipelines", users[0], "model")
        tables.blame(place, error, "a sound model")
        return None


def _check_pipeline(tables: Tables, name: str, entry: PipelineEntry, source: SourceConfig, manifest: Manifest) -> None:
    place = ("pipelines", name)
    info = source.describe()
    for key in ("region", "mask"):
        if not info.pictures and (*place, key) in tables.origins:
            hint = "delete this key, or name another source"
            tables.refuse((*place, key), f"the source {entry.source!r}", "a source of pictures", hint)
    try:
        match_source(manifest.window, info, entry.source, entry.model)
    except ConfigError as error:
        tables.blame(place, error, "a source that fits the model")
    if entry.publish_mask and not any(isinstance(each.postprocess, SegmentPicture) for each in manifest.parts.values()):
        maskless = ConfigError(f"the model {manifest.name!r} makes no masks", hint="delete publish_mask")
        tables.blame((*place, "publish_mask"), maskless, "a model that segments pictures")
    try:
        Postprocessor(manifest, decision_for(entry, manifest))
    except ConfigError as error:
        tables.blame((*place, "decision"), error, "fields that fit the model")


def required_devices(name: str, entry: SourceEntry) -> DeviceRequirements:
    """Return the devices of the source in [sources.<name>].

    Raises:
        ConfigError: the source's own code fails, or returns nonsense; the message names source and kind.
    """
    try:
        return device_requirements.check(entry.options.devices())
    except (Exception, SystemExit) as error:  # the code of a plug-in may raise anything
        known = error if isinstance(error, EdgedError) else ConfigError(f"devices() fails: {error!r}"[:500])
        raise ConfigError(
            f"[sources.{name}], kind {entry.kind!r}: {known.message}",
            hint=known.hint or f"correct the options of [sources.{name}], or report the error to the plug-in's author",
        ) from error


def _output(name: str, entry: PipelineEntry, manifest: Manifest | None) -> PipelineOutput:
    try:
        return pipeline_output(name, manifest, None if manifest is None else decision_for(entry, manifest))
    except ConfigError:  # reported by check_models
        return pipeline_output(name, manifest)


def describe(config: Config, manifests: Mapping[str, Manifest | None]) -> Description:
    """Return the MQTT interface of a device with this configuration.

    `manifests` has the manifest of each model, None for an unreadable model.
    """
    return Description(
        topics=Topics(config.mqtt.prefix, config.device.name),
        version=__version__,
        broker=config.mqtt.broker,
        tls=config.mqtt.tls,
        path=config.mqtt.path if config.mqtt.transport == "websockets" else "",
        pipelines=tuple(
            msgspec.structs.replace(
                _output(name, entry, manifests[entry.model]),
                source=entry.source,
                published=publishes(config, entry),
                mask=entry.publish_mask or "",
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
