"""Ways to run a model, and the order in which to try them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Way(NamedTuple):
    """A delegate and the variant that runs there; "" stands for the model's own file."""

    delegate: str
    variant: str


class Choice(NamedTuple):
    """Accelerated ways to try, best first, number of threads for the CPU, and the reason."""

    order: tuple[Way, ...]
    threads: int
    why: str


def as_in_manifest(ways: Sequence[Way], reason: str = "not measured here by edgectl tune") -> Choice:
    """Return the manifest's order, and one thread, for want of a measurement."""
    return Choice(tuple(ways), 1, f"as in the manifest: {reason}")
