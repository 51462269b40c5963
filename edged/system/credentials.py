"""Files with secrets: at the configured path, or among systemd's credentials."""

from __future__ import annotations

import os
from pathlib import Path


def find(name: str) -> Path:
    """Return the path of a file in the configuration: a relative name is a credential of the service. Raises
    FileNotFoundError.
    """
    path = Path(name)
    if path.is_absolute():
        return path
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder is None:
        raise FileNotFoundError("the name is relative, and the service has no credentials")
    return Path(folder) / path
