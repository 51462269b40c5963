import json
from typing import Any

from edged.api import Anomaly, Classification, Detections, Outcome, Prediction, Regression
from edged.core.record import Recorder
from edged.flow.decision import LatestDecision
from edged.flow.dependent import DependentStatus


class Clock:
    synchronised = True
    offset = 0.0

    def at(self, monotonic: float) -> float:
        return monotonic + self.offset

    def knows(self, monotonic: float) -> bool:
        return self.synchronised


class Topic(list[Any]):
    """Published messages, "" for an empty message; and a clock that stands still until moved."""

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.now = 100.0
        self.status = DependentStatus("motion", lambda: self.now, lambda _name, _health: None)
        self.status.set("running")
        self.clock = Clock()
        recorder = Recorder("board", "b00t", self.clock)
        self.latest = LatestDecision(recorder, self.status, self.publish, seconds=seconds, clock=lambda: self.now)

    def publish(self, payload: bytes) -> None:
        self.append(json.loads(payload) if payload else "")

    def send(self, outcome: Outcome, at: float) -> None:
        self.now = at
        self.latest.send(Prediction("motion", "gait", "1.2", 7, at - 1, at, 0.001, 0.0005, outcome))

    @property
    def decisions(self) -> list[str | None]:
        return [each and each["decision"] for each in self]


def says(label: str, score: float = 0.9, *, changed: bool = False) -> Classification:
    return Classification(label, score, (), label, changed)


def test_a_decision_as_json():
    topic = Topic()
    topic.send(Classification("walking", 0.98046875, (), None, False), 100.0)
    assert topic == [
        {
            "kind": "classification",
            "schema": "edged.decision/1",
            "device": "board",
            "pipeline": "motion",
            "model": "gait",
            "version": "1.2",
            "time": 100.0,
            "synchronised": True,
            "decision": None,
            "label": "walking",
            "score": 0.9805,
        }
    ]


def test_anomalies_and_values():
    topic = Topic()
    topic.send(Anomaly(0.25, 0.125, True, True), 100.0)
    assert (topic[0]["kind"], topic[0]["anomalous"], topic[0]["score"]) == ("anomaly", True, 0.25)
    topic.send(Regression({"level": 21.399999618530273}), 120.0)
    assert (topic[1]["kind"], topic[1]["values"]) == ("regression", {"level": 21.4})


def test_objects_by_zone():
    topic = Topic()
    topic.send(Detections((), {"door": {"person": 2}}, {"door": ("person",)}, True, (640, 480)), 100.0)
    assert (topic[0]["kind"], topic[0]["present"]) == ("detection", {"door": ["person"]})
    assert topic[0]["counts"] == {"door": {"person": 2}}
    assert "objects" not in topic[0]


def test_a_turn_is_told_at_once_and_all_else_every_so_many_seconds():
    topic = Topic(seconds=10.0)
    topic.send(says("standing", 0.9), 100.0)
    topic.send(says("standing", 0.8), 105.0)
    topic.send(says("walking", 0.7, changed=True), 106.0)
    topic.send(says("walking", 0.8), 115.9)
    topic.send(says("walking", 0.9), 116.0)
    assert [(each["decision"], each["score"]) for each in topic] == [
        ("standing", 0.9),
        ("walking", 0.7),
        ("walking", 0.9),
    ]


def test_turns_that_follow_one_another_are_held_back_and_the_last_is_told():
    topic = Topic(seconds=10.0)
    topic.send(says("standing", changed=True), 100.0)
    topic.send(says("walking", changed=True), 101.0)
    topic.send(says("running", changed=True), 102.0)
    assert topic.decisions == ["standing"]
    topic.now = 110.0  # no further message, as for a door that opens once a day
    topic.latest.flush()
    topic.latest.flush()
    assert topic.decisions == ["standing", "running"]


def test_what_stays_the_same_is_not_told_again():
    topic = Topic(seconds=10.0)
    topic.send(says("standing", 0.90001), 100.0)
    topic.send(says("standing", 0.90002), 200.0)
    assert topic.decisions == ["standing"]


def test_what_does_not_run_decides_nothing_until_it_runs_again():
    topic = Topic()
    topic.send(says("standing"), 100.0)
    topic.status.set("failed", "the sensor is gone")
    topic.latest.withdraw()
    topic.send(says("standing"), 101.0)  # the window being computed
    assert topic.decisions == ["standing", ""]
    topic.status.set("running")
    topic.send(says("standing"), 102.0)
    assert topic.decisions == ["standing", "", "standing"]


def test_a_clock_that_is_set_moves_what_was_told():
    topic = Topic()
    topic.latest.restamp()
    topic.send(says("standing"), 100.0)
    topic.clock.offset = 1_700_000_000.0
    topic.latest.restamp()
    assert [each["time"] for each in topic] == [100.0, 1_700_000_100.0]
