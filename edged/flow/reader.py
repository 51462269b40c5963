"""Reader: a thread that keeps a source open and passes its chunks to the pipelines, which may serve windows on it.

Read `_run`, then `_serve`. A source is opened, read until a failure, closed, and opened again after a growing pause,
for ever; only the end of a recording and `stop` end the thread. Faults of a plug-in stay within the source: an
exception is a state with a reason, and a feed that raises loses only the chunk.

Statistics are plain attributes, written by this thread alone and read by any thread.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Protocol

from edged.api import Chunk, DeviceError, EdgedError, Obstacle, Source, SourceConfig
from edged.core.errors import PictureError
from edged.core.health import Status
from edged.core.pictures import PictureForm
from edged.core.source_health import (
    DROPPED,
    STALLED,
    UNREADABLE,
    UNREADABLE_IN_A_ROW,
    Backoff,
    FlatLine,
    HealthVerdict,
    SourceHealth,
    Supervision,
    failure,
)
from edged.core.types import MAX_SHOWN

if TYPE_CHECKING:  # a source with one pipeline needs none
    from edged.flow.shared_worker import SharedWorker

log = logging.getLogger("edged.flow")

READ_TIMEOUT = 1.0
"""Seconds of a read without input, and the longest time until a silent source notices `stop`."""

JUDGE_EVERY = 0.25

HUNG_SECONDS = 15.0
"""Seconds in a call after which a source counts as hung."""


class ChunkConsumer(Protocol):
    """Consumer of a source's chunks: a pipeline."""

    name: str
    form: PictureForm | None

    def push(self, chunk: Chunk) -> None:
        """Take a chunk, whose samples are valid during the call only."""


