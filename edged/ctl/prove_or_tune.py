"""What `prove` and `tune` share: whom they ask, a daemon or this process, and about which models."""

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
    """What a verb yields: from the daemon that runs, as it has the devices, or else from doing the work here."""
    if daemon_runs(args.runtime_dir):
        yield from connect(args.runtime_dir).stream(stream, **asked)
        return
    config = _config(args)
    accelerators = Accelerators(lambda model, name, standing: None)
    try:
        if config is not None:
            accelerators.configure(config.delegates, config.accelerators)
        yield from work(accelerators, config)
    finally:
        accelerators.close()


def names(args: argparse.Namespace) -> list[str]:
    """The models there are: those of the daemon that runs, or else as `subjects` finds them."""
    if daemon_runs(args.runtime_dir):
        return [model["name"] for model in connect(args.runtime_dir).call(MODELS)]
    return _names(_config(args), models_of(args))


def subjects(args: argparse.Namespace, config: Config | None, named: str | None) -> list[Subject]:
    """The model of a name, or all: those of the configuration, and where there is none the factory's.

    Raises:
        EdgedError: there is none, or one is not sound.
    """
    store = models_of(args)
    if named:
        return [_subject(named, config, store)]
    found = []
    for name in _names(config, store):
        with suppress(MissingModelError):  # it is to be brought yet
            found.append(_subject(name, config, store))
    return found


def _config(args: argparse.Namespace) -> Config | None:
    files = [Path(file) for file in args.config]
    return load(files) if files[0].exists() else None


def _names(config: Config | None, store: Store) -> list[str]:
    found = [*(store.names() if config is None else config.models)]
    if not found:
        raise ConfigError("there are no models", hint="name one in the configuration, or install one")
    return found


def _subject(name: str, config: Config | None, store: Store) -> Subject:
    entry = config.models.get(name) if config is not None else None
    if entry is not None:
        return Subject(name, find_bundle(name, entry, store), entry.delegate, entry.options)
    bundle = store.find(name)
    return Subject(name, bundle, "auto", default_backend(bundle))
