"""Where log messages go: the journal with fields under systemd, standard error elsewhere.

Loggers are named edged.<wing>. What a message is about travels beside it, `extra={"pipeline": "door"}`, and becomes a
journal field (`journalctl PIPELINE=door`) or a few words at the end of the line.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

FIELDS = ("pipeline", "model", "source", "step")

_LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up(level: str) -> None:
    """Send messages of `level` ("debug", "info", "warning", "error") and above to the journal or standard error."""
    root = logging.getLogger()
    root.handlers[:] = [_journal() or _terminal()]
    root.setLevel(level.upper())


def _terminal() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithFields(_LINE))
    return handler


class _WithFields(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name is logging's
        line = super().formatMessage(record)
        fields = ", ".join(f"{field} {record.__dict__[field]}" for field in FIELDS if field in record.__dict__)
        return f"{line} [{fields}]" if fields else line


def _journal() -> logging.Handler | None:
    """A handler for systemd's journal, if that is where standard error goes and systemd-python is installed."""
    if not _stderr_is_the_journal():
        return None
    try:
        from systemd.journal import JournalHandler
        from systemd.journal import send as send_to_journal
    except ImportError:
        return None  # the journal keeps the plain lines; the service manager's warning says what to install

    def send(text: str, /, **details: Any) -> None:
        """Pass on the journal's fields (in capitals) and ours, and nothing else of what a record holds."""
        fields = {name.upper(): value for name, value in details.items() if name in FIELDS or name.isupper()}
        send_to_journal(text, **fields)

    return JournalHandler(sender_function=send, SYSLOG_IDENTIFIER="edged")  # type: ignore[no-any-return]


def _stderr_is_the_journal() -> bool:
    """Only then: JOURNAL_STREAM is inherited, too, by a shell whose standard error is a terminal."""
    stat = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