class Reader:
    """Thread that keeps a source open and feeds pipelines.

    `feeds` may be replaced whole at any time, and `shared` set once, the worker of several feeds. `samples` and `lost`
    count since the start, `reconnects` counts openings after the first, `faults` counts discarded input by reason, and
    `refused` shows the latest discarded input, of the time `refused_at`.
    `measured_rate` is the recent rate in samples per second, `last_sample` the arrival of the last sample, and
    `next_try` the time of the next attempt to open (CLOCK_MONOTONIC seconds); None if not applicable.

    Raises:
        ConfigError: the options of the source contradict each other.
    """

    def __init__(
        self,
        name: str,
        config: SourceConfig,
        feeds: tuple[ChunkConsumer, ...],
        status: Status,
        clock: Callable[[], float],
        supervision: Supervision,
    ) -> None:
        self.name = name
        self.info = config.describe()
        self.feeds = feeds
        self.shared: SharedWorker | None = None
        self.status = status
        self.samples = 0
        self.lost = 0
        self.reconnects = 0
        self.faults: dict[str, int] = {}
        self.refused = ""
        self.refused_at: float | None = None
        self.feed_errors = 0
        self.measured_rate: float | None = None
        self.last_sample: float | None = None
        self.next_try: float | None = None
        self._asked: float | None = None
        self._fed: tuple[float, ChunkConsumer] | None = None
        self._obstacle: Obstacle | None = None
        self._unreadable = 0
        self._unreadable_in_a_row = 0
        self._unreadable_why: Obstacle | None = None
        self._config = config
        self._clock = clock
        self._supervision = supervision
        self._stopping = Event()
        self._delivering = Lock()
        self._held_until: Event | None = None
        self._complaints: set[str] = set()
        self._thread = Thread(target=self._work, name=f"source-{name}", daemon=True)

    @property
    def is_started(self) -> bool:
        """Return whether reading has begun at some time."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more: at once while waiting to open again, else when the read in hand returns."""
        self._stopping.set()
        self.go_on()

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread, and return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def check_hung(self) -> None:
        """Mark the source failed if a call into it, or a model on the reader's thread, has blocked for HUNG_SECONDS.
        Called from another thread, since the reader itself is blocked.
        """
        asked = self._asked
        if not self._thread.is_alive():
            return
        if asked is not None and self._clock() - asked > HUNG_SECONDS:
            self.status.set(
                "failed", "the source does not answer", "see dmesg; plug the sensor in again, or restart edged"
            )
        elif held := self._held_up(HUNG_SECONDS):
            self.status.set(
                "failed",
                f"pipeline {held[0]!r} holds up the source: its model or a sink does not answer",
                "restart edged; if the model hangs again, go back a version or set isolate = true for it",
            )

    def stuck(self, limit: float) -> str:
        """Return the pipeline that has held up the source for more than `limit` seconds, for the watchdog; "" for none.

        The pipeline may have been removed meanwhile, or have got another flow: its model still holds this thread.
        """
        held = self._held_up(limit)
        return f"pipeline {held[0]} has held up source {self.name} for {held[1]:.0f} s" if held else ""

    def _held_up(self, limit: float) -> tuple[str, float] | None:
        """Return the pipeline that has held up the source for more than `limit` seconds, and for how long."""
        fed = self._fed
        if fed is None or self.info.patient or (seconds := self._clock() - fed[0]) <= limit:
            return None
        return fed[1].name, seconds

    def between_chunks(self, change: Callable[[], None], timeout: float) -> None:
        """Call `change` while no chunk is being passed to a pipeline, or after `timeout` seconds in any case."""
        idle = self._delivering.acquire(timeout=timeout)
        try:
            change()
        finally:
            if idle:
                self._delivering.release()

    def hold(self, timeout: float) -> None:
        """Pass no further chunk to the pipelines until `go_on`. For patient sources: others would lose samples."""

        def hold() -> None:
            self._held_until = self._held_until or Event()

        self.between_chunks(hold, timeout)

    def go_on(self) -> None:
        """End `hold`: pass the chunk in hand, and later chunks, to the present feeds."""
        held_until, self._held_until = self._held_until, None
        if held_until is not None:
            held_until.set()

    def _work(self) -> None:
        self._run()
        if self.shared is not None:
            self.shared.stop()

    def _run(self) -> None:
        backoff = Backoff(self._supervision)
        openings = 0
        while not self._stopping.is_set():
            opened = None
            try:
                self._asked = self._clock()
                source = self._config.open()
                opened = self._clock()
                log.info("source %s is open", self.name, extra={"source": self.name})
                self.reconnects = openings
                openings += 1
                self._serve(source)
            except EOFError:
                self.status.set("stopped", "the recording has ended")
                return
            except Exception as error:  # a plug-in may raise any exception
                self._asked = None
                self._fail(error)
                self._pause(backoff.delay(0.0 if opened is None else self._clock() - opened, random.random()))
        self.status.set("stopped")

    def _serve(self, source: Source) -> None:
        expected = None if self.info.patient else self.info.pace or self.info.rate
        health = SourceHealth(
            self._supervision,
            expected,
            self._clock(),
            eventful=self.info.eventful,
            pictures=self.info.pictures,
        )
        flat_line = FlatLine()
        before = Counter(self.faults)
        self._unreadable = 0
        reopened = self.samples > 0
        silent = True
        judge_at = 0.0
        try:
            while not self._stopping.is_set():
                self._asked = asked = self._clock()
                chunk = source.read(READ_TIMEOUT)
                self._asked, now = None, self._clock()
                if chunk is not None:
                    self._check(chunk)
                    chunk = chunk if self._is_readable(chunk) else None
                faults = sum(source.faults.values()) - source.faults.get(DROPPED, 0) + self._unreadable
                if chunk is None:
                    now = min(now, asked + READ_TIMEOUT)  # later input is unread, since the process was held up
                    health.observe(0, 0, faults, False, now)
                else:
                    flat = flat_line.same(chunk.samples)
                    health.observe(len(chunk.samples), chunk.lost, faults, flat, now, chunk.time)
                    if failure(self.name, self.status.health):  # pipelines wait for the recovery
                        self._judge(health, source, now)
                    if silent:
                        silent = False
                        judge_at = now
                        if reopened:
                            chunk = chunk._replace(lost=max(chunk.lost, 1))
                    self._deliver(chunk, now)
                if now >= judge_at:
                    judge_at = now + JUDGE_EVERY
                    self._count(before, source)
                    self._judge(health, source, now)
                    if self.shared is not None:
                        self.shared.relieve()
        finally:
            self._count(before, source)
            self.measured_rate = None
            source.close()

    def _check(self, chunk: Chunk) -> None:
        count, shape = len(chunk.samples), chunk.samples.shape[1:]
        expected = (chunk.samples.size,) if self.info.pictures else self.info.shape
        if not count or shape != expected or self.info.pictures != (chunk.picture is not None):
            raise DeviceError(
                f"the source delivered {count} samples of shape {shape} instead of {expected}",
                hint="the plug-in is broken: report this to the author",
            )

    def _is_readable(self, chunk: Chunk) -> bool:
        """Fit a picture for the feeds, and return False if it cannot be decoded. Chunks of samples are readable."""
        if chunk.picture is None:
            return True
        try:
            for feed in self.feeds:
                if feed.form is not None:
                    chunk.picture.fitted(feed.form)
        except PictureError as error:
            self._unreadable += 1
            self._unreadable_in_a_row += 1
            self._unreadable_why = self._unreadable_why or Obstacle(error.message, error.hint)
            self.refused = error.message[:MAX_SHOWN]
            return False
        self._unreadable_in_a_row = 0
        self._unreadable_why = None
        return True

    def _deliver(self, chunk: Chunk, now: float) -> None:
        self.samples += len(chunk.samples)
        self.lost += chunk.lost
        self.last_sample = chunk.time
        with self._delivering:
            while (held_until := self._held_until) is not None:
                self._delivering.release()
                held_until.wait()
                self._delivering.acquire()
            for feed in self.feeds:
                self._fed = now, feed
                try:
                    feed.push(chunk)
                except Exception as error:  # the other feeds must not notice
                    self.feed_errors += 1
                    self._complain("feeding a pipeline", error)
            self._fed = None

    def _count(self, before: Counter[str], source: Source) -> None:
        faults = dict(before + Counter(source.faults) + Counter({UNREADABLE: self._unreadable}))
        refused = str(getattr(source, "refused", ""))[:MAX_SHOWN] or self.refused
        if (faults, refused) != (self.faults, self.refused):
            self.faults, self.refused, self.refused_at = faults, refused, self._clock()

    def _judge(self, health: SourceHealth, source: Source, now: float) -> None:
        self.measured_rate = health.measured_rate
        verdict = health.verdict(now)
        obstacle = getattr(source, "obstacle", None) if health.silent(now) else None
        if self._unreadable_in_a_row >= UNREADABLE_IN_A_ROW:
            obstacle = self._unreadable_why
        self._obstacle = obstacle and (self._obstacle or obstacle)  # the first, since its number would change
        if self._obstacle:
            verdict = HealthVerdict("degraded", f"{STALLED}: {self._obstacle.reason}", self._obstacle.hint)
        if verdict.state != "starting":  # until then a failed source stays failed
            self.status.set(*verdict)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, EdgedError):
            self.status.set("failed", error.message, error.hint)
            return
        self._complain("reading", error)
        self.status.set(
            "failed", f"{type(error).__name__}: {error}", "the plug-in is broken: report the traceback in the log"
        )

    def _complain(self, doing: str, error: Exception) -> None:
        """Log a bug with its traceback, once for each kind."""
        kind = f"{doing}: {type(error).__name__}"
        if kind not in self._complaints:
            self._complaints.add(kind)
            log.error("source %s, %s: %s", self.name, kind, error, exc_info=error, extra={"source": self.name})

    def _pause(self, delay: float) -> None:
        self.next_try = self._clock() + delay
        self._stopping.wait(delay)
        self.next_try = None
