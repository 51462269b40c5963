"""Find, test and load a model in this process, like the daemon."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edged import plugins
from edged.api import Backend, Runner
from edged.backends.isolated import Host
from edged.config.check import find_bundle
from edged.config.load import load
from edged.core import container
from edged.models.bundle import BARE_SUFFIX, Bundle
from edged.models.proofs import FILE, Proofs
from edged.models.selftest import check_tensors, shaped
from edged.models.store import FACTORY, Store, open_path
from edged.models.trial import PROOF_SECONDS, prove_apart
from edged.system.child import ResourceLimits
from edged.system.memory import available_bytes

MODEL_HELP = "a model's name, a bundle's folder, an .edgm file or a .tflite file"


def find_model(named: str, args: argparse.Namespace) -> tuple[Bundle, Backend]:
    """Return a model by name or path, and the backend for the model.

    Names are first looked up in the configuration, with the options there, and then among the installed models.

    Raises:
        EdgedError: no model is found, or the model or the configuration is invalid.
    """
    path = Path(named)
    if "/" in named or path.suffix in (BARE_SUFFIX, container.SUFFIX):
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
    """Return the models of this device: the factory models and, if readable, the installed models."""
    installed = Path(args.state_dir) / "models"
    return Store(FACTORY, installed) if os.access(installed, os.R_OK | os.X_OK) else Store(FACTORY)


def default_backend(bundle: Bundle) -> Backend:
    """Return the backend named by a model, with default options."""
    backend: Backend = plugins.load("backends", bundle.manifest.backend)()
    return backend


@contextmanager
def without_chatter() -> Iterator[None]:
    """Drop INFO lines from standard error, written there by runtimes, and pass all other lines on."""
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


def prove_first(bundle: Bundle, backend: Backend, args: argparse.Namespace, signature: str | None = None) -> None:
    """Load, run and close a model in a child process first, unless the daemon has a record of such a test.

    Raises:
        EdgedError: the model does not work, or kills or hangs the child process.
    """
    if not Proofs(Path(args.state_dir) / FILE).holds(bundle, backend, signature):
        asyncio.run(prove_apart(bundle, backend, signature=signature))


@contextmanager
def loaded_apart(name: str, backend: Backend, file: Path, signature: str | None = None) -> Iterator[Runner]:
    """Yield a runner in a separate process, for an untested file; `name` is for error messages.

    Raises:
        EdgedError: the model does not load. The runner raises DeviceError if the process dies.
    """
    with apart(name) as host:
        yield load_apart(host, backend, file, signature)


@contextmanager
def apart(name: str) -> Iterator[Host]:
    """Yield a process for untested models."""
    host = Host(name, ResourceLimits(memory=available_bytes(), niceness=0))
    try:
        yield host
    finally:
        host.close()


def load_apart(host: Host, backend: Backend, file: Path, signature: str | None = None) -> Runner:
    """Return a runner in the process of `apart`. Raises EdgedError as `loaded_apart` does."""
    return host.load(backend, file, signature=signature, deadline=PROOF_SECONDS, load_seconds=PROOF_SECONDS)


def load_model(bundle: Bundle, backend: Backend, signature: str | None = None) -> Runner:
    """Load a model after `prove_first`, and compare the tensors with the manifest.

    Raises:
        EdgedError: the model does not load, or does not match the manifest.
    """
    with without_chatter():
        runner = shaped(backend, bundle.manifest).load(bundle.model, signature=signature or bundle.manifest.signature)
    try:
        check_tensors(bundle.manifest, runner)
    except BaseException:
        runner.close()
        raise
    return runner
