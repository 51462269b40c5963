"""What the service manager is told: readiness, a status line, and signs of life.

It speaks through systemd-python, imported only where a service manager listens. Without one every method does nothing.
The watchdog is fed only while every worker makes progress, so that systemd restarts a daemon that is alive but stuck.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping

log = logging.getLogger("edged.control")


class Notifier:
    """Tells systemd how the daemon is, if systemd started it."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._notify = _notifier(environ)
        self.watchdog_interval = _watchdog_interval(environ)

    def ready(self) -> None:
        """The daemon serves: after the start, and again after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The daemon reads its configuration again; `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon is on its way out."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell("STATUS=" + " ".join(text.splitlines()))

    async def feed_watchdog(self, progress: Callable[[], str]) -> None:
        """Give a sign of life at half the watchdog's interval, for ever, or return if there is no watchdog.

        `progress` returns "" while every worker makes progress, else why not.
        """
        if self.watchdog_interval is None:
            return
        stuck = ""
        while True:
            reason = progress()
            if not reason:
                self._tell("WATCHDOG=1")
            elif reason != stuck:
                log.error("no sign of life for the watchdog: %s", reason)
            stuck = reason
            await asyncio.sleep(self.watchdog_interval / 2)

    def _tell(self, message: str) -> None:
        try:
            self._notify(message)
        except OSError as error:  # it may be restarting itself; if it stays away, the watchdog is its affair
            log.warning("systemd does not listen: %s", error)


def _notifier(environ: Mapping[str, str]) -> Callable[[str], object]:
    if not environ.get("NOTIFY_SOCKET"):
        return lambda _message: None
    try:
        from systemd.daemon import notify
    except ImportError:
        log.warning(
            "systemd waits to hear from the daemon, but systemd-python is not installed:"
            " install python3-systemd, or `pip install edged[systemd]` into this environment;"
            " until then the unit needs Type=exec and no WatchdogSec"
        )
        return lambda _message: None
    return notify  # type: ignore[no-any-return]


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds within which systemd wants a sign of life from this process; None if it does not."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 or None
