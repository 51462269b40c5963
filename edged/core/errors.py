"""Every error `edged` raises on purpose, split by whose fault it is.

The message says what is wrong and where; the hint says what to do next to somebody at the far end of an SSH
session. Foreign exceptions are wrapped in one of these once, at the border of the wing that met them. Lists in messages
are cut with a count: `some`.
"""

from collections.abc import Sequence


class EdgedError(Exception):
    """What every error of ours is. `retryable` means that trying again unchanged may succeed."""

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(EdgedError):
    """The configuration is wrong."""


class BundleError(EdgedError):
    """What we were given as a model is bad: damaged, contradictory or hostile."""


class ModelError(EdgedError):
    """The model is sound but does not work here."""


class DeviceError(EdgedError):
    """Hardware is missing, gone or misbehaving."""


class StoreError(EdgedError):
    """The disk refused."""


class ControlError(EdgedError):
    """The operator asked for something that cannot be done."""


def some(names: Sequence[str], most: int = 10, *, of: int | None = None, by: str = ", ") -> str:
    """The first few names, and how many more there are; what is given may be the first ones `of` so many."""
    count = len(names) if of is None else of
    more = f" and {count - most} more" if count > most else ""
    return by.join(names[:most]) + more
