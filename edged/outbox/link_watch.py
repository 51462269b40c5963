"""Detection of a connection that no longer works, though both sides keep it open."""

from __future__ import annotations

from collections.abc import Callable

from edged.outbox import faults
from edged.outbox.link import Link
from edged.outbox.network import PROBE_SECONDS, reachable
from edged.outbox.options import MqttOptions

DOUBT_SECONDS = 1.5
"""Time without an acknowledgement after which a connected broker is probed too."""


class LinkWatch:
    """Probes the peer of a link, at most every PROBE_SECONDS."""

    def __init__(self, options: MqttOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._next = 0.0
        self._out_of_reach = False

    def check(self, link: Link, unanswered: float) -> None:
        """Raise LinkError if the peer was out of reach and is back.

        A connection may survive an interruption, but resumes late: the kernel's pauses between repetitions grow and
        grow. `unanswered` is the time in seconds for which an acknowledgement has been owed.
        """
        now = self._clock()
        if now < self._next:
            return
        self._next = now + PROBE_SECONDS
        if unanswered < DOUBT_SECONDS:
            self._out_of_reach = False
        elif not reachable(link.peer, PROBE_SECONDS):
            self._out_of_reach = True
        elif self._out_of_reach:
            self._out_of_reach = False
            raise faults.interrupted(self._options)
