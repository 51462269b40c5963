"""Kinds of results beside labels, values and anomalies: real models in the real daemon, results on a real broker."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edged.backends.tflite import TfliteBackend
from edged.models.bundle import read_structure
from tests.broker import Broker, Subscriber
from tests.bundles import write_bundle
from tests.edged_process import Edged
from tests.motion import edgectl
from tests.real_models import real_model

CONFIG = """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
[sources.camera]
kind = "replay"
path = "{pictures}"
rate = 5
loop = true
[pipelines.find]
source = "camera"
model = "find"
{pipeline}
[models.find]
path = "{model}"
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def pixels(name: str, side: int, *, letterbox: bool = False) -> NDArray[np.uint8]:
    """Return one of the shared pictures in RGB, scaled to a square."""
    image = pytest.importorskip("PIL.Image")
    with image.open(real_model(f"images/{name}")) as opened:
        picture = opened.convert("RGB")
    if not letterbox:
        return np.asarray(picture.resize((side, side), image.Resampling.BILINEAR))
    scale = side / max(picture.size)
    width, height = (round(length * scale) for length in picture.size)
    canvas = image.new("RGB", (side, side))
    place = (side - width) // 2, (side - height) // 2
    canvas.paste(picture.resize((width, height), image.Resampling.BILINEAR), place)
    return np.asarray(canvas)


def bundle(folder: Path, model: str, side: int, postprocess: dict[str, Any], **parts: Any) -> Path:
    """Return a bundle of a shared model that takes square pictures."""
    file = real_model(model)
    structure = read_structure(file)
    return write_bundle(
        folder / "find",
        model=str(file),
        name="find",
        window={"length": 1, "hop": 1, "sample_shape": [side, side, 3], "dtype": "uint8"},
        inputs=[{"tensor": msgspec.to_builtins(each)} for each in structure.inputs],
        outputs=msgspec.to_builtins(structure.outputs),
        postprocess=postprocess,
        **{"labels": None, **parts},
    )


def serve(
    folder: Path, edged: Callable[..., Edged], broker: Broker, model: Path, pictures: NDArray[Any], pipeline: str = ""
) -> Edged:
    np.save(folder / "pictures.npy", pictures)
    text = CONFIG.format(port=broker.port, pictures=folder / "pictures.npy", model=model, pipeline=pipeline)
    return edged(text)


def topic(leaf: str) -> str:
    return f"edged/board/pipelines/find/{leaf}"


def test_keypoints_of_a_person(tmp_path: Path, broker: Broker, edged: Callable[..., Edged]) -> None:
    golden = json.loads(real_model("golden.json").read_text())["movenet_lightning:person.bmp"]["xnnpack"]
    name = "movenet_single_pose_lightning_ptq.tflite"
    model = bundle(tmp_path, name, 192, {"kind": "keypoints", "preset": "coco17", "threshold": 0.0})
    with Subscriber(broker.port, topic("result")) as heard:
        daemon = serve(tmp_path, edged, broker, model, pixels("person.bmp", 192, letterbox=True)[None])
        result = json.loads(heard.wait_for(topic("result")).payload)
        assert "present" in edgectl(daemon, "watch", "--count", "1").output
    assert (result["kind"], result["visible"], len(result["keypoints"])) == ("keypoints", True, 17)
    for (x, y, score), (y_share, x_share, expected) in zip(result["keypoints"].values(), golden, strict=True):
        assert score == pytest.approx(expected, abs=0.1)
        if expected > 0.5:
            assert (x, y) == pytest.approx((192 * x_share, 192 * y_share), abs=6)


LABELS = ["background", *(f"class_{index}" for index in range(1, 8)), "cat"]


@pytest.mark.parametrize("form", ["rle", "png"])
def test_a_segmentation_with_masks(tmp_path: Path, broker: Broker, edged: Callable[..., Edged], form: str) -> None:
    rule = {"threshold": 10.0, "background": ["background"]}
    name = "deeplabv3_mnv2_dm05_pascal_quant.tflite"
    model = bundle(tmp_path, name, 513, {"kind": "segmentation", "decision": rule}, labels=LABELS)
    with Subscriber(broker.port, topic("result"), f"{topic('mask')}/#", topic("mask")) as heard:
        picture = pixels("cat.bmp", 513)[None]
        serve(tmp_path, edged, broker, model, picture, f'publish_mask = "{form}"\nmask_seconds = 0.1')
        result = json.loads(heard.wait_for(topic("result")).payload)
        mask = heard.wait_for(topic("mask"))
    assert (result["kind"], result["decisions"]) == ("segmentation", ["cat"])
    assert 25 < result["shares"]["cat"] < 60
    assert sum(result["shares"].values()) == pytest.approx(100, abs=0.1)
    assert not mask.retain
    classes = from_png(mask.payload) if form == "png" else from_runs(json.loads(mask.payload))
    assert classes.shape == (513, 513)
    assert 100 * np.mean(classes == LABELS.index("cat")) == pytest.approx(result["shares"]["cat"], abs=0.1)


