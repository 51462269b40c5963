"""`edged --check`: test the configuration and every model in it, without serving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from edged.config import check as config_check
from edged.config.check import find_bundle
from edged.config.load import ConfigErrors
from edged.config.options import Config
from edged.core.errors import quantity
from edged.core.tables import Problem
from edged.models.selftest import Proof
from edged.models.store import MissingModelError, Store
from edged.models.trial import prove_apart


def check(files: Sequence[Path], store: Store, report: Callable[[str], None]) -> None:
    """Load the configuration and every plug-in, and prove every model in a child process.

    Raises:
        EdgedError: a model fails, the first to do so; or the configuration has problems, all of them in one error.
    """
    config, doubts = checked(files, store)
    for doubt in doubts:
        report(f"warning: {doubt}")
    pipelines, sources = quantity(len(config.pipelines), "pipeline"), quantity(len(config.sources), "source")
    report(f"the configuration is valid: {pipelines}, {sources}")
    for name, entry in config.models.items():
        try:
            bundle = find_bundle(name, entry, store)
        except MissingModelError as error:
            report(f"model {name}: {error.message}; install a version later")
            continue
        verdict = asyncio.run(prove_apart(bundle, entry.options))
        assert verdict.runner is not None  # every good verdict has a runner
        proof = Proof(verdict.samples, verdict.worst).words(bundle.manifest)
        report(f"model {name} {bundle.manifest.version} on {verdict.runner.runtime}: {proof}")


def checked(files: Sequence[Path], store: Store) -> tuple[Config, tuple[Problem, ...]]:
    """Return the configuration, checked with its models, and warnings. Raises ConfigErrors."""
    found = config_check.check(files, store)
    if found.config is None:
        raise ConfigErrors(found.problems)
    return found.config, found.warnings
