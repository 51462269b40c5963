"""Check of a device against the requirements in a model's manifest."""

from __future__ import annotations

import re
from collections.abc import Collection

from edged.core.errors import ModelError
from edged.core.manifest import Manifest, Versions, version_key


def require(manifest: Manifest, runtime: str, delegates: Collection[str], free_bytes: int) -> None:
    """Raise an error if the device does not meet the requirements of a model. Called before the model is loaded.

    `runtime` has the form of RunnerInfo.runtime ("ai-edge-litert 2.3.0"). `delegates` are the delegates that can run
    the model, "cpu" included. `free_bytes` is the available memory.

    Raises:
        ModelError: a requirement is not met; `retryable` if memory is short.
    """
    needs, model = manifest.needs, f"{manifest.name} {manifest.version}"
    package, _, version = runtime.partition(" ")
    if needs.runtimes and not (package in needs.runtimes and _within(needs.runtimes[package], version)):
        wanted = " or ".join(_words(name, versions) for name, versions in needs.runtimes.items())
        raise ModelError(f"{model} needs {wanted}; this device has {runtime}", hint=f"install {wanted}")
    if needs.delegates and not {*needs.delegates} & {*delegates}:
        wanted, there = " or ".join(needs.delegates), " or ".join(sorted(delegates))
        raise ModelError(
            f"{model} runs on {wanted}; this device can run it on {there}", hint="compare with `edgectl devices`"
        )
    if needs.memory_bytes is not None and free_bytes < needs.memory_bytes:
        raise ModelError(
            f"{model} needs {needs.memory_bytes} bytes of memory; {free_bytes} are free",
            hint="stop other programs on this board, or make the model smaller",
            retryable=True,
        )


def _within(versions: Versions, version: str) -> bool:
    numbers = re.match(r"\d{1,9}(\.\d{1,9}){0,3}", version)
    if numbers is None:  # a runtime without a version satisfies an unbounded range only
        return versions == Versions()
    here = version_key(numbers[0])
    return not (
        (versions.at_least and here < version_key(versions.at_least))
        or (versions.below and here >= version_key(versions.below))
    )


def _words(name: str, versions: Versions) -> str:
    bounds = [versions.at_least and f"{versions.at_least} or above", versions.below and f"below {versions.below}"]
    return " ".join(filter(None, [name, " and ".join(filter(None, bounds))]))
