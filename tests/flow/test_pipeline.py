from collections.abc import Callable
from queue import SimpleQueue
from threading import Event

import numpy as np
import pytest
from msgspec.structs import replace

from edged.api import Arrays, Chunk, Classification, ModelError, Prediction, TensorSpec
from edged.backends.fake import FakeRunner
from edged.core.health import Health, Status
from edged.core.manifest import Channel, Classify, File, Input, Manifest, WindowSpec
from edged.core.pictures import PictureForm, PictureSpec
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.flow.pipeline import Pipeline, stuck
from edged.flow.slot import RunCounts, Served
from edged.pictures.raw import RawPicture

INPUT = TensorSpec(name="x", shape=(1, 4, 1), dtype="float32")
OUTPUT = TensorSpec(name="y", shape=(1, 2), dtype="float32")
MANIFEST = Manifest(
    schema="edged.manifest/1",
    name="sign",
    version="1.0",
    files={"model.tflite": File(bytes=1, sha256="0" * 64)},
    window=WindowSpec(length=4, hop=4, rate=100.0, channels=(Channel(name="x"),)),
    inputs=(Input(tensor=INPUT),),
    outputs=(OUTPUT,),
    labels=("negative", "positive"),
    postprocess=Classify(),
)


def sign(inputs: Arrays) -> Arrays:
    positive = float(inputs[0].sum() > 0)
    return [np.array([[1 - positive, positive]], np.float32)]


def bug_at_first() -> Callable[[Arrays], Arrays]:
    fixed: list[bool] = []

    def function(inputs: Arrays) -> Arrays:
        if not fixed:
            fixed.append(True)
            raise KeyError("a backend's own bug")
        return sign(inputs)

    return function


def waiting_for(gate: Event, held: Event) -> Callable[[Arrays], Arrays]:
    """Return a model that sets `held` and waits for `gate` at each window."""

    def function(inputs: Arrays) -> Arrays:
        held.set()
        gate.wait()
        return sign(inputs)

    return function


def runner(function: Callable[[Arrays], Arrays] = sign, **faults: object) -> FakeRunner:
    return FakeRunner((INPUT,), (OUTPUT,), function, **faults)  # type: ignore[arg-type]


def serving(made: FakeRunner, version: str = "1.0") -> Served:
    manifest = Manifest(**{**{key: getattr(MANIFEST, key) for key in MANIFEST.__struct_fields__}, "version": version})
    return Served(manifest, made, Preprocessor(manifest), Postprocessor(manifest, None), RunCounts())


class Probe:
    """Sink that keeps predictions, a clock that stands still until moved, and all states."""

    def __init__(self) -> None:
        self.predictions: SimpleQueue[Prediction] = SimpleQueue()
        self.states: list[tuple[str, str]] = []
        self.now = 100.0

    def send(self, prediction: Prediction) -> None:
        self.predictions.put(prediction)

    def clock(self) -> float:
        return self.now

    def hear(self, name: str, health: Health) -> None:
        self.states.append((health.state, health.reason))

    def next(self) -> Prediction:
        return self.predictions.get(timeout=120)


@pytest.fixture
def probe() -> Probe:
    return Probe()


def flow(probe: Probe, next_seq: int = 0, capacity: int = 2) -> Pipeline:
    return Pipeline(
        "sign",
        MANIFEST.window,
        columns=None,
        patient=False,
        capacity=capacity,
        sinks=[probe],
        status=Status("sign", probe.clock, probe.hear),
        clock=probe.clock,
        next_seq=next_seq,
    )


@pytest.fixture
def pipeline(probe: Probe):
    made = flow(probe)
    yield made
    made.stop()
    assert made.join(120)


def chunk(value: float, time: float = 99.0, count: int = 4, lost: int = 0) -> Chunk:
    return Chunk(np.full((count, 1), value, np.float32), time, lost)


