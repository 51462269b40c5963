"""Print the MQTT interface of this device as an AsyncAPI 3.0 document in JSON: every topic and every message.

The document is made from the configuration and the configured models, without a daemon. The results of a pipeline
with an unreadable model are described as results of any kind.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edged.config.check import describe, find_bundle
from edged.config.load import load
from edged.config.options import Config
from edged.core.asyncapi import document
from edged.core.errors import EdgedError
from edged.core.manifest import Manifest
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.local_model import models_of
from edged.models.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    config = load([Path(file) for file in args.config])
    store = models_of(args)
    manifests = {name: _manifest(config, name, store) for name in config.models}
    tables.show_json(document(describe(config, manifests)))
    return exits.DONE


def _manifest(config: Config, name: str, store: Store) -> Manifest | None:
    try:
        return find_bundle(name, config.models[name], store).manifest
    except EdgedError:
        return None
