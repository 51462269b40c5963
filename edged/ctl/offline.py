"""What the verbs that run a model themselves share: finding the model, and loading it as the daemon would."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edged import plugins
from edged.api import Backend, Runner
from edged.config import find_bundle, load
from edged.core import container
from edged.models import bare
from edged.models.bundle import Bundle
from edged.models.selftest import check_tensors, shaped
from edged.models.store import FACTORY, Store, open_path

MODEL_HELP = "a model's name, a bundle's folder, an .edgm file or a .tflite file"


def find_model(named: str, args: argparse.Namespace) -> tuple[Bundle, Backend]:
    """A model by name or path, and the backend that runs it.

    A name is that of a model the configuration knows, with the options it has there, or else of a factory model.

    Raises:
        EdgedError: there is none, or it or the configuration is not sound.
    """
    path = Path(named)
    if "/" in named or path.suffix in (bare.SUFFIX, container.SUFFIX):
        bundle = open_path(path)
        return bundle, default_backend(bundle)
    files = [Path(file) for file in args.config]
    models = load(files).models if files[0].exists() else {}
    store = models_of(args)
    if entry := models.get(named):
        return find_bundle(named, entry, store), entry.options
    bundle = store.find(named)
    return bundle, default_backend(bundle)


def models_of(args: argparse.Namespace) -> Store:
    """The models of this device: what the factory gave, and what was installed since, where that is ours to read."""
    installed = Path(args.state_dir) / "models"
    return Store(FACTORY, installed) if os.access(installed, os.R_OK | os.X_OK) else Store(FACTORY)


def default_backend(bundle: Bundle) -> Backend:
    """The backend a model asks for, with its defaults."""
    backend: Backend = plugins.load("backends", bundle.manifest.backend)()
    return backend


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep the INFO lines of a runtime that writes to standard error itself from the user; pass everything else on."""
    with tempfile.TemporaryFile() as said:
        errors = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(errors, 2)
            os.close(errors)
            said.seek(0)
            for line in said:
                if not line.startswith(b"INFO: "):
                    os.write(2, line)


def load_model(bundle: Bundle, backend: Backend, signature: str | None = None) -> Runner:
    """The model loaded, and its tensors held against its manifest.

    Raises:
        EdgedError: it does not load, or is not what its manifest says.
    """
    with without_chatter():
        runner = shaped(backend, bundle.manifest).load(bundle.model, signature=signature or bundle.manifest.signature)
    try:
        check_tensors(bundle.manifest, runner)
    except BaseException:
        runner.close()
        raise
    return runner
