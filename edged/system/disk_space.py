"""Shortages of a full disk: the system reports bytes and inodes by the same error."""

from __future__ import annotations

import os
from pathlib import Path

NO_INODES = "delete files, however small: this disk has no inodes left (df -i)"


def room_hint(path: Path, hint: str) -> str:
    """Return the remedy for a full disk with the given path, existing or not: `hint` if bytes are short."""
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        found = os.statvfs(there)
    except OSError:
        return hint
    return NO_INODES if found.f_files and not found.f_favail else hint  # not all file systems count inodes
