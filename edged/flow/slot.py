"""Slot of the model in service, and the change of versions without loss of a window.

Any thread may `offer` a loaded model; the worker takes the model between two windows, and closes the previous one. Two
versions overlap in this way. `release` is the first half of a handover, for a device that cannot hold two: the worker
closes its model and waits, with a window in hand and others in the mailbox, for the offer, which is the second half.

Taking and closing a model, and using the runner of `settled`, require the pipeline's turn.
"""

import logging
from collections import Counter
from queue import SimpleQueue
from threading import Event
from typing import NamedTuple

from edged.api import Classification, Outcome, Runner
from edged.core.manifest import Manifest
from edged.core.metrics import LatencyHistogram
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.probation import AnsweredTime
from edged.core.types import has_changed

log = logging.getLogger("edged.flow")


class RunCounts:
    """Counts of a version since the start of service in a pipeline. One thread at a time writes, any thread reads.

    `constant` is the latest number of consecutive identical outputs; `decisions` counts new decisions, and `labels`
    windows by best label. `time` is the answered time.
    """

    def __init__(self, time: AnsweredTime | None = None) -> None:
        self.windows = 0
        self.errors = 0
        self.decisions = 0
        self.constant = 0
        self.labels: Counter[str] = Counter()
        self.latency = LatencyHistogram()
        self.time = time or AnsweredTime()
        self._last: object = None

    def add(self, outcome: Outcome, seconds: float, now: float) -> None:
        """Count a window with this outcome at `now`, and the time in the model."""
        if isinstance(outcome, Classification):
            self.labels[outcome.label] += 1
        if has_changed(outcome):
            self.decisions += 1
        said = outcome.said
        self.windows += 1
        self.constant = self.constant + 1 if said == self._last else 1
        self._last = said
        self.latency.add(seconds)
        self.time.add(now)


class Served(NamedTuple):
    """A loaded model with the rules around it, made from one manifest and swapped as a whole.

    An `isolated` runner waits for another process.
    """

    manifest: Manifest
    runner: Runner
    preprocess: Preprocessor
    postprocess: Postprocessor
    counts: RunCounts
    isolated: bool = False


class Slot:
    """Holder of the model in service. The worker changes `current`; other threads may read it for reports."""

    def __init__(self) -> None:
        self.current: Served | None = None
        self._offers: SimpleQueue[Served | Event | None] = SimpleQueue()
        self._over = False

    @property
    def settled(self) -> Served | None:
        """Return the model in service, or None without a model or before a change by the worker."""
        return self.current if self._offers.empty() else None

    def offer(self, served: Served) -> None:
        """Make the worker take over this model before the next window."""
        self._offers.put(served)

    def release(self) -> Event:
        """Make the worker close its model before the next window and wait for an offer; return an event, set after the
        close.
        """
        gone = Event()
        self._offers.put(gone)
        return gone

    def end(self) -> None:
        """Announce that no offer will come, so that the worker need not wait."""
        self._offers.put(None)

    def take(self) -> Served | None:
        """Return the model to serve with from now on, or None if none will come. Called on the worker's thread."""
        while not self._offers.empty() or (self.current is None and not self._over):
            match self._offers.get():
                case None:
                    self._over = True
                case Event() as gone:
                    self.close()
                    gone.set()
                case Served() as served:
                    self.close()
                    self.current = served
        return self.current

    def close(self) -> None:
        """Close the model in service. Called on the worker's thread."""
        served, self.current = self.current, None
        if served is not None:
            try:
                served.runner.close()
            except Exception:  # an error of a plug-in must not cost the next version
                log.exception("closing %s %s failed", served.manifest.name, served.manifest.version)
