"""Windows served on the reader's thread, and the cases in which a window goes through the mailbox instead."""

import time
from collections.abc import Callable
from threading import Event, Thread, current_thread

import pytest

from edged.api import Arrays, ModelError
from edged.flow.pipeline import BRISK_SECONDS, Pipeline, stuck
from tests.flow.test_pipeline import Probe, chunk, flow, runner, serving, sign

READER, WORKER = "MainThread", "pipeline-sign"


class Model:
    """Model that notes the thread of each run; a run takes `seconds` by the clock of the probe."""

    def __init__(self, probe: Probe, seconds: float = 0.001) -> None:
        self.threads: list[str] = []
        self.seconds = seconds
        self._probe = probe

    def __call__(self, inputs: Arrays) -> Arrays:
        self.threads.append(current_thread().name)
        self._probe.now += self.seconds
        return sign(inputs)


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def model(probe: Probe) -> Model:
    return Model(probe)


@pytest.fixture
def pipeline(probe: Probe, model: Model):
    made = flow(probe)
    made.in_place = True
    made.serve(serving(runner(model)))
    yield made
    made.stop()
    assert made.join(120)


def is_settled(pipeline: Pipeline) -> bool:
    """Return whether no window waits or is being served. The caller is the reader."""
    with pipeline._turn:
        return not pipeline.mailbox.depth


def settle(pipeline: Pipeline) -> None:
    """Wait until all windows are served."""
    while not is_settled(pipeline):
        time.sleep(0.001)


def push(pipeline: Pipeline, windows: int = 1) -> None:
    """Push windows one at a time, each when the worker has finished the one before."""
    for _ in range(windows):
        pipeline.push(chunk(1.0))
        settle(pipeline)


def answered(probe: Probe) -> list[tuple[int, str]]:
    """Return the number and the version of each answer so far."""
    said = [probe.next() for _ in range(probe.predictions.qsize())]
    return [(each.seq, each.version) for each in said]


def test_the_first_window_shows_that_a_model_is_brisk_and_the_next_are_served_in_place(
    pipeline: Pipeline, model: Model, probe: Probe
):
    push(pipeline, 4)
    assert model.threads == [WORKER, READER, READER, READER]
    assert answered(probe) == [(0, "1.0"), (1, "1.0"), (2, "1.0"), (3, "1.0")]
    assert (pipeline.windows, pipeline.predictions, pipeline.mailbox.dropped) == (4, 4, 0)


def test_a_window_of_a_shared_source_goes_through_the_mailbox(pipeline: Pipeline, model: Model):
    pipeline.in_place = False
    push(pipeline, 3)
    assert model.threads == [WORKER, WORKER, WORKER]


def test_a_window_for_another_process_goes_through_the_mailbox(pipeline: Pipeline, probe: Probe):
    far = Model(probe)
    pipeline.serve(serving(runner(far))._replace(isolated=True))
    push(pipeline, 3)
    assert far.threads == [WORKER, WORKER, WORKER]


def test_a_slow_model_is_served_by_the_worker_until_it_is_brisk_again(pipeline: Pipeline, model: Model):
    push(pipeline, 2)
    model.seconds = 0.02
    push(pipeline, 20)
    assert model.threads[-1] == WORKER
    model.seconds = 0.001
    push(pipeline, 40)
    assert model.threads[-1] == READER


def test_one_very_slow_window_does_not_disqualify_a_model(pipeline: Pipeline, model: Model):
    push(pipeline, 2)
    model.seconds = 10.0
    push(pipeline)
    model.seconds = 0.001
    push(pipeline, 40)
    assert model.threads[:4] == [WORKER, READER, READER, WORKER]
    assert model.threads[-1] == READER


def test_a_burst_of_windows_holds_up_the_reading_for_a_moment_only(pipeline: Pipeline, model: Model, probe: Probe):
    push(pipeline, 2)
    pipeline.push(chunk(1.0, count=400))
    settle(pipeline)
    in_place = model.threads[2:].count(READER)
    assert in_place == pytest.approx(BRISK_SECONDS / model.seconds, abs=1.5)
    assert model.threads[2:] == [READER] * in_place + [WORKER] * (100 - in_place)
    assert [seq for seq, _ in answered(probe)] == list(range(102))


