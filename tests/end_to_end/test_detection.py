"""Real detection models in the daemon: pictures in, boxes, counts and decisions out, over a real broker."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edged.core.boxes import overlap
from edged.ctl.main import main
from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.motion import edgectl
from tests.real_models import real_model

COCO = "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
FACE = "face_detection_short_range.tflite"
TRAFFIC = "automl_traffic_ssd_lstm.tflite"

CONFIG = """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
home_assistant = true
[sources.door]
kind = "replay"
path = "{pictures}"
rate = 5
loop = true
[models.find]
path = "{model}"
[pipelines.door]
source = "door"
model = "find"
[pipelines.door.decision]
{decision}
"""


def pictures(file: Path, size: int, *names: str) -> Path:
    """Write an array of pictures, scaled as by the interpreter's own examples."""
    image = pytest.importorskip("PIL.Image")
    found: list[NDArray[np.uint8]] = []
    for name in names:
        with image.open(real_model("images") / name) as opened:
            found.append(np.asarray(opened.convert("RGB").resize((size, size), image.Resampling.BILINEAR)))
    found += [np.maximum(found[-1], 1)]  # not quite the same: a sensor of equal samples is taken for frozen
    np.save(file, np.stack(found))
    return file


def golden(name: str) -> Any:
    return json.loads(real_model("golden.json").read_text())[name]["xnnpack"]


def packed(folder: Path, model: str, part: dict[str, Any] | None = None, *words: str) -> Path:
    out = folder / "find.edgm"
    arguments = ["pack", str(real_model(model)), "--version", "1", "--name", "find", "--out", str(out), *words]
    if part is not None:
        (folder / "part.json").write_text(json.dumps(part))
        arguments += ["--manifest", str(folder / "part.json")]
    assert main(arguments) == 0
    return out


def test_people_and_cars_by_zone(tmp_path: Path, edged: Callable[..., Edged]) -> None:
    recording = pictures(tmp_path / "pictures.npy", 300, "person.bmp")
    model = packed(tmp_path, COCO, None, "--golden", str(recording))
    rules = """
    threshold = 0.5
    labels = ["person", "car"]
    k = 2
    n = 2
    zones = { near = [[0, 0], [0.6, 0], [0.6, 1], [0, 1]], far = [[0.6, 0], [1, 0], [1, 1], [0.6, 1]] }
    """
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        daemon = edged(CONFIG.format(port=broker.port, pictures=recording, model=model, decision=rules))
        result = json.loads(
            subscriber.next(
                lambda each: each.topic == "edged/board/pipelines/door/result" and b'"near":["person"]' in each.payload
            ).payload
        )
        assert result["kind"] == "detection"
        assert result["counts"] == {"near": {"person": 1}, "far": {"car": 1}}
        assert result["present"] == {"near": ["person"], "far": ["car"]}
        assert (result["changed"], result["picture"]) == (True, [300, 300])
        for found, (label, score, (top, left, bottom, right)) in zip(
            result["objects"], golden("coco_ssd:person.bmp"), strict=False
        ):
            assert found["label"] == label
            assert found["score"] == pytest.approx(score, abs=0.1)
            assert overlap(found["box"], [300 * side for side in (left, top, right, bottom)]) > 0.8
        retained = json.loads(subscriber.wait_for("edged/board/pipelines/door/decision").payload)
        assert retained["kind"] == "detection"
        assert set(retained["counts"]) == set(retained["present"]) == {"near", "far"}
        with Subscriber(broker.port, "homeassistant/#") as home:
            announced = json.loads(home.wait_for("homeassistant/device/edged_board/config").payload)
        names = {name for name in announced["cmps"] if name.startswith("pipeline_door_")}
        assert names == {
            "pipeline_door_problem",
            *(f"pipeline_door_{zone}_{label}{end}" for zone in ("near", "far") for label in ("person", "car")
              for end in ("", "_count")),
        }  # fmt: skip
        assert "  person 0.7" in edgectl(daemon, "watch", "--count", "1").output
        assert "find 1" in edgectl(daemon, "pipelines").output
        document = json.loads(edgectl(daemon, "asyncapi").output)
        assert "DetectionResult" in document["components"]["schemas"]


def test_a_bare_file_with_the_op_and_labels_needs_no_manifest(tmp_path: Path, edged: Callable[..., Edged]) -> None:
    recording = pictures(tmp_path / "pictures.npy", 300, "cat.bmp")
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        edged(CONFIG.format(port=broker.port, pictures=recording, model=real_model(COCO), decision="track = 5"))
        payload = subscriber.wait_for("edged/board/pipelines/door/result").payload
        (cat,) = json.loads(payload)["objects"]
        ((label, score, _),) = golden("coco_ssd:cat.bmp")
        assert (cat["label"], cat["number"], cat["zones"]) == (label, 1, ["picture"])
        assert cat["score"] == pytest.approx(score, abs=0.1)


