"""Pipelines of one source, served by a worker in common, and the cases in which the worker of each serves instead."""

import time
from threading import Event, current_thread

import pytest

from edged.api import Arrays, ModelError
from edged.flow.pipeline import Pipeline, stuck
from edged.flow.shared_worker import HELD_UP_SECONDS, ROUND_SECONDS, SharedWorker
from tests.flow.test_pipeline import Probe, chunk, flow, runner, serving, sign
from tests.flow.test_serve_in_place import settle

SHARED, OWN = "shared-imu", "pipeline-sign"


class Source:
    """Reader of pipelines with a clock and a shared worker in common; this thread reads. A run takes `seconds`.

    `runs` lists the number of the pipeline and the thread of each run. A run of the pipeline `hanging` sets `held`, and
    waits for `gate`.
    """

    def __init__(self) -> None:
        self.probe = Probe()
        self.seconds = 0.001
        self.runs: list[tuple[int, str]] = []
        self.hanging: int | None = None
        self.held, self.gate = Event(), Event()
        self.shared = SharedWorker("imu", self.probe.clock)
        self.pipelines: list[Pipeline] = []

    def add(self) -> None:
        number, made = len(self.pipelines), flow(self.probe, capacity=100)

        def model(inputs: Arrays) -> Arrays:
            self.runs.append((number, current_thread().name))
            self.probe.now += self.seconds
            if number == self.hanging:
                self.held.set()
                self.gate.wait()
            return sign(inputs)

        made.serve(serving(runner(model)))
        made.shared = self.shared
        self.pipelines.append(made)

    def push(self, windows: int = 1) -> None:
        """Pass a chunk of so many windows to each pipeline."""
        for each in self.pipelines:
            each.push(chunk(1.0, count=4 * windows))

    def settle(self) -> list[tuple[int, str]]:
        """Wait until all windows are served and the shared worker rests, and return the runs since the last call."""
        for each in self.pipelines:
            settle(each)
        while self.shared._called or self.shared._since is not None:
            time.sleep(0.001)
        runs, self.runs = self.runs, []
        return runs


@pytest.fixture
def source():
    made = Source()
    for _ in range(3):
        made.add()
    made.push()  # shows that the models are brisk
    assert sorted(made.settle()) == [(0, OWN), (1, OWN), (2, OWN)]
    yield made
    made.gate.set()
    made.shared.stop()
    for each in made.pipelines:
        each.stop()
        assert each.join(120)
    assert [each.mailbox.dropped for each in made.pipelines] == [0, 0, 0]


def hang(source: Source, number: int) -> None:
    """Have a pipeline hang on the shared worker."""
    source.hanging = number
    source.pipelines[number].push(chunk(1.0))
    assert source.held.wait(120)
    source.probe.now += 2 * HELD_UP_SECONDS
    source.runs.clear()


def test_one_thread_serves_the_pipelines_of_a_chunk_one_after_the_other(source: Source):
    source.push()
    assert source.settle() == [(0, SHARED), (1, SHARED), (2, SHARED)]
    source.push(2)
    assert source.settle() == [(0, SHARED), (0, SHARED), (1, SHARED), (1, SHARED), (2, SHARED), (2, SHARED)]


def test_a_round_ends_in_time_and_the_workers_serve_the_rest(source: Source):
    source.push(30)
    served = source.settle()
    rounds = [thread for _, thread in served].count(SHARED)
    assert 0 < rounds <= 3 * (ROUND_SECONDS / source.seconds + 1)
    assert len(served) == 90


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_model_that_hangs_holds_up_neither_the_reader_nor_another_pipeline(source: Source, number: int):
    hang(source, number)
    others = [other for other in range(3) if other != number]
    for _ in range(5):
        source.push()
        for other in others:
            settle(source.pipelines[other])
    assert sorted(source.runs) == [(other, OWN) for other in others for _ in range(5)]
    assert stuck(source.pipelines, source.probe.now + 11.0, 10.0) == "pipeline sign has been at one window for 11 s"
    source.runs.clear()
    source.gate.set()
    assert [run[0] for run in source.settle()] == [number] * 5  # the windows that waited for the hanging one
    for _ in range(60):
        source.push()
        source.settle()
    source.push()
    assert source.settle() == [(0, SHARED), (1, SHARED), (2, SHARED)]


def test_windows_behind_a_model_that_hangs_need_no_further_chunk(source: Source):
    source.hanging = 1
    source.push()
    assert source.held.wait(120)
    source.probe.now += 2 * HELD_UP_SECONDS
    source.shared.relieve()
    settle(source.pipelines[2])
    assert source.runs == [(0, SHARED), (1, SHARED), (2, OWN)]


def test_a_source_that_is_silent_for_a_moment_wakes_no_worker(source: Source):
    source.push()
    source.shared.relieve()
    assert source.settle() == [(0, SHARED), (1, SHARED), (2, SHARED)]


def test_a_slow_pipeline_is_served_by_its_own_worker_and_the_others_stay_together(source: Source):
    class Slow:
        def __call__(self, inputs: Arrays) -> Arrays:
            source.runs.append((1, current_thread().name))
            source.probe.now += 0.02
            return sign(inputs)

    source.pipelines[1].serve(serving(runner(Slow())))
    for _ in range(20):
        source.push()
        source.settle()
    source.push()
    assert sorted(source.settle()) == [(0, SHARED), (1, OWN), (2, SHARED)]


def test_a_model_is_taken_over_by_the_pipelines_own_worker(source: Source):
    closed: list[str] = []
    for version in ("1.1", "1.2"):
        new = runner(sign)
        new.close = lambda: closed.append(current_thread().name)  # type: ignore[method-assign]
        source.pipelines[1].serve(serving(new, version))
        for _ in range(2):
            source.push()
            source.settle()
    assert closed == [OWN]
    said = [source.probe.next().version for _ in range(5 * 3)]
    assert (said.count("1.0"), said.count("1.1"), said.count("1.2")) == (11, 2, 2)


def test_a_window_for_another_process_is_served_by_the_pipelines_own_worker(source: Source):
    threads: list[str] = []

    def far(inputs: Arrays) -> Arrays:
        threads.append(current_thread().name)
        return sign(inputs)

    source.pipelines[1].serve(serving(runner(far))._replace(isolated=True))
    for _ in range(3):
        source.push()
        source.settle()
    assert threads == [OWN, OWN, OWN]


def test_a_failed_window_costs_no_other(source: Source):
    def fail(inputs: Arrays) -> Arrays:
        raise ModelError("told to fail")

    source.pipelines[0].serve(serving(runner(fail)))
    for _ in range(3):
        source.push()
        source.settle()
    assert [(each.predictions, each.errors) for each in source.pipelines] == [(1, 3), (4, 0), (4, 0)]


def test_after_the_end_of_the_source_the_own_workers_finish_the_windows(source: Source):
    hang(source, 0)
    source.push()
    source.shared.stop()
    for each in source.pipelines:
        each.stop()
    source.gate.set()
    for each in source.pipelines:
        assert each.join(120)
    assert [each.predictions for each in source.pipelines] == [3, 2, 2]
