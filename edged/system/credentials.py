"""Files with secrets: at the configured path, or among systemd's credentials."""

from __future__ import annotations

import os
from pathlib import Path

from edged.core.errors import ConfigError

_MAX_SECRET = 4096


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


def read_secret(option: str, name: str) -> str:
    """Return the first line of the file that an option names. Raises ConfigError for an unusable file."""
    try:
        with find(name).open("rb") as file:
            line = file.readline(_MAX_SECRET + 1).rstrip(b"\r\n").decode("ascii")
        if not line.isprintable() or not 1 <= len(line) <= _MAX_SECRET:
            raise OSError(f"the first line is empty, longer than {_MAX_SECRET} bytes or not plain text")
        return line
    except (OSError, UnicodeDecodeError) as error:
        raise unusable(option, name, error) from error


def unusable(option: str, name: str, error: Exception) -> ConfigError:
    """Return the error for a file that an option names and that cannot be used."""
    reason = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
    hint = "name a file that the service may read, or a credential of the service (LoadCredential=)"
    return ConfigError(f"{option} {name!r} cannot be used: {reason}", hint=hint)