def test_no_window_overtakes_another(pipeline: Pipeline, probe: Probe):
    gate, held, threads = Event(), Event(), list[str]()

    def waiting(inputs: Arrays) -> Arrays:
        threads.append(current_thread().name)
        held.set()
        gate.wait()
        return sign(inputs)

    push(pipeline, 2)
    pipeline.serve(serving(runner(waiting)))
    pipeline.push(chunk(1.0))
    assert held.wait(120)
    pipeline.push(chunk(1.0))
    pipeline.push(chunk(1.0))
    gate.set()
    settle(pipeline)
    push(pipeline)
    assert threads == [WORKER, WORKER, WORKER, READER]
    assert [seq for seq, _ in answered(probe)] == [0, 1, 2, 3, 4, 5]


def test_a_failed_window_in_place_costs_no_other(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner(fail_on={2})))
    push(pipeline, 3)
    assert [seq for seq, _ in answered(probe)] == [0, 2]
    assert pipeline.errors == 1
    assert probe.states == [("running", ""), ("degraded", "run 2 failed, as told"), ("running", "")]


def test_a_swap_is_made_by_the_worker_and_the_next_windows_are_served_in_place(
    pipeline: Pipeline, model: Model, probe: Probe
):
    closed: list[str] = []
    old, new = runner(model), runner(model)
    old.close = noting(closed)  # type: ignore[method-assign]
    pipeline.serve(serving(old))
    push(pipeline, 2)
    pipeline.serve(serving(new, "1.1"))
    push(pipeline, 2)
    assert closed == [WORKER]
    assert model.threads == [WORKER, READER, WORKER, READER]
    assert answered(probe) == [(0, "1.0"), (1, "1.0"), (2, "1.1"), (3, "1.1")]


def test_windows_wait_in_the_mailbox_during_a_handover(pipeline: Pipeline, model: Model, probe: Probe):
    push(pipeline, 2)
    assert pipeline.release().wait(120)
    pipeline.push(chunk(1.0))
    pipeline.push(chunk(1.0))
    pipeline.serve(serving(runner(model), "2.0"))
    settle(pipeline)
    push(pipeline)
    assert model.threads == [WORKER, READER, WORKER, WORKER, READER]
    assert answered(probe) == [(0, "1.0"), (1, "1.0"), (2, "2.0"), (3, "2.0"), (4, "2.0")]


@pytest.mark.parametrize("order", [Pipeline.release, Pipeline.stop, Pipeline.retire])
def test_a_model_is_closed_only_after_its_window_in_place(
    order: Callable[[Pipeline], object], pipeline: Pipeline, probe: Probe
):
    gate, held = Event(), Event()
    gate.set()

    def waiting(inputs: Arrays) -> Arrays:
        held.set()
        gate.wait()
        open_then.append(not sound.closed)
        return sign(inputs)

    sound, open_then = runner(waiting), list[bool]()
    pipeline.serve(serving(sound))
    push(pipeline, 2)
    gate.clear()
    held.clear()
    reader = Thread(target=pipeline.push, args=(chunk(1.0),))
    reader.start()
    assert held.wait(120)
    order(pipeline)
    assert not pipeline.join(0)
    gate.set()
    reader.join(120)
    pipeline.stop()
    assert pipeline.join(120)
    assert sound.closed
    assert open_then == [True, True, True]
    assert [seq for seq, _ in answered(probe)] == [0, 1, 2]


def test_a_stopped_pipeline_serves_nothing_in_place(pipeline: Pipeline, model: Model):
    push(pipeline, 2)
    pipeline.stop()
    pipeline.push(chunk(1.0))
    assert pipeline.join(120)
    pipeline.push(chunk(1.0))
    assert model.threads == [WORKER, READER]


def test_the_watchdog_hears_of_a_window_in_place_that_is_stuck(pipeline: Pipeline, probe: Probe):
    gate, held = Event(), Event()
    gate.set()

    def hang(inputs: Arrays) -> Arrays:
        held.set()
        gate.wait()
        raise ModelError("let go")

    pipeline.serve(serving(runner(hang)))
    push(pipeline)
    gate.clear()
    held.clear()
    reader = Thread(target=pipeline.push, args=(chunk(1.0),))
    reader.start()
    assert held.wait(120)
    assert stuck([pipeline], probe.now + 11.0, 10.0) == "pipeline sign has been at one window for 11 s"
    gate.set()
    reader.join(120)
    assert stuck([pipeline], probe.now + 11.0, 10.0) == ""


def noting(threads: list[str]) -> Callable[[], None]:
    return lambda: threads.append(current_thread().name)
