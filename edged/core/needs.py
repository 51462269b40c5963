"""Whether a device has what a model's manifest says it needs."""

from __future__ import annotations

import re
from collections.abc import Collection

from edged.core.errors import ModelError
from edged.core.manifest import Manifest, Versions, version_key


def require(manifest: Manifest, runtime: str, delegates: Collection[str], free_bytes: int) -> None:
    """Hold what a model needs against what is there, before anything of it is loaded.

    `runtime` is as RunnerInfo has it ("ai-edge-litert 2.3.0"); `delegates` are those it could run on, of which "cpu" is
    one; `free_bytes` is the memory that can be had.

    Raises:
        ModelError: it lacks something; `retryable` if that is memory.
    """
    needs, model = manifest.needs, f"{manifest.name} {manifest.version}"
    package, _, version = runtime.partition(" ")
    if needs.runtimes and not (package in needs.runtimes and _within(needs.runtimes[package], version)):
        wanted = " or ".join(_words(name, versions) for name, versions in needs.runtimes.items())
        raise ModelError(f"{model} needs {wanted}, and this is {runtime}", hint=f"install {wanted}")
    if needs.delegates and not {*needs.delegates} & {*delegates}:
        wanted, there = " or ".join(needs.delegates), " or ".join(sorted(delegates))
        raise ModelError(f"{model} runs on {wanted}, and here it could run on {there}", hint="edgectl devices")
    if needs.memory_bytes is not None and free_bytes < needs.memory_bytes:
        raise ModelError(
            f"{model} needs {needs.memory_bytes} bytes of memory, and {free_bytes} are free",
            hint="stop something else that runs here, or make the model smaller",
            retryable=True,
        )


def _within(versions: Versions, version: str) -> bool:
    numbers = re.match(r"\d{1,9}(\.\d{1,9}){0,3}", version)
    if numbers is None:  # a runtime that states none can only be taken where any will do
        return versions == Versions()
    here = version_key(numbers[0])
    return not (
        (versions.at_least and here < version_key(versions.at_least))
        or (versions.below and here >= version_key(versions.below))
    )


def _words(name: str, versions: Versions) -> str:
    bounds = [versions.at_least and f"{versions.at_least} or above", versions.below and f"below {versions.below}"]
    return " ".join(filter(None, [name, " and ".join(filter(None, bounds))]))
