"""Errors raised on purpose by `edged`, split by the party at fault.

The message states the fault and the place; the hint tells an operator at the far end of an SSH session what to do next.
Foreign exceptions are wrapped in these classes once, at the border of the part that called foreign code. Lists in
messages are shortened by `some`, counts are written by `quantity`, and `closest` finds the name that a mistyped word
resembles.
"""

from collections.abc import Iterable, Sequence


class EdgedError(Exception):
    """Base of all errors of `edged`. `retryable` is true if an unchanged retry may succeed."""

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
    """The submitted model is bad: damaged, contradictory or hostile."""


class ModelError(EdgedError):
    """The model is sound but does not work here."""


class DeviceError(EdgedError):
    """Hardware is missing, gone or misbehaving."""


class PictureError(DeviceError):
    """A picture of a source cannot be decoded; others can."""


class StoreError(EdgedError):
    """The disk refused."""


class ControlError(EdgedError):
    """The operator's request cannot be met."""


def some(names: Sequence[str], most: int = 10, *, of: int | None = None, by: str = ", ") -> str:
    """Join the first `most` names, followed by the number of the others; `of` is the total if `names` is truncated."""
    count = len(names) if of is None else of
    more = f" and {count - most} more" if count > most else ""
    return by.join(names[:most]) + more


def quantity(number: float, noun: str) -> str:
    """Return a number with its noun: "1 window", "2 windows"."""
    count = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{count} {noun}" if number == 1 else f"{count} {noun}s"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that a mistyped word resembles most, or None."""
    from difflib import get_close_matches  # slow to import, and rarely asked

    return next(iter(get_close_matches(word, list(known), n=1)), None)
