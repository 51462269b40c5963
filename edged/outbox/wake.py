"""The end of another thread's wait."""

from __future__ import annotations

import os
import select


class Wake:
    """Ends another thread's `wait`: an eventfd, to be polled together with a socket.

    `nudge` announces new work, and costs nothing while the other thread is busy or has no use for more: the other
    thread must arm before looking for work. `set` always ends the wait.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._armed = False

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._fd

    def set(self) -> None:
        """End the wait, or the next wait."""
        os.eventfd_write(self._fd, 1)

    def arm(self) -> None:
        """Let the next nudge end the wait."""
        self._armed = True

    def disarm(self) -> None:
        """Ignore nudges."""
        self._armed = False

    def nudge(self) -> None:
        """End the wait, or the next wait, of an armed thread."""
        if self._armed:
            self._armed = False
            self.set()

    def wait(self, timeout: float, other: int | None = None) -> bool:
        """Wait at most `timeout` seconds for `set` or for `other` to be readable; return True for `other`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        ready = dict(poll.poll(timeout * 1000))
        if self._fd in ready:
            self.clear()
        return other in ready

    def clear(self) -> None:
        """Reset after the wait has ended."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass

    def __del__(self) -> None:
        os.close(self._fd)
