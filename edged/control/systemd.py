"""Notifications to the service manager: readiness, a status line, and signs of life.

The module uses systemd-python, imported only under a service manager; otherwise every method does nothing. The watchdog
is fed only while every worker makes progress, so that systemd restarts a daemon that is alive but stuck.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

from edged.system.later import asyncio

log = logging.getLogger("edged.control")


class Notifier:
    """Notifier of systemd, if systemd started the daemon."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._notify = _notifier(environ)
        self.watchdog_interval = _watchdog_interval(environ)

    def ready(self) -> None:
        """The daemon serves: after the start, and again after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that the configuration is being read again; `ready` ends this state."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the daemon is stopping."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.splitlines()))

    async def feed_watchdog(self, progress: Callable[[], str]) -> None:
        """Give a sign of life at half the watchdog's interval, for ever, or return without a watchdog.

        `progress` returns "" while every worker makes progress, otherwise the reason.
        """
        if self.watchdog_interval is None:
            return
        stuck = ""
        while True:
            reason = progress()
            if not reason:
                self._send("WATCHDOG=1")
            elif reason != stuck:
                log.error("no sign of life for the watchdog: %s", reason)
            stuck = reason
            await asyncio.sleep(self.watchdog_interval / 2)

    def _send(self, message: str) -> None:
        try:
            self._notify(message)
        except OSError as error:  # systemd may be restarting; if not, the watchdog ends the daemon
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
    """Return the watchdog's interval for this process in seconds, or None."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 or None
