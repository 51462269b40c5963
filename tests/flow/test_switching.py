"""Random switching of a pipeline between the reader's thread, a shared worker and the pipeline's own worker, while
models come, fail and hang.

Threads are real. Each window is answered or counted as an error, once and in order; two threads never use a runner at
a time. `EDGED_SOAK=1` selects the long form (`make soak`).
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from queue import SimpleQueue
from threading import Event, Lock, Thread

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.api import Arrays, Chunk, ModelError, Prediction
from edged.backends.fake import FakeRunner
from edged.flow.pipeline import Pipeline
from edged.flow.shared_worker import SharedWorker
from tests.flow.test_pipeline import INPUT, OUTPUT, Probe, flow, serving, sign
from tests.flow.test_serve_in_place import is_settled

SOAK = bool(os.environ.get("EDGED_SOAK"))


class Bench:
    """Behaviour of all models: `seconds` a run by the clock, the next `failures` runs fail, and all wait for `gate`.

    A run waiting for the gate sets `held`. `violations` lists uses of a runner against the rules.
    """

    def __init__(self) -> None:
        self.probe = Probe()
        self.seconds = 0.0005
        self.failures = 0
        self.gate = Event()
        self.gate.set()
        self.held = Event()
        self.violations: list[str] = []


class Guarded(FakeRunner):
    """Runner with notes of the first sample of each window, and any use by two threads at once or after the close."""

    def __init__(self, bench: Bench, version: int, windows: list[tuple[int, int]]) -> None:
        super().__init__((INPUT,), (OUTPUT,), sign)
        self._bench = bench
        self._version = version
        self._windows = windows
        self._use = Lock()

    def run(self, inputs: Arrays) -> Arrays:
        if self.closed or not self._use.acquire(blocking=False):
            self._bench.violations.append("a run after the close, or beside another")
            raise ModelError("misused")
        try:
            self._windows.append((int(inputs[0].ravel()[0]), self._version))
            if not self._bench.gate.is_set():
                self._bench.held.set()
                self._bench.gate.wait()
            self._bench.probe.now += self._bench.seconds
            if self._bench.failures:
                self._bench.failures -= 1
                raise ModelError("told to fail")
            return super().run(inputs)
        finally:
            self._use.release()

    def close(self) -> None:
        if self.closed or not self._use.acquire(blocking=False):
            self._bench.violations.append("a close during a run, or a second close")
        self.closed = True


class LateLock:
    """Lock for a slow worker: the reader is often first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.release = self._lock.release

    def acquire(self, *, blocking: bool) -> bool:
        return self._lock.acquire(blocking=blocking)

    def __enter__(self) -> None:
        time.sleep(0.0002)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Flow:
    """A pipeline and a sink: `windows` as passed to models, by first sample and version, and numbers of `answers`."""

    def __init__(self, bench: Bench, next_seq: int) -> None:
        self.windows: list[tuple[int, int]] = []
        self.answers: list[int] = []
        self.begins_at = next_seq
        self.pipeline: Pipeline = flow(bench.probe, next_seq, capacity=100_000)
        self.pipeline._turn = LateLock()  # type: ignore[assignment]
        self.pipeline.sinks = (self,)
        self.pipeline.in_place = True

    def send(self, prediction: Prediction) -> None:
        self.answers.append(prediction.seq)


