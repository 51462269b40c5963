"""Lists for people to read, which have an end however long they are."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 10) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