def test_a_window_becomes_a_prediction_that_says_what_when_and_by_whom(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner()))
    pipeline.push(chunk(1.0, time=99.0))
    prediction = probe.next()
    assert (prediction.pipeline, prediction.model, prediction.version, prediction.seq) == ("sign", "sign", "1.0", 0)
    assert isinstance(prediction.outcome, Classification)
    assert prediction.outcome.label == "positive"
    assert (prediction.start, prediction.time, prediction.latency) == (99.0 - 0.03, 99.0, 1.0)
    assert ("running", "") in probe.states


def test_a_failed_run_costs_its_window_and_no_other(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner(fail_on={1})))
    pipeline.push(chunk(1.0))
    pipeline.push(chunk(-1.0))
    assert probe.next().seq == 1
    assert pipeline.errors == 1
    assert probe.states == [("degraded", "run 1 failed, as told"), ("running", "")]


def test_a_backends_own_bug_does_not_end_the_worker(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner(bug_at_first())))
    pipeline.push(chunk(1.0))
    pipeline.push(chunk(1.0))
    assert probe.next().seq == 1
    assert probe.states == [("degraded", 'KeyError: "a backend\'s own bug"'), ("running", "")]


def test_a_swap_happens_between_two_windows_and_closes_the_old_model(pipeline: Pipeline, probe: Probe):
    old, new = runner(), runner()
    pipeline.serve(serving(old, "1.0"))
    pipeline.push(chunk(1.0))
    assert probe.next().version == "1.0"
    assert not old.closed
    pipeline.serve(serving(new, "1.1"))
    pipeline.push(chunk(1.0))
    after = probe.next()
    assert (after.version, after.seq) == ("1.1", 1)
    assert old.closed
    assert not new.closed


def test_a_model_that_fails_as_it_is_closed_does_not_keep_the_next_one_from_serving(pipeline: Pipeline, probe: Probe):
    old = runner()
    old.close = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    pipeline.serve(serving(old, "1.0"))
    pipeline.push(chunk(1.0))
    assert probe.next().version == "1.0"
    pipeline.serve(serving(runner(), "1.1"))
    pipeline.push(chunk(1.0))
    assert probe.next().version == "1.1"


def test_in_a_handover_the_old_model_is_closed_first_and_windows_wait_for_the_new_one(pipeline: Pipeline, probe: Probe):
    old, new = runner(), runner()
    pipeline.serve(serving(old, "1.0"))
    pipeline.push(chunk(1.0))
    assert probe.next().version == "1.0"
    assert pipeline.release().wait(120)  # though no window comes
    assert (old.closed, new.runs) == (True, 0)
    pipeline.push(chunk(1.0))
    pipeline.push(chunk(1.0))
    pipeline.serve(serving(new, "2.0"))
    assert [(said.seq, said.version) for said in (probe.next(), probe.next())] == [(1, "2.0"), (2, "2.0")]
    assert pipeline.mailbox.dropped == 0


def test_a_pipeline_can_be_stopped_in_the_midst_of_a_handover(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner()))
    assert pipeline.release().wait(120)
    pipeline.push(chunk(1.0))
    pipeline.stop()
    assert pipeline.join(120)
    assert pipeline.predictions == 0


def test_what_never_served_is_let_go_of_at_once(pipeline: Pipeline, probe: Probe):
    assert pipeline.release().is_set()


def test_what_a_version_does_is_told_apart_from_what_the_one_before_did(pipeline: Pipeline, probe: Probe):
    old, new = serving(runner(fail_on={2})), serving(runner())
    pipeline.serve(old)
    for value in (1.0, 1.0, 1.0):
        pipeline.push(chunk(value))
    assert [probe.next().seq, probe.next().seq] == [0, 2]
    pipeline.serve(new)
    for value in (1.0, -1.0, -1.0, -1.0):
        pipeline.push(chunk(value))
        probe.next()
    assert (old.counts.windows, old.counts.errors, old.counts.decisions) == (3, 1, 1)
    assert (new.counts.windows, new.counts.errors, new.counts.decisions) == (4, 0, 2)
    assert new.counts.constant == 3


