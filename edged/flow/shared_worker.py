"""Shared worker: a thread for the brisk pipelines of a source, so that a chunk wakes a single thread.

The thread serves pipeline after pipeline, on warm code and without waiting for the interpreter's lock in between.
Isolation stays, since each pipeline keeps a mailbox and a worker: while a model holds up the shared worker, the reader
calls the worker of every other pipeline instead.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

ROUND_SECONDS = 0.02
"""Time in which services may begin in a round; the workers serve the rest, on several cores."""

HELD_UP_SECONDS = 0.05
"""Duration of a round after which the shared worker counts as held up."""


class Servable(Protocol):
    """Pipeline with windows in its mailbox."""

    def serve_waiting(self, until: float) -> None:
        """Serve waiting windows on the calling thread, and begin none after `until`; have a worker serve the rest."""


class SharedWorker:
    """Thread that serves pipelines in rounds. Any other method is for the reader's thread."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: SimpleQueue[Servable | None] = SimpleQueue()
        self._called: set[Servable] = set()
        self._since: float | None = None
        self._thread = Thread(target=self._work, name=f"shared-{name}", daemon=True)

    def call(self, pipeline: Servable) -> bool:
        """Have the waiting windows of a pipeline served in this round or the next; return False if held up."""
        if self._is_held_up():
            return False
        if self._thread.ident is None:
            self._thread.start()
        if pipeline not in self._called:
            self._called.add(pipeline)
            self._calls.put(pipeline)
        return True

    def relieve(self) -> None:
        """If held up, have the workers serve the pipelines called last: their next windows may be long in coming."""
        if self._is_held_up():
            for pipeline in list(self._called):
                pipeline.serve_waiting(-inf)

    def stop(self) -> None:
        """End after the calls so far. The pipelines' own workers serve later windows."""
        self._calls.put(None)

    def _work(self) -> None:
        while called := self._calls.get():
            if self._since is None:
                self._since = self._clock()
            self._called.discard(called)
            called.serve_waiting(self._since + ROUND_SECONDS)
            if self._calls.empty():
                self._since = None

    def _is_held_up(self) -> bool:
        since = self._since
        return since is not None and self._clock() - since > HELD_UP_SECONDS