class Reader:
    """Thread for chunks of a counter; a holder of `between` is between two chunks."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.feed = pipeline
        self.between = Lock()
        self._sizes: SimpleQueue[int | Event | None] = SimpleQueue()
        self._next = 0
        self._thread = Thread(target=self._run)
        self._thread.start()

    def push(self, samples: int) -> None:
        self._sizes.put(samples)

    def drain(self) -> None:
        """Wait until all chunks so far have been pushed."""
        drained = Event()
        self._sizes.put(drained)
        drained.wait()

    def end(self) -> None:
        self._sizes.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (size := self._sizes.get()) is not None:
            if isinstance(size, Event):
                size.set()
                continue
            samples = np.arange(self._next, self._next + size, dtype=np.float32).reshape(-1, 1)
            self._next += size
            with self.between:
                self.feed.push(Chunk(samples, 99.0))


class Switching(RuleBasedStateMachine):
    """Chunks and changes at any moment; `released` is true during a handover."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.version = 0
        self.runners: list[Guarded] = []
        self.flows = [Flow(self.bench, 0)]
        self.released = False
        self.shared = SharedWorker("imu", self.bench.probe.clock)
        self.reader = Reader(self.flow.pipeline)
        self.offer()

    @property
    def flow(self) -> Flow:
        return self.flows[-1]

    @rule(samples=st.integers(1, 200))
    def push(self, samples: int) -> None:
        self.reader.push(samples)

    @rule()
    def offer(self) -> None:
        self.version += 1
        runner = Guarded(self.bench, self.version, self.flow.windows)
        self.runners.append(runner)
        self.flow.pipeline.serve(serving(runner, f"{self.version}.0"))
        self.released = False

    @precondition(lambda self: not self.released)
    @rule()
    def release(self) -> None:
        self.flow.pipeline.release()
        self.released = True

    @rule(thread=st.sampled_from(["reader", "shared", "worker"]))
    def share(self, thread: str) -> None:
        self.flow.pipeline.in_place = thread == "reader"
        self.flow.pipeline.shared = self.shared if thread == "shared" else None

    @rule(seconds=st.sampled_from([0.0005, 0.0005, 0.004, 0.02, 1.0]))
    def slow(self, seconds: float) -> None:
        self.bench.seconds = seconds

    @rule(failures=st.integers(1, 3))
    def fail(self, failures: int) -> None:
        self.bench.failures = failures

    @precondition(lambda self: not self.released)
    @rule()
    def hang(self) -> None:
        """Have the next window hang, perhaps on the reader's thread."""
        self.settle()
        self.bench.gate.clear()
        self.bench.held.clear()
        self.reader.push(4)
        assert self.bench.held.wait(120)

    @rule()
    def answer(self) -> None:
        self.bench.gate.set()

    @precondition(lambda self: not self.released)
    @rule(windows=st.integers(1, 40))
    def settle(self, windows: int = 1) -> None:
        """Finish windows, each before the next, so that later windows may be served in place by the latest version."""
        self.bench.gate.set()
        for _ in range(windows):
            self.reader.push(4)
            self.reader.drain()
            while not is_settled(self.flow.pipeline):
                time.sleep(0.0001)
        assert self.flow.windows[-1][1] == self.version

    @precondition(lambda self: not self.released and self.bench.gate.is_set())
    @rule(go_on=st.booleans())
    def replace(self, go_on: bool) -> None:
        """Exchange the flow between two chunks, as for a version with other windows."""
        with self.reader.between:
            old = self.flow.pipeline
            old.retire()
            self.flows.append(Flow(self.bench, old.next_seq))
            if go_on:
                self.flow.pipeline.go_on_from(old)
            self.reader.feed = self.flow.pipeline
        self.offer()

    @invariant()
    def keeps_the_rules(self) -> None:
        assert self.bench.violations == []

    def teardown(self) -> None:
        self.bench.seconds = 0.0
        self.bench.gate.set()
        if self.released:
            self.offer()
        self.reader.end()
        self.shared.stop()
        for each in self.flows:
            each.pipeline.stop()
            assert each.pipeline.join(120)
            assert_all_served(each)
        assert self.bench.violations == []
        assert all(runner.closed for runner in self.runners)


def assert_all_served(flow: Flow) -> None:
    """Assert that each window of a flow was served once, in order, by versions in order."""
    pipeline = flow.pipeline
    assert pipeline.mailbox.dropped == 0
    assert len(flow.windows) == pipeline.windows == pipeline.predictions + pipeline.errors
    assert len(flow.answers) == pipeline.predictions
    assert all(later - earlier == 4 for (earlier, _), (later, _) in pairwise(flow.windows))
    assert flow.answers == sorted(set(flow.answers))
    assert set(flow.answers) <= set(range(flow.begins_at, pipeline.next_seq))
    versions = [version for _, version in flow.windows]
    assert versions == sorted(versions)


TestSwitching = Switching.TestCase
TestSwitching.settings = settings(max_examples=1000 if SOAK else 20, stateful_step_count=40, deadline=None)