def test_stopping_finishes_what_waits_and_closes_the_model(pipeline: Pipeline, probe: Probe):
    gate = Event()
    held = runner(gate=gate)
    pipeline.serve(serving(held))
    pipeline.push(chunk(1.0))
    pipeline.push(chunk(1.0))
    pipeline.stop()
    gate.set()
    assert pipeline.join(120)
    assert [probe.next().seq, probe.next().seq] == [0, 1]
    assert held.closed
    assert probe.states[-1] == ("stopped", "")


def test_stopping_drops_what_there_is_no_time_for(pipeline: Pipeline, probe: Probe):
    gate, held = Event(), Event()
    pipeline.serve(serving(runner(waiting_for(gate, held))))
    pipeline.push(chunk(1.0, count=40))
    assert held.wait(5)
    pipeline.stop()
    probe.now += 5.0
    gate.set()
    assert pipeline.join(5)
    assert (pipeline.predictions, pipeline.mailbox.dropped) == (1, 9)


def test_a_flow_that_goes_on_from_another_cuts_the_windows_that_this_would_have_cut(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner()))
    pipeline.push(chunk(1.0, count=6))  # a window and a half of 4 samples
    pipeline.retire()
    assert pipeline.join(120)
    assert probe.states[-1] == ("running", "")
    heir = flow(probe, pipeline.next_seq)
    heir.go_on_from(pipeline)
    heir.serve(serving(runner()))
    heir.push(chunk(1.0, count=2))
    assert [probe.next().seq, probe.next().seq] == [0, 1]
    heir.stop()
    assert heir.join(120)


def test_lost_samples_reset_a_model_that_remembers(pipeline: Pipeline, probe: Probe):
    stateful = runner()
    pipeline.serve(serving(stateful))
    pipeline.push(chunk(1.0))
    probe.next()
    assert stateful.resets == 0
    pipeline.push(chunk(1.0, count=2))
    pipeline.push(chunk(1.0, lost=3))
    assert probe.next().seq == 2
    assert stateful.resets == 1


def test_no_window_spans_the_beginning_of_another_stream(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner()))
    pipeline.push(chunk(1.0, count=3))
    pipeline.push(chunk(1.0, count=3)._replace(anew=True))
    pipeline.push(chunk(-1.0, count=1))
    assert probe.next().seq == 1
    assert pipeline.windows == 1


def test_a_model_that_is_fed_back_its_own_nan_is_reset(pipeline: Pipeline, probe: Probe):
    """Without the reset all later answers would be NaN."""
    memory = TensorSpec(name="h", shape=(1, 2), dtype="float32")
    manifest = replace(MANIFEST, inputs=(*MANIFEST.inputs, Input(tensor=memory, feed="feedback", feedback="y")))
    adding = FakeRunner((INPUT, memory), (OUTPUT,), lambda inputs: [inputs[1] + inputs[0].sum()])
    pipeline.serve(Served(manifest, adding, Preprocessor(manifest), Postprocessor(manifest, None), RunCounts()))
    pipeline.push(chunk(np.inf))
    pipeline.push(chunk(0.25))
    outcome = probe.next().outcome
    assert isinstance(outcome, Classification)
    assert (outcome.score, pipeline.errors) == (1.0, 1)


def test_a_chunk_of_many_windows_loses_none(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner()))
    pipeline.push(chunk(1.0, count=400))
    assert [probe.next().seq for _ in range(100)] == list(range(100))
    assert pipeline.mailbox.dropped == 0


def test_a_slow_pipeline_does_not_hold_up_its_neighbours(pipeline: Pipeline, probe: Probe):
    gate, held, mine = Event(), Event(), Probe()
    neighbour = flow(mine)
    pipeline.serve(serving(runner(waiting_for(gate, held))))
    neighbour.serve(serving(runner()))
    for each in (pipeline, neighbour):
        each.push(chunk(1.0))
    assert held.wait(120)
    mine.next()
    for _ in range(200):
        for each in (pipeline, neighbour):
            each.push(chunk(1.0))
            mine.now = probe.now = probe.now + 0.1
        assert mine.next().seq == pipeline.next_seq - 1
    assert (neighbour.mailbox.dropped, pipeline.mailbox.dropped > 100) == (0, True)
    assert pipeline.mailbox.depth <= 3
    gate.set()
    neighbour.stop()
    assert neighbour.join(120)


