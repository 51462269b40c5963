"""Destination of log messages: the journal with fields under systemd, otherwise standard error.

An error for lack of descriptors, threads or memory is logged as a line with the remedy, at most once a minute: in such
a state every action fails, and tracebacks would fill the disk.

Loggers are named edged.<wing>. The subject of a message is passed as `extra={"pipeline": "door"}`, and becomes a
journal field (`journalctl PIPELINE=door`) or a few words at the end of the line.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from typing import Any

FIELDS = ("pipeline", "model", "source", "step")

SCARCITY_SECONDS = 60.0

_LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up(level: str) -> None:
    """Send messages of `level` ("debug", "info", "warning", "error") and above to the journal or standard error."""
    root = logging.getLogger()
    root.handlers[:] = [_journal() or _terminal()]
    root.handlers[0].addFilter(_Scarcity())
    root.setLevel(level.upper())
    threading.excepthook = _log_end_of_thread


def scarcity(error: BaseException | None) -> str:
    """Return the remedy for an error for lack of descriptors, threads or memory; "" for any other."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            return _REMEDIES[error.errno]
        if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
            return "allow more threads: TasksMax= (systemctl edit edged), ulimit -u, or free memory"
        if isinstance(error, MemoryError):
            return _REMEDIES[errno.ENOMEM]
        error = error.__cause__ or error.__context__
    return ""


_REMEDIES = {
    errno.EMFILE: "allow more open files: LimitNOFILE= (systemctl edit edged), ulimit -n",
    errno.ENFILE: "the whole board has too many files open: raise fs.file-max (sysctl)",
    errno.ENOMEM: "free memory, or allow more: MemoryMax= (systemctl edit edged)",
}


class _Scarcity(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        remedy = scarcity(error)
        if not remedy:
            return True
        now = time.monotonic()
        if now - self._said.get(remedy, -math.inf) < SCARCITY_SECONDS:
            self._left_out[remedy] += 1
            return False
        more = f"; {self._left_out[remedy]} more such errors were left out" if self._left_out[remedy] else ""
        record.msg, record.args = "%s: %s (%s)%s", (record.getMessage().splitlines()[0], error, remedy, more)
        record.exc_info = record.exc_text = None
        self._said[remedy] = now
        self._left_out[remedy] = 0
        return True


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    name = ended.thread.name if ended.thread else "unknown"
    logging.getLogger("edged").error("the thread %s has ended", name, exc_info=ended.exc_value)


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
    """Return a handler for systemd's journal, if standard error is the journal and systemd-python is installed."""
    if not _stderr_is_the_journal():
        return None
    try:
        from systemd.journal import JournalHandler
        from systemd.journal import send as send_to_journal
    except ImportError:
        return None  # the journal keeps plain lines; the warning of the service manager names the missing package

    def send(text: str, /, **details: Any) -> None:
        """Pass on the journal's fields (in capitals) and edged's fields, and no other fields of a record."""
        fields = {name.upper(): value for name, value in details.items() if name in FIELDS or name.isupper()}
        send_to_journal(text, **fields)

    return JournalHandler(sender_function=send, SYSLOG_IDENTIFIER="edged")  # type: ignore[no-any-return]


def _stderr_is_the_journal() -> bool:
    """Return whether standard error is the journal: a shell with a terminal inherits JOURNAL_STREAM, too."""
    stat = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
