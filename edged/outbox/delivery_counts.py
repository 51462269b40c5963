"""Counts and rates of deliveries."""

from __future__ import annotations

import msgspec


class DeliveryCounts(msgspec.Struct):
    """Counts across connections.

    `last_sent` is the time of the last acknowledgement, None before the first. `rate` is the number of messages
    acknowledged per second, `shrinking` the decrease of the spool per second. `suspect` is the message in flight during
    the last `strikes` connections closed by the broker.
    """

    sent: int = 0
    last_sent: float | None = None
    replayed: int = 0
    refused: int = 0
    rate: float = 0.0
    shrinking: float = 0.0
    suspect: int = 0
    strikes: int = 0
