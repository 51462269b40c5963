"""Print the MQTT interface of this device as an AsyncAPI 3.0 document in JSON: every topic and what travels on it.

It is made from the configuration and the models it names, so it needs no daemon. The results of a pipeline whose model
cannot be read are described as results of any kind.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edged import __version__
from edged.config import Config, find_bundle, load
from edged.core.asyncapi import document
from edged.core.description import Description, pipeline_output
from edged.core.errors import EdgedError
from edged.core.manifest import Manifest
from edged.core.topics import Topics
from edged.ctl import exits, tables
from edged.models.store import FACTORY, Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Print it."""
    config = load([Path(file) for file in args.config])
    tables.show_json(document(describe(config, Store(FACTORY))))
    return exits.DONE


def describe(config: Config, store: Store) -> Description:
    """What a daemon with this configuration offers."""
    manifests = {name: _manifest(config, name, store) for name in config.models}
    return Description(
        topics=Topics(config.mqtt.prefix, config.device.name),
        version=__version__,
        broker=config.mqtt.broker,
        tls=config.mqtt.tls,
        pipelines=tuple(pipeline_output(name, manifests[entry.model]) for name, entry in config.pipelines.items()),
        sources=tuple(config.sources),
        models=tuple(config.models),
    )


def _manifest(config: Config, name: str, store: Store) -> Manifest | None:
    try:
        return find_bundle(name, config.models[name], store).manifest
    except EdgedError:
        return None
