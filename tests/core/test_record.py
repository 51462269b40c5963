from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from edged.core.acceleration import AcceleratorStatus
from edged.core.health import Health
from edged.core.record import (
    AcceleratorState,
    AnomalyResult,
    ClassificationResult,
    DetectionResult,
    Recorder,
    RegressionResult,
    State,
    corrected,
    encode_acceleration,
    encode_state,
)
from edged.core.types import Anomaly, Classification, Detections, FoundObject, Outcome, Prediction, Regression, Score


class Clock:
    synchronised = False

    def at(self, monotonic: float) -> float:
        return monotonic + 1000.0

    def knows(self, monotonic: float) -> bool:
        return self.synchronised


RECORDER = Recorder("board", "b00t", Clock())

COMMON = {
    "schema": "edged.result/1",
    "device": "board",
    "boot": "b00t",
    "pipeline": "motion",
    "model": "gait",
    "version": "1.2",
    "seq": 7,
    "id": "b00t:motion:7",
    "time": 1012.0,
    "start": 1010.0,
    "synchronised": False,
    "latency": 0.5,
    "inference": 0.25,
}


class SynchronisedClock:
    synchronised = True

    def at(self, monotonic: float) -> float:
        return monotonic + 1_700_000_000.0

    def knows(self, monotonic: float) -> bool:
        return self.synchronised


CASES: list[tuple[Outcome, type[Any], dict[str, Any]]] = [
    (
        Classification("walking", 0.75, (Score("walking", 0.75), Score("resting", 0.25)), None, False),
        ClassificationResult,
        {
            "kind": "classification",
            "label": "walking",
            "score": 0.75,
            "scores": {"walking": 0.75, "resting": 0.25},
            "decision": None,
            "changed": False,
        },
    ),
    (Regression({"level": 1.5}), RegressionResult, {"kind": "regression", "values": {"level": 1.5}}),
    (Regression([0.5, 1.5]), RegressionResult, {"kind": "regression", "values": [0.5, 1.5]}),
    (
        Anomaly(0.5, 0.125, True, True),
        AnomalyResult,
        {"kind": "anomaly", "score": 0.5, "threshold": 0.125, "anomalous": True, "changed": True},
    ),
    (
        Detections(
            (
                FoundObject("cat", 0.7187654, (1.25, 2.04, 30.06, 40.0), ("door",), 3),
                FoundObject("dog", 0.5, (0.0, 0.0, 9.0, 9.0)),
            ),
            {"door": {"cat": 1}, "street": {}},
            {"door": ("cat",), "street": ()},
            True,
            (640, 480),
        ),
        DetectionResult,
        {
            "kind": "detection",
            "objects": [
                {"label": "cat", "score": 0.7188, "box": [1.2, 2.0, 30.1, 40.0], "zones": ["door"], "number": 3},
                {"label": "dog", "score": 0.5, "box": [0.0, 0.0, 9.0, 9.0], "zones": []},
            ],
            "counts": {"door": {"cat": 1}, "street": {}},
            "present": {"door": ["cat"], "street": []},
            "changed": True,
            "picture": [640, 480],
        },
    ),
]


def predict(outcome: Outcome) -> Prediction:
    return Prediction("motion", "gait", "1.2", 7, 10.0, 12.0, 0.5, 0.25, outcome)


@pytest.mark.parametrize(("outcome", "record", "fields"), CASES)
def test_a_result_as_json(outcome: Outcome, record: type[Any], fields: dict[str, Any]) -> None:
    encoded = RECORDER.encode(predict(outcome))

    assert json.loads(encoded) == COMMON | fields
    assert msgspec.json.decode(encoded, type=record) == RECORDER.record(predict(outcome))
    assert json.loads(json.dumps(RECORDER.result(predict(outcome)))) == COMMON | fields


@pytest.mark.parametrize("outcome", [case[0] for case in CASES])
def test_a_result_of_a_window_whose_start_nobody_knows_has_none(outcome: Outcome) -> None:
    encoded = RECORDER.encode(msgspec.structs.replace(predict(outcome), start=None))

    assert "start" not in json.loads(encoded)
    right = json.loads(corrected(encoded, 12.5, SynchronisedClock()))
    assert (right["time"], right["synchronised"], "start" in right) == (1_700_000_012.0, True, False)


