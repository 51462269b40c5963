"""Garbage collection of a program that runs for years: the objects of the start are not examined again and again."""

from __future__ import annotations

import gc


def freeze() -> None:
    """Collect all garbage, and exempt the objects that remain from later collections, until the next call."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
