from threading import Event, get_ident

import pytest

from edged.api import Anomaly, Classification, Detections, DeviceError, Outcome, Prediction, Regression, StoreError
from edged.core.health import Status
from edged.flow.delivery import Delivery, Drain, Selection

WALKING = Classification("walking", 0.9, (), "walking", False)
TURNED = Classification("running", 0.9, (), "running", True)


NOBODY = Detections((), {"door": {}}, {"door": ()}, False, (640, 480))
SOMEBODY = Detections((), {"door": {"person": 1}}, {"door": ("person",)}, True, (640, 480))
SOMEBODY_STILL = Detections((), {"door": {"person": 2}}, {"door": ("person",)}, False, (640, 480))


def prediction(seq: int, outcome: Outcome = WALKING) -> Prediction:
    return Prediction("motion", "motion", "1.0.0", seq, 0.0, float(seq), 0.001, 0.0005, outcome)


def status() -> Status:
    return Status("log", clock=lambda: 0.0, listener=lambda name, health: None)


class ListSink:
    """Keeps what it is sent; raises `error` while there is one; waits at `gate` while that is closed."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.error: Exception | None = None
        self.closed = False
        self.gate = Event()
        self.gate.set()
        self.entered = Event()
        self.thread = 0

    def send(self, prediction: Prediction) -> None:
        self.entered.set()
        self.gate.wait(120)
        self.thread = get_ident()
        if self.error:
            raise self.error
        self.sent.append(prediction.seq)

    def close(self) -> None:
        self.closed = True


def test_a_sink_that_fails_is_a_count_and_a_state_until_it_works_again():
    sink = ListSink()
    delivery = Delivery(lambda: sink, status())
    sink.error = StoreError("the disk is full", hint="free some space")
    delivery.send(prediction(0))
    assert (delivery.failed, delivery.status.health.state, delivery.status.health.hint) == (
        1,
        "degraded",
        "free some space",
    )
    sink.error = None
    delivery.send(prediction(1))
    assert (delivery.sent, delivery.status.health.state, sink.sent) == (1, "running", [1])


def test_a_sink_that_cannot_be_opened_is_tried_again_with_the_next_prediction():
    sink = ListSink()
    mounted: list[bool] = []

    def open_sink() -> ListSink:
        if not mounted:
            raise StoreError("/mnt/usb is not there", hint="mount it")
        return sink

    delivery = Delivery(open_sink, status())
    delivery.send(prediction(0))
    assert (delivery.failed, delivery.status.health.reason) == (1, "/mnt/usb is not there")
    mounted.append(True)
    delivery.send(prediction(1))
    assert (sink.sent, delivery.status.health.state) == ([1], "running")


def test_a_sinks_own_bug_is_a_state_and_not_a_crash():
    sink = ListSink()
    delivery = Delivery(lambda: sink, status())
    sink.error = KeyError("oops")
    delivery.send(prediction(0))
    assert delivery.status.health.state == "failed"
    assert "KeyError" in delivery.status.health.reason


def test_a_drain_sends_on_its_own_thread_and_finishes_before_it_closes():
    sink = ListSink()
    drain = Drain(Delivery(lambda: sink, status()))
    for seq in range(20):
        drain.send(prediction(seq))
    drain.close()
    assert sink.sent == list(range(20))
    assert sink.closed
    assert sink.thread != get_ident()


def test_a_drain_drops_its_oldest_while_the_sink_hangs_and_counts_them():
    sink = ListSink()
    sink.gate.clear()
    drain = Drain(Delivery(lambda: sink, status()), capacity=3)
    drain.send(prediction(0))
    assert sink.entered.wait(120)
    for seq in range(1, 11):
        drain.send(prediction(seq))
    sink.gate.set()
    drain.close()
    assert sink.sent == [0, 8, 9, 10]
    assert drain.dropped == 7


def test_a_retryable_error_keeps_its_hint():
    sink = ListSink()
    sink.error = DeviceError("the display is gone", hint="plug it in", retryable=True)
    delivery = Delivery(lambda: sink, status())
    delivery.send(prediction(0))
    assert delivery.status.health.reason == "the display is gone"


@pytest.mark.parametrize(
    ("publish", "outcomes", "sent"),
    [
        ("changes", [WALKING, TURNED, WALKING, TURNED], [1, 3]),
        ("changes", [Anomaly(0.1, 0.5, False, False), Anomaly(0.9, 0.5, True, True)], [1]),
        ("changes", [Regression({"x": 1.0}), Regression({"x": 1.0}), Regression({"x": 2.0})], [0, 2]),
        ("changes", [NOBODY, SOMEBODY, SOMEBODY_STILL], [1]),
        (2.5, [WALKING] * 8, [0, 3, 6]),
        (2.5, [WALKING, TURNED, WALKING, WALKING], [0, 3]),
    ],
)
def test_a_selection_of_what_a_pipeline_says(publish, outcomes, sent):
    sink = ListSink()
    selection = Selection(sink, publish)
    for seq, outcome in enumerate(outcomes):
        selection.send(prediction(seq, outcome))
    assert sink.sent == sent