def from_png(payload: bytes) -> NDArray[Any]:
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(payload)) as picture:
        said = json.loads(picture.text["edged"])
        assert (said["schema"], said["size"], said["labels"]) == ("edged.mask/1", [513, 513], LABELS)
        return np.asarray(picture)


def from_runs(record: dict[str, Any]) -> NDArray[Any]:
    height, width = record["size"]
    classes = np.zeros((height, width), np.uint8)
    for label, counts in record["counts"].items():
        inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
        classes[inside] = LABELS.index(label)
    return classes


def test_an_embedding_and_the_nearest_reference(tmp_path: Path, broker: Broker, edged: Callable[..., Edged]) -> None:
    name = "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
    known = {each: pixels(f"{each}.{end}", 224) for each, end in (("cat", "bmp"), ("parrot", "jpg"))}
    file = io.BytesIO()
    np.savez_compressed(file, **vectors(real_model(name), known))  # type: ignore[arg-type]
    rule = {"kind": "embedding", "references": "known.npz", "decision": {"threshold": 0.2}}
    model = bundle(tmp_path, name, 224, rule, files={"known.npz": file.getvalue()})
    pictures = np.stack([known["parrot"], pixels("grace_hopper.bmp", 224)])
    with Subscriber(broker.port, topic("result"), topic("decision")) as heard:
        serve(tmp_path, edged, broker, model, pictures)
        results = [json.loads(heard.wait_for(topic("result")).payload) for _ in range(2)]
        known_first = sorted(results, key=lambda result: bool(result["anomalous"]))
        decision = json.loads(heard.wait_for(topic("decision")).payload)
    parrot, hopper = known_first
    assert (parrot["nearest"], parrot["decision"], parrot["anomalous"]) == ("parrot", "parrot", False)
    assert parrot["distance"] < 0.05
    assert (hopper["decision"], hopper["anomalous"]) == (None, True)
    assert len(np.frombuffer(base64.b64decode(parrot["vector"]), "<f4")) == 1024
    assert decision["kind"] == "embedding"


def vectors(model: Path, pictures: dict[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
    """Return the vector of each picture."""
    runner = TfliteBackend().load(model)
    spec = runner.outputs[0]
    found = {}
    for name, picture in pictures.items():
        (stored,) = runner.run([picture[None]])
        found[name] = (stored.reshape(-1).astype(np.float32) - spec.zero_point) * np.float32(spec.scale)
    runner.close()
    return found


def test_references_of_another_size_fail_the_model(tmp_path: Path, broker: Broker, edged: Callable[..., Edged]) -> None:
    model = write_bundle(
        tmp_path / "find",
        name="find",
        labels=None,
        postprocess={"kind": "embedding", "references": "known.json"},
        files={"known.json": b'{"alice": [1, 2]}'},
    )
    text = CONFIG.format(port=broker.port, pictures=tmp_path / "pictures.npy", model=model, pipeline="")
    np.save(tmp_path / "pictures.npy", np.zeros((1, 4), np.float32))
    daemon = edged(text)
    (found,) = daemon.call("models")
    assert found["health"]["state"] == "failed"
    assert "references in known.json have 2 elements, and the output 'y' 3" in found["health"]["reason"]


def test_several_outcomes_of_one_model(tmp_path: Path, broker: Broker, edged: Callable[..., Edged]) -> None:
    model = write_bundle(
        tmp_path / "find",
        name="find",
        labels=None,
        files={"known.json": b'{"low": [1, 1, 1], "high": [3, 1, 1]}'},
        postprocess={
            "kind": "several",
            "outcomes": {
                "colour": {"kind": "classification", "activation": "softmax"},
                "near": {
                    "kind": "embedding",
                    "references": "known.json",
                    "metric": "euclidean",
                    "vector": "none",
                },
                "raw": {"kind": "tensor"},
            },
            "labels": {"colour": ["red", "green", "blue"]},
        },
    )
    names = 'channels = ["c0", "c1", "c2", "c3"]\nrate = 5'
    text = CONFIG.format(port=broker.port, pictures=tmp_path / "rows.npy", model=model, pipeline='publish = "changes"')
    np.save(tmp_path / "rows.npy", np.array([[4, 0, 0, 0], [0, 0, 0, 0]], np.float32))
    with Subscriber(broker.port, topic("result"), topic("decision")) as heard:
        daemon = edged(text.replace("rate = 5", names, 1))
        result = json.loads(heard.next(lambda said: b'"decision":"high"' in said.payload).payload)
        heard.next(lambda said: b'"decision":"low"' in said.payload)  # the result before is known as the last by now
        (row,) = daemon.call("pipelines")
        assert "colour: red" in edgectl(daemon, "pipelines").output
    assert row["last"]["outcomes"].keys() == {"colour", "near", "raw"}
    assert result["kind"] == "several"
    assert result["outcomes"]["colour"]["decision"] == "red"
    assert result["outcomes"]["near"]["distance"] == 0.0
    assert result["outcomes"]["raw"] == {"kind": "tensor", "dtype": "float32", "shape": [1, 3], "values": [3, 1, 1]}
