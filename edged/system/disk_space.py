"""What a full disk is short of: the system says the same of bytes and of inodes."""

from __future__ import annotations

import os
from pathlib import Path

NO_INODES = "delete files, however small: this disk has no inodes left (df -i)"


def room_hint(path: Path, hint: str) -> str:
    """What to do where there is no room on the disk of a path, which need not be there: `hint` if bytes are missing."""
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        found = os.statvfs(there)
    except OSError:
        return hint
    return NO_INODES if found.f_files and not found.f_favail else hint  # not all file systems count inodes
