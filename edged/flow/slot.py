"""The slot a model serves from, and how one version takes over from another without a window lost.

Anybody may `offer` a loaded model; the worker takes it between two windows, and closes the one before, so a runner is
only ever touched by the thread that runs it. That is how two versions overlap. `let_go` is the first half of the
handover, where two do not fit: the worker closes what it has and waits, with the window in its hands and others in the
mailbox behind it, for the offer that is the second half.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event
from typing import NamedTuple

from edged.api import Anomaly, Classification, Outcome, Regression, Runner
from edged.core.manifest import Manifest
from edged.core.metrics import LatencyHistogram
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.probation import AnsweredTime

log = logging.getLogger("edged.flow")


@dataclass
class RunCounts:
    """What one version did since it began to serve in one pipeline. The worker writes, anybody reads.

    `constant` is how many times in a row it has said the very same by now; `decisions` counts those that were let
    through anew, and `labels` how often each label was the best. `time` is that in which it answered.
    """

    windows: int = 0
    errors: int = 0
    decisions: int = 0
    constant: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    time: AnsweredTime = field(default_factory=AnsweredTime)
    _last: object = None

    def add(self, outcome: Outcome, seconds: float, now: float) -> None:
        """Count a window that became an outcome `now`, and how long the model took."""
        match outcome:
            case Classification(label=label, score=score):
                said: object = (label, score)
                self.labels[label] += 1
            case Anomaly(score=score):
                said = score
            case Regression(values=values):
                said = values
        self.windows += 1
        self.constant = self.constant + 1 if said == self._last else 1
        self._last = said
        self.decisions += isinstance(outcome, Classification | Anomaly) and outcome.changed
        self.latency.add(seconds)
        self.time.add(now)


class Served(NamedTuple):
    """A loaded model with the rules around it, made together from one manifest and swapped together."""

    manifest: Manifest
    runner: Runner
    preprocess: Preprocessor
    postprocess: Postprocessor
    counts: RunCounts


class Slot:
    """Holds what serves. `current` belongs to the worker; others may read it to report."""

    def __init__(self) -> None:
        self.current: Served | None = None
        self._offers: SimpleQueue[Served | Event | None] = SimpleQueue()
        self._over = False

    def offer(self, served: Served) -> None:
        """Have the worker take this over before its next window."""
        self._offers.put(served)

    def let_go(self) -> Event:
        """Have the worker close what serves before its next window, and wait for an offer; set once it is closed."""
        gone = Event()
        self._offers.put(gone)
        return gone

    def end(self) -> None:
        """No offer will come any more: the worker need not wait for one."""
        self._offers.put(None)

    def take(self) -> Served | None:
        """On the worker's thread: what serves from now on; None if nothing does, and nothing will."""
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
        """On the worker's thread: let go of what serves."""
        served, self.current = self.current, None
        if served is not None:
            try:
                served.runner.close()
            except Exception:  # a stranger's; the next version must not be lost for it
                log.exception("closing %s %s failed", served.manifest.name, served.manifest.version)