def test_figures_are_written_as_exactly_as_they_are_known() -> None:
    clock = SynchronisedClock()
    scores = (Score("walking", 0.9804688096046448), Score("resting", 0.0000123456))
    outcome = Classification("walking", 0.9804688096046448, scores, "walking", False)
    prediction = Prediction("motion", "gait", "1.2", 7, 10.00001234, 12.123456789, 0.000912345678, 0.0002, outcome)
    record = Recorder("board", "b00t", clock).result(prediction)

    assert (record["time"], record["start"]) == (1_700_000_012.1235, 1_700_000_010.0)
    assert (record["latency"], record["inference"]) == (0.000912, 0.0002)
    assert (record["score"], record["scores"]) == (0.9805, {"walking": 0.9805, "resting": 0.00001235})
    assert RECORDER.result(predict(Regression({"level": 21.399999618530273})))["values"] == {"level": 21.4}
    assert RECORDER.result(predict(Anomaly(0.0312345678, 0.03, True, True)))["score"] == 0.03123


def test_scores_are_written_best_first() -> None:
    encoded = RECORDER.encode(predict(CASES[0][0]))
    assert list(json.loads(encoded)["scores"]) == ["walking", "resting"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_in_json_becomes_null(value: float) -> None:
    assert json.loads(RECORDER.encode(predict(Regression({"level": value}))))["values"] == {"level": None}


def test_a_state_as_json() -> None:
    health = Health("degraded", "no data for 5 s", "check the cable", 12.0)
    encoded = encode_state("imu", health, Clock(), {"samples": 3})

    assert json.loads(encoded) == {
        "schema": "edged.state/1",
        "name": "imu",
        "state": "degraded",
        "reason": "no data for 5 s",
        "hint": "check the cable",
        "since": 1012.0,
        "details": {"samples": 3},
    }
    assert msgspec.json.decode(encoded, type=State).name == "imu"


def test_what_was_recorded_before_the_clock_was_right_can_be_corrected() -> None:
    payload = RECORDER.encode(Prediction("motion", "gait", "1.2", 7, 10.0, 12.0, 0.5, 0.25, Regression({"level": 1.5})))
    record = json.loads(corrected(payload, 12.5, SynchronisedClock()))

    assert (record["start"], record["time"], record["synchronised"]) == (1_700_000_010.0, 1_700_000_012.0, True)
    assert {**record, "start": 1010.0, "time": 1012.0, "synchronised": False} == json.loads(payload)
    assert list(record) == list(json.loads(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"{}",
        b'["synchronised":false',
        b'["\\"synchronised\\":false"]',
        b'{"synchronised":false,"time":"noon"}',
    ],
)
def test_what_is_no_such_record_stays_as_it_is(payload: bytes) -> None:
    assert corrected(payload, 12.5, SynchronisedClock()) == payload


def test_what_was_right_stays_as_it_is() -> None:
    recorder = Recorder("board", "b00t", SynchronisedClock())
    payload = recorder.encode(Prediction("motion", "gait", "1.2", 7, 10.0, 12.0, 0.5, 0.25, Regression({"level": 1.5})))
    assert corrected(payload, 99.0, SynchronisedClock()) == payload


def test_how_an_accelerator_stands() -> None:
    standing = AcceleratorStatus("quarantined", "5 faults within 600 s", "plug it in anew", 12.0)
    encoded = encode_acceleration("gait", "edgetpu usb:0", standing, Clock())

    assert json.loads(encoded) == {
        "schema": "edged.accelerator/1",
        "model": "gait",
        "accelerator": "edgetpu usb:0",
        "state": "quarantined",
        "reason": "5 faults within 600 s",
        "hint": "plug it in anew",
        "since": 1012.0,
    }
    assert msgspec.json.decode(encoded, type=AcceleratorState).model == "gait"
