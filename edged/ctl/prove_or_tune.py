"""Find the models for `prove` and `tune`, and run the steps in the daemon or in this process."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from edged.acceleration.placement import Accelerators
from edged.acceleration.prove import Subject
from edged.config.check import find_bundle
from edged.config.load import load
from edged.config.options import Config
from edged.core.answers import MODELS
from edged.core.errors import ConfigError
from edged.core.protocol import Stream, T
from edged.ctl.client import connect
from edged.ctl.devices import daemon_runs
from edged.ctl.local_model import default_backend, models_of
from edged.models.store import MissingModelError, Store


def steps(
    args: argparse.Namespace,
    stream: Stream[T],
    asked: Mapping[str, object],
    work: Callable[[Accelerators, Config | None], Iterator[T]],
) -> Iterator[T]:
    """Yield the steps of a verb: from a running daemon, the owner of the devices, or otherwise from work done here."""
    if daemon_runs(args.runtime_dir):
        yield from connect(args.runtime_dir).stream(stream, **asked)
        return
    config = _config(args)
    accelerators = Accelerators(lambda model, name, status: None)
    try:
        if config is not None:
            accelerators.configure(config.delegates, config.accelerators)
        yield from work(accelerators, config)
    finally:
        accelerators.close()


def names(args: argparse.Namespace) -> list[str]:
    """Return the names of the models of a running daemon, or otherwise of `subjects`."""
    if daemon_runs(args.runtime_dir):
        return [model["name"] for model in connect(args.runtime_dir).call(MODELS)]
    return _names(_config(args), models_of(args))


def subjects(args: argparse.Namespace, config: Config | None, named: str | None) -> list[Subject]:
    """Return the model of a name, or all models of the configuration, or without a configuration of the factory.

    Raises:
        EdgedError: no model is found, or a model is damaged.
    """
    store = models_of(args)
    if named:
        return [_subject(named, config, store)]
    found = []
    for name in _names(config, store):
        with suppress(MissingModelError):  # not installed yet
            found.append(_subject(name, config, store))
    return found


def _config(args: argparse.Namespace) -> Config | None:
    files = [Path(file) for file in args.config]
    return load(files) if files[0].exists() else None


def _names(config: Config | None, store: Store) -> list[str]:
    found = [*(store.names() if config is None else config.models)]
    if not found:
        raise ConfigError("there are no models", hint="name a model in the configuration, or install a model")
    return found


def _subject(name: str, config: Config | None, store: Store) -> Subject:
    entry = config.models.get(name) if config is not None else None
    if entry is not None:
        return Subject(name, find_bundle(name, entry, store), entry.delegate, entry.options)
    bundle = store.find(name)
    return Subject(name, bundle, "auto", default_backend(bundle))
