"""Garbage collection of a program that runs for years: the objects of the start are not examined again and again."""

from __future__ import annotations

import ctypes
import gc


def freeze() -> None:
    """Collect all garbage, and exempt the objects that remain from later collections, until the next call.

    The kernel gets back the memory that is free now, as far as the C library can give it.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)