FACE_PART = {
    "labels": ["face"],
    "preprocess": [{"step": "normalise", "mean": [127.5], "std": [127.5]}],
    "window": {"length": 1, "hop": 1, "sample_shape": [128, 128, 3], "dtype": "uint8"},
    "postprocess": {
        "kind": "detection",
        "decoder": {
            "decoder": "ssd_anchors",
            "order": "cxcywh",
            "scales": [128, 128, 128, 128],
            "exponential": False,
            "overlap": 0.3,
            "anchors": {
                "from": "grid",
                "strides": [8, 16, 16, 16],
                "min_scale": 0.1484375,
                "max_scale": 0.75,
                "aspect_ratios": [1.0],
                "reduced": False,
                "fixed_size": True,
            },
        },
        "decision": {"threshold": 0.5},
    },
}


def test_boxes_are_in_pixels_of_pictures_of_any_size(tmp_path: Path, edged: Callable[..., Edged]) -> None:
    """The model takes 300 x 300 pixels, letterboxed, and the picture has 512 x 600."""
    (tmp_path / "inbox").mkdir()
    shutil.copy(real_model("images") / "grace_hopper.bmp", tmp_path / "inbox")
    model = packed(tmp_path, COCO, {"picture": {"width": 300, "height": 300, "fit": "letterbox", "pad": 114}})
    config = CONFIG.replace('kind = "replay"', 'kind = "images"').replace("loop = true", 'play = "repeat"')
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        edged(config.format(port=broker.port, pictures=tmp_path / "inbox", model=model, decision='labels = ["person"]'))
        result = json.loads(subscriber.wait_for("edged/board/pipelines/door/result").payload)
        (person,) = result["objects"]
        (label, score, (top, left, bottom, right)), *_ = golden("coco_ssd:grace_hopper.bmp")
        assert (person["label"], result["picture"]) == (label, [512, 600])
        assert person["score"] == pytest.approx(score, abs=0.1)
        assert overlap(person["box"], [512 * left, 600 * top, 512 * right, 600 * bottom]) > 0.8


def test_a_face_by_anchors(tmp_path: Path, edged: Callable[..., Edged]) -> None:
    recording = pictures(tmp_path / "pictures.npy", 128, "grace_hopper.bmp")
    model = packed(tmp_path, FACE, FACE_PART, "--golden", str(recording))
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        edged(CONFIG.format(port=broker.port, pictures=recording, model=model, decision=""))
        payload = subscriber.wait_for("edged/board/pipelines/door/result").payload
        (face,) = json.loads(payload)["objects"]
        assert face["score"] == pytest.approx(golden("face_detection_short_range:grace_hopper.bmp")["sigmoid"], abs=0.1)
        assert overlap(face["box"], [45, 30, 89, 74]) > 0.7


def test_a_detector_with_a_memory(tmp_path: Path, edged: Callable[..., Edged]) -> None:
    """The model's labels are unknown, and no traffic is in the picture: a low threshold shows its weak boxes."""
    part = {
        "labels": [f"class_{index}" for index in range(10)],
        "preprocess": [{"step": "none"}],
        "window": {"length": 1, "hop": 1, "sample_shape": [256, 256, 3], "dtype": "uint8"},
        "inputs": [
            {},
            {"feed": "feedback", "feedback": "raw_outputs/lstm_c"},
            {"feed": "feedback", "feedback": "raw_outputs/lstm_h"},
        ],
        "postprocess": {
            "kind": "detection",
            "decoder": {"decoder": "ssd_postprocess"},
            "decision": {"threshold": 0.05},
        },
    }
    recording = pictures(tmp_path / "pictures.npy", 256, "person.bmp")
    model = packed(tmp_path, TRAFFIC, part, "--golden", str(recording))
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/#") as subscriber:
        edged(CONFIG.format(port=broker.port, pictures=recording, model=model, decision="max_boxes = 3"))
        first, second = (
            json.loads(subscriber.wait_for("edged/board/pipelines/door/result").payload)["objects"] for _ in range(2)
        )
        assert len(first) == len(second) == 3
        assert first != second  # the same picture, after another


def test_zones_for_a_model_that_detects_nothing_are_refused(tmp_path: Path, edged: Callable[..., Edged]) -> None:
    config = """
    [sources.ramp]
    kind = "synthetic"
    channels = ["ax", "ay", "az", "gx", "gy", "gz"]
    rate = 10
    [pipelines.motion]
    source = "ramp"
    model = "motion"
    sinks = ["stdout"]
    [pipelines.motion.decision]
    zones = { door = [[0, 0], [1, 0], [1, 1]] }
    """
    daemon = edged(config)
    (pipeline,) = daemon.call("pipelines")
    assert pipeline["health"]["state"] == "failed"
    assert "`zones` is for a model that detects objects" in pipeline["health"]["reason"]
    assert "delete the key zones" in pipeline["health"]["hint"]