def test_a_pipeline_that_is_behind_is_degraded_with_the_figure_and_recovers_by_itself(pipeline: Pipeline, probe: Probe):
    gate, held = Event(), Event()
    pipeline.serve(serving(runner(waiting_for(gate, held))))
    pipeline.push(chunk(1.0))
    assert held.wait(120)
    for _ in range(10):
        pipeline.push(chunk(1.0))
        probe.now += 1.0
    behind = ("degraded", "behind: it took 0 of the 5 windows of the last 5 s")
    assert probe.states == [behind]
    assert "accelerator" in pipeline.status.health.hint
    gate.set()
    done = [probe.next().seq for _ in range(4)]
    assert done[0] == 0
    assert done[-1] == 10
    assert probe.states == [behind]
    probe.now += 10.0
    pipeline.push(chunk(1.0))
    assert probe.next().seq == 11
    assert probe.states == [behind, ("running", "")]


def test_a_pipeline_that_never_completes_a_window_says_so_within_three_of_them(pipeline: Pipeline, probe: Probe):
    pipeline.serve(serving(runner()))
    for number in range(4):
        assert probe.states == []
        pipeline.push(chunk(1.0, count=3, lost=number and 1))
    assert probe.states == [("degraded", "no window is complete: 4 samples never arrive without a gap")]
    assert "comment, prefix or select" in pipeline.status.health.hint
    pipeline.push(chunk(1.0, count=4))
    assert probe.next().seq == 3
    assert probe.states[-1] == ("running", "")


def test_a_window_starts_when_its_first_sample_came_at_the_rate_of_the_source(probe: Probe):
    window = replace(MANIFEST.window, rate=None)
    rates = iter([None, 100.0])
    made = Pipeline(
        "sign",
        window,
        columns=None,
        patient=False,
        capacity=2,
        sinks=[probe],
        status=Status("sign", probe.clock, probe.hear),
        clock=probe.clock,
        rate=lambda: next(rates),
    )
    made.serve(serving(runner()))
    for time in (98.0, 99.0):
        made.push(chunk(1.0, time=time))
    assert [(said.start, said.time) for said in (probe.next(), probe.next())] == [(None, 98.0), (98.97, 99.0)]
    made.stop()
    assert made.join(120)


def test_the_watchdog_hears_of_a_worker_that_is_stuck(pipeline: Pipeline, probe: Probe):
    gate, entered = Event(), Event()

    def hang(inputs: Arrays) -> Arrays:
        entered.set()
        gate.wait(120)
        raise ModelError("let go")

    pipeline.serve(serving(runner(hang)))
    assert stuck([pipeline], probe.now, 10.0) == ""
    pipeline.push(chunk(1.0))
    assert entered.wait(120)
    assert stuck([pipeline], probe.now + 9.0, 10.0) == ""
    assert stuck([pipeline], probe.now + 11.0, 10.0) == "pipeline sign has been at one window for 11 s"
    gate.set()


def test_late_pictures_are_dropped_and_never_queued(probe: Probe):
    """Samples of a model that keeps up may wait in numbers; of pictures, which are large, only `capacity` wait."""
    made = Pipeline(
        "find",
        replace(MANIFEST.window, length=1, hop=1, channels=(), sample_shape=(2, 2), dtype="uint8"),
        columns=None,
        patient=False,
        capacity=2,
        sinks=[probe],
        status=Status("find", probe.clock, probe.hear),
        clock=probe.clock,
        form=PictureForm(PictureSpec(width=2, height=2, colour="gray")),
    )
    for _ in range(10):
        made.push(Chunk(np.zeros((1, 9), np.uint8), 99.0, picture=RawPicture(np.zeros((4, 4), np.uint8), "gray")))
    assert made.mailbox.depth <= 3
    assert made.mailbox.dropped >= 7
