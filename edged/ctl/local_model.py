"""What the verbs that run a model themselves share: to find, to prove and to load it as the daemon does."""

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
from edged.models import bare_file as bare
from edged.models.bundle import Bundle
from edged.models.proofs import FILE, Proofs
from edged.models.selftest import check_tensors, shaped
from edged.models.store import FACTORY, Store, open_path
from edged.models.trial import PROOF_SECONDS, available_bytes, prove_apart
from edged.system.child import ResourceLimits

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


def prove_first(bundle: Bundle, backend: Backend, args: argparse.Namespace, signature: str | None = None) -> None:
    """Have a child process load, run and close a model before this one does; not again if the daemon has had that done.

    Raises:
        EdgedError: the model does not work, or kills or hangs the process that runs it.
    """
    if not Proofs(Path(args.state_dir) / FILE).holds(bundle, backend, signature):
        asyncio.run(prove_apart(bundle, backend, signature=signature))


@contextmanager
def loaded_apart(name: str, backend: Backend, file: Path, signature: str | None = None) -> Iterator[Runner]:
    """A model in a process of its own, for a file that nothing is known of yet; `name` is what errors call it.

    Raises:
        EdgedError: the model does not load; its runner raises DeviceError if the process dies of it.
    """
    with apart(name) as host:
        yield load_apart(host, backend, file, signature)


@contextmanager
def apart(name: str) -> Iterator[Host]:
    """A process that models are loaded in of which nothing is known yet."""
    host = Host(name, ResourceLimits(memory=available_bytes(), niceness=0))
    try:
        yield host
    finally:
        host.close()


def load_apart(host: Host, backend: Backend, file: Path, signature: str | None = None) -> Runner:
    """A model in such a process. Raises EdgedError as `loaded_apart` does."""
    return host.load(backend, file, signature=signature, deadline=PROOF_SECONDS, load_seconds=PROOF_SECONDS)


def load_model(bundle: Bundle, backend: Backend, signature: str | None = None) -> Runner:
    """The model loaded, for whoever did `prove_first`, and its tensors held against its manifest.

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
