"""Where the files are that prove who we are: at the path that is configured, or among systemd's credentials."""

from __future__ import annotations

import os
from pathlib import Path


def find(name: str) -> Path:
    """A file of the configuration: a relative name is one of the service's credentials. Raises FileNotFoundError."""
    path = Path(name)
    if path.is_absolute():
        return path
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder is None:
        raise FileNotFoundError("it is a relative name, and the service was given no credentials")
    return Path(folder) / path
