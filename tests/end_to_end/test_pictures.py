"""The real daemon with a folder of pictures: real models, hostile files, another region, and no Pillow."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image

from tests.broker import Broker, Subscriber
from tests.bundles import write_bundle
from tests.edged_process import Edged
from tests.motion import edgectl
from tests.real_models import real_model

PLAYED = """
[device]
name = "board"
[sources.yard]
kind = "images"
path = "{folder}/yard"
play = "once"
[models.find]
path = "{model}"
[pipelines.find]
source = "yard"
model = "find"
sinks = ["file"]
[sinks.file]
kind = "jsonl"
path = "{folder}/results.jsonl"
"""

WATCHED = """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
[sources.yard]
kind = "images"
path = "{folder}/yard"
[sources.yard.supervision]
retry_max = 0.5
[models.tiles]
path = "{folder}/tiles"
[pipelines.tiles]
source = "yard"
model = "tiles"
{more}
"""


def put(folder: Path, name: str, data: bytes) -> None:
    """Rename a whole file into the folder."""
    aside = folder / f".{name}"
    aside.write_bytes(data)
    aside.rename(folder / name)


@pytest.mark.parametrize(
    "model", ["mobilenet_v2_1.0_224_quant", "tf2_mobilenet_v2_1.0_224_ptq", "mobilenet_v1_0.25_224_1_metadata_1"]
)
def test_real_models_classify_pictures_of_any_size(tmp_path: Path, edged: Callable[..., Edged], model: str):
    """The bare file states all that is needed. The pictures have 300 to 929 pixels a side, the models take 224."""
    golden = json.loads(real_model("golden.json").read_text())
    (tmp_path / "yard").mkdir()
    expected = []
    for name in ("cat.bmp", "parrot.jpg"):
        key = f"{model}:{name}".replace("_1_metadata_1", "_float")
        _, label, *_, score = golden[key]["xnnpack"][0]
        expected.append((label, pytest.approx(score, abs=0.1)))
        (tmp_path / "yard" / name).symlink_to(real_model(f"images/{name}"))
    daemon = edged(PLAYED.format(folder=tmp_path, model=real_model(f"{model}.tflite")))
    daemon.wait_for_log("the recording has ended")
    daemon.stop()
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(result["label"], result["score"]) for result in results] == expected


def tiles(folder: Path, name: str = "tiles", version: str = "1.0", fit: str = "stretch") -> Path:
    """Write a model of pictures of 4 x 1 gray pixels: the scores are half of the first three, plus one."""
    return write_bundle(
        folder / name,
        name="tiles",
        version=version,
        window={"length": 1, "hop": 1, "sample_shape": [1, 4], "dtype": "uint8"},
        picture={"width": 4, "height": 1, "colour": "gray", "fit": fit, "filter": "area"},
        probation={"seconds": 0, "windows": 0},
        postprocess={"kind": "classification", "top_k": 3},
    )


def picture(folder: Path, *values: int) -> bytes:
    """Return a PNG of columns of these brightnesses."""
    image = Image.new("L", (len(values), 1))
    image.putdata(values)
    image.resize((10 * len(values), 8), Image.Resampling.NEAREST).save(folder / "made.png")
    return (folder / "made.png").read_bytes()


@pytest.fixture
def watched(tmp_path: Path, edged) -> Any:
    """Return a function that starts a daemon with the model `tiles` on an empty folder, and a function for the scores
    of the next result.
    """
    tiles(tmp_path)
    (tmp_path / "yard").mkdir()
    with Broker(tmp_path) as broker, Subscriber(broker.port, "edged/board/pipelines/tiles/result") as subscriber:

        def config(more: str = "") -> str:
            return WATCHED.format(port=broker.port, folder=tmp_path, more=more)

        def scores() -> list[float]:
            found = json.loads(subscriber.next().payload)["scores"]
            return [found["red"], found["green"], found["blue"]]

        yield config, scores


def test_bad_pictures_disturb_nothing(tmp_path: Path, edged, watched):
    config, scores = watched
    daemon = edged(config())
    daemon.wait_for_log("source yard is open")
    good = picture(tmp_path, 10, 20, 30, 40)
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x27\x10\0\0\x27\x10\x08\x02\0\0\0"  # 10,000 x 10,000 pixels
    Image.new("L", (4, 4)).save(tmp_path / "other.jpg")
    for number, bad in enumerate((good[:60], bomb, b"", b"<html>no picture</html>", b"\xff\xd8\xff\xe0")):
        put(tmp_path / "yard", f"bad{number}.png", bad)
    put(tmp_path / "yard", "good.png", good)
    assert scores() == [6.0, 11.0, 16.0]
    put(tmp_path / "yard", "good.png", picture(tmp_path, 20, 20, 20, 20))
    assert scores() == [11.0, 11.0, 11.0]
    daemon.stop()
    assert not any("Traceback" in line for line in daemon.log)


def test_unreadable_pictures_in_a_row_are_a_state_until_a_good_one_comes(tmp_path: Path, edged, watched):
    config, scores = watched
    daemon = edged(config())
    daemon.wait_for_log("source yard is open")
    for number in range(4):
        put(tmp_path / "yard", f"bad{number}.png", b"<html>401</html>")
    daemon.wait_for_log("stalled: a picture cannot be decoded")
    (source,) = daemon.call("sources")
    assert source["health"]["hint"] == "check that the camera or the program sends whole pictures"
    assert source["faults"]["unreadable pictures"] >= 3
    assert "unreadable pictures" in edgectl(daemon, "sources").output
    (pipeline,) = daemon.call("pipelines")
    assert pipeline["health"]["state"] == "failed"
    put(tmp_path / "yard", "good.png", picture(tmp_path, 10, 20, 30, 40))
    assert scores() == [6.0, 11.0, 16.0]


def test_a_reload_changes_region_and_mask(tmp_path: Path, edged, watched):
    config, scores = watched
    daemon = edged(config())
    daemon.wait_for_log("source yard is open")
    eight = picture(tmp_path, 10, 10, 20, 20, 30, 30, 40, 40)
    put(tmp_path / "yard", "a.png", eight)
    assert scores() == [6.0, 11.0, 16.0]
    mask = "mask = [[[0.6, 0.0], [0.75, 0.0], [0.75, 1.0], [0.6, 1.0]]]"
    daemon.configure(config(f"region = [0.5, 0.0, 1.0, 1.0]\n{mask}"))
    daemon.reload()
    daemon.wait_for_log("reloaded")
    put(tmp_path / "yard", "b.png", eight)
    assert scores() == [16.0, 1.0, 21.0]


def test_no_picture_is_lost_while_reloads_rebuild_the_pipeline(tmp_path: Path, edged, watched):
    config, scores = watched
    watching = config().replace('/yard"', '/yard"\ndelete = true')
    daemon = edged(watching)
    daemon.wait_for_log("source yard is open")
    reloaded = Event()

    def send() -> int:
        number = 0
        while not reloaded.is_set() or number < 50:
            put(tmp_path / "yard", f"{number}.png", picture(tmp_path, number % 250, number // 250, 0, 0))
            number += 1
        return number

    with ThreadPoolExecutor(1) as pool:
        camera = pool.submit(send)
        try:
            for count in range(1, 9):
                daemon.configure(watching + f"mask = [[[0.8, 0.0], [1.0, 0.0], [1.0, {count / 10}]]]\n")
                daemon.reload()
                daemon.wait_for_log("reloaded", count)
        finally:
            reloaded.set()
        sent = camera.result()
    assert [scores()[:2] for _ in range(sent)] == [[n % 250 / 2 + 1, n // 250 / 2 + 1] for n in range(sent)]


def test_a_version_that_takes_another_part_of_the_picture_gets_it(tmp_path: Path, edged, watched):
    """The windows of both versions have the same shape; the pictures for them do not look the same."""
    config, scores = watched
    daemon = edged(config())
    daemon.wait_for_log("source yard is open")
    eight = picture(tmp_path, 10, 10, 20, 20, 30, 30, 40, 40)
    put(tmp_path / "yard", "a.png", eight)
    assert scores() == [6.0, 11.0, 16.0]
    packed = edgectl(daemon, "pack", tiles(tmp_path, "cropped", "1.1", "crop"), "-o", tmp_path / "cropped.edgm")
    assert packed.code == 0, packed.output
    done = edgectl(daemon, "update-model", tmp_path / "cropped.edgm")
    assert done.code == 0, done.output
    put(tmp_path / "yard", "b.png", eight)
    assert scores() == [11.0, 11.0, 16.0]


def test_without_pillow_the_source_fails_with_the_remedy(tmp_path: Path, edged, watched):
    config, _ = watched
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('not installed')")
    daemon = edged(config(), PYTHONPATH=str(tmp_path))
    daemon.wait_for_log("reading pictures takes Pillow")
    (source,) = daemon.call("sources")
    assert source["health"]["state"] == "failed"
    assert source["health"]["hint"] == "pip install 'edged[image]'"
