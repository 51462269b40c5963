"""Records and texts of the kinds of outcomes beside classifications, regressions and anomalies."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from edged.core import discovery
from edged.core.asyncapi import document
from edged.core.description import Description, PipelineOutput, Value
from edged.core.masks import SegmentMask
from edged.core.record import Recorder
from edged.core.topics import Topics
from edged.core.types import (
    Anomaly,
    Embedding,
    Keypoint,
    Keypoints,
    Labels,
    Outcome,
    Outcomes,
    Prediction,
    Regression,
    Score,
    Segmentation,
    Tensor,
)
from edged.ctl.pipelines import outcomes
from edged.ctl.watch import decisions
from edged.sinks.stdout import words
from edged.testing.fakes import FixedClock
from tests.home_assistant import HomeAssistant

RECORDER = Recorder("board", "b00t", FixedClock(1000.0))
MASK = SegmentMask(np.zeros((1, 2), np.uint8), ("cat",), (0.0, 0.0, 64.0, 48.0), (64, 48))
LABELS = Labels((Score("music", 0.912345), Score("speech", 0.5)), ("music",), changed=True)
ANOMALY = Anomaly(0.5, 0.125, anomalous=True, changed=True)

CASES: list[tuple[Outcome, dict[str, Any], dict[str, Any], str]] = [
    (
        LABELS,
        {"scores": {"music": 0.9123, "speech": 0.5}, "decisions": ["music"], "changed": True},
        {"decisions": ["music"], "scores": {"music": 0.9123, "speech": 0.5}},
        "music 0.91, speech 0.50, now music",
    ),
    (
        Embedding(np.array([1, -2], "<f4").tobytes()),
        {"vector": "AACAPwAAAMA="},
        {"vector": "AACAPwAAAMA="},
        "vector",
    ),
    (
        Embedding([0.1234567, 2.0], "alice", 0.123456, None, anomalous=True, changed=False),
        {
            "vector": [0.123457, 2.0],
            "nearest": "alice",
            "distance": 0.1235,
            "decision": None,
            "anomalous": True,
            "changed": False,
        },
        {"decision": None, "anomalous": True, "nearest": "alice", "distance": 0.1235},
        "alice at 0.1235",
    ),
    (
        Embedding(None, "alice", 0.25, "alice", anomalous=False, changed=True),
        {"nearest": "alice", "distance": 0.25, "decision": "alice", "anomalous": False, "changed": True},
        {"decision": "alice", "anomalous": False, "nearest": "alice", "distance": 0.25},
        "alice at 0.25, now alice",
    ),
    (
        Keypoints(0.754321, 0.3, True, False, (Keypoint("nose", 10.04, 20.26, 0.912345),), (64, 48)),
        {
            "keypoints": {"nose": [10.0, 20.3, 0.9123]},
            "score": 0.7543,
            "threshold": 0.3,
            "visible": True,
            "changed": False,
            "picture": [64, 48],
        },
        {
            "visible": True,
            "score": 0.7543,
            "threshold": 0.3,
            "keypoints": {"nose": [10.0, 20.3, 0.9123]},
            "picture": [64, 48],
        },
        "present 0.75, 1 keypoints",
    ),
    (
        Segmentation((Score("cat", 62.54321),), ("cat",), False, MASK),
        {"shares": {"cat": 62.54}, "decisions": ["cat"], "changed": False, "picture": [64, 48]},
        {"decisions": ["cat"], "shares": {"cat": 62.54}},
        "cat 62.5%",
    ),
    (
        Tensor("float32", (1, 2), [0.1234567, 1.0]),
        {"dtype": "float32", "shape": [1, 2], "values": [0.123457, 1.0]},
        {"dtype": "float32", "shape": [1, 2], "values": [0.123457, 1.0]},
        "float32 [1, 2]",
    ),
    (
        Outcomes({"sound": LABELS, "wear": ANOMALY, "level": Regression([1.5])}),
        {
            "outcomes": {
                "sound": {
                    "kind": "multilabel",
                    "scores": {"music": 0.9123, "speech": 0.5},
                    "decisions": ["music"],
                    "changed": True,
                },
                "wear": {"kind": "anomaly", "score": 0.5, "threshold": 0.125, "anomalous": True, "changed": True},
                "level": {"kind": "regression", "values": [1.5]},
            },
            "changed": True,
        },
        {
            "outcomes": {
                "sound": {
                    "kind": "multilabel",
                    "decisions": ["music"],
                    "scores": {"music": 0.9123, "speech": 0.5},
                },
                "wear": {"kind": "anomaly", "anomalous": True, "score": 0.5, "threshold": 0.125},
                "level": {"kind": "regression", "values": [1.5]},
            }
        },
        "sound: music 0.91, speech 0.50, now music; wear: anomalous 0.5 (threshold 0.125); level: 1 values",
    ),
    (
        Outcomes({"level": Regression([1.5])}),
        {"outcomes": {"level": {"kind": "regression", "values": [1.5]}}},
        {"outcomes": {"level": {"kind": "regression", "values": [1.5]}}},
        "level: 1 values",
    ),
]


def prediction(outcome: Outcome) -> Prediction:
    return Prediction("find", "finder", "1", 7, 10.0, 12.0, 0.5, 0.25, outcome)


COMMON = {"schema", "device", "boot", "pipeline", "model", "version", "seq", "id", "time", "synchronised", "latency"}


@pytest.mark.parametrize(("outcome", "result", "decision", "line"), CASES)
def test_records_of_an_outcome(outcome: Outcome, result: dict[str, Any], decision: dict[str, Any], line: str) -> None:
    kind = type(outcome).__struct_config__.tag
    record = json.loads(RECORDER.encode(prediction(outcome)))
    assert {key: each for key, each in record.items() if key not in {*COMMON, "inference", "start"}} == {
        "kind": kind,
        **result,
    }
    told = json.loads(msgspec.json.encode(RECORDER.decision(prediction(outcome))))
    assert {key: each for key, each in told.items() if key not in COMMON} == {"kind": kind, **decision}


@pytest.mark.parametrize(("outcome", "result", "decision", "line"), CASES)
def test_a_line_for_people(outcome: Outcome, result: dict[str, Any], decision: dict[str, Any], line: str) -> None:
    assert words(outcome) == line


@pytest.mark.parametrize(
    ("outcome", "line", "decided"),
    [
        (LABELS, "music 0.912, speech 0.5", "decided: music"),
        (Embedding(b""), "vector", ""),
        (Embedding(None, "alice", 0.25, None, anomalous=True, changed=True), "alice at 0.25", "alarm"),
        (Keypoints(0.75, 0.3, True, True, ()), "present 0.75, 0 keypoints", "decided: present"),
        (Segmentation((), (), True, MASK), "no class", "decided: nothing"),
        (Tensor("int8", (1,), [1]), "int8 [1]", ""),
        (Outcomes({"a": LABELS, "b": ANOMALY}), "a: music 0.912, speech 0.5; b: anomalous 0.5",
         "a decided: music; b alarm"),
    ],
)  # fmt: skip
def test_a_line_of_watch(outcome: Outcome, line: str, decided: str) -> None:
    record = RECORDER.result(prediction(outcome))
    assert outcomes(record) == line
    if decided:
        assert decisions(record) == decided


PIPELINES = (
    PipelineOutput("sounds", "multilabel", labels=("music", "speech")),
    PipelineOutput("faces", "embedding", referenced=True),
    PipelineOutput("vectors", "embedding"),
    PipelineOutput("pose", "keypoints", labels=("nose", "left_eye"), skeleton=(("nose", "left_eye"),)),
    PipelineOutput("scene", "segmentation", labels=("cat", "dog")),
    PipelineOutput("raw", "tensor"),
    PipelineOutput(
        "both",
        "several",
        parts=(
            PipelineOutput("tank", "regression", values=(Value("level", "m"),)),
            PipelineOutput("sound", "multilabel", labels=("music",)),
        ),
    ),
)
DESCRIPTION = Description(topics=Topics("edged", "board"), version="1.0", pipelines=PIPELINES)


def test_results_are_narrowed_to_labels_and_parts() -> None:
    found = document(DESCRIPTION)

    def payload(channel: str) -> Any:
        return found["channels"][channel]["messages"]["message"]["payload"]

    names = {"enum": ["music", "speech"]}
    assert payload("result_sounds")["allOf"] == [
        {"$ref": "#/components/schemas/MultilabelResult"},
        {"properties": {"scores": {"propertyNames": names}, "decisions": {"items": names}}},
    ]
    assert payload("result_pose")["allOf"][1]["properties"]["keypoints"] == {
        "propertyNames": {"enum": ["nose", "left_eye"]},
        "x-skeleton": [["nose", "left_eye"]],
    }
    assert payload("decision_vectors") == {"$ref": "#/components/schemas/EmbeddingDecision"}
    parts = payload("result_both")["allOf"][1]["properties"]["outcomes"]
    assert parts["required"] == ["tank", "sound"]
    assert parts["properties"]["tank"]["allOf"][0]["required"] == ["kind", "values"]


def test_the_document_is_json_of_known_references() -> None:
    found = document(DESCRIPTION)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from [inner] if key == "$ref" else references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    schemas = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    inner = {name for name in references(json.loads(json.dumps(found))) if name.startswith("#/components")}
    assert inner <= schemas


def test_home_assistant_shows_the_decisions() -> None:
    topics = DESCRIPTION.topics
    home = HomeAssistant()
    home.hear(topics.availability, b"online")
    home.hear(discovery.topic("homeassistant", "board"), json.dumps(discovery.announcement(DESCRIPTION, {})).encode())
    told: dict[str, Outcome] = {
        "sounds": LABELS,
        "faces": Embedding(None, "alice", 0.25, "alice", changed=True),
        "pose": Keypoints(0.75, 0.3, True, True, ()),
        "scene": Segmentation((Score("dog", 12.5),), ("dog",), True, MASK),
        "both": Outcomes({"tank": Regression({"level": 1.5}), "sound": LABELS}),
    }
    for name, outcome in told.items():
        home.hear(topics.pipeline_state(name), b'{"state": "running"}')
        home.hear(topics.source_state(""), b'{"state": "running"}')
        home.hear(topics.decision(name), msgspec.json.encode(RECORDER.decision(prediction(outcome))))
    states = {name.removeprefix("pipeline_"): state for name, state in home.states.items() if "problem" not in name}
    assert states == {
        "state": "unknown",
        "sounds_labels": "music",
        "faces_nearest": "alice",
        "faces_anomaly": "off",
        "faces_distance": "0.25",
        "pose_visible": "on",
        "pose_score": "0.75",
        "scene_labels": "dog",
        "scene_share_0": "0",
        "scene_share_1": "12.5",
        "both_tank_value_level": "1.5",
        "both_sound_labels": "music",
    }
