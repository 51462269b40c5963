"""Models of users in the daemon: ambiguous models do not serve; large models and models of open shape do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundles import DATA, write_bundle
from tests.edged_process import Edged
from tests.labelled import relabelled
from tests.motion import edgectl, serving

ROWS = 400
CONFIG = """
[device]
name = "board"
[sources.ramp]
kind = "synthetic"
channels = ["c0", "c1", "c2", "c3"]
rate = 2000
[pipelines.mine]
source = "ramp"
model = "mine"
sinks = ["file"]
[sinks.file]
kind = "jsonl"
path = "{folder}/results.jsonl"
[models.mine]
path = "{model}"
"""


def configured(folder: Path, model: Path) -> str:
    return CONFIG.format(folder=folder, model=model)


def pipeline(daemon: Edged) -> dict[str, str]:
    (found,) = daemon.call("pipelines")
    return dict(found["health"])


def test_a_bare_file_that_leaves_doubt_fails_with_the_part_of_a_manifest_that_is_missing(
    tmp_path: Path, edged: Callable[..., Edged]
):
    model = tmp_path / "mine.tflite"
    shutil.copy(DATA / "float.tflite", model)
    daemon = edged(configured(tmp_path, model))
    health = pipeline(daemon)
    assert health["state"] == "failed"
    assert "the output of the op FULLY_CONNECTED may not be scores" in health["reason"]
    assert '"postprocess":{"kind":"regression","output":0,"names":["v0","v1","v2"]}' in health["hint"]
    assert not (tmp_path / "results.jsonl").exists()


def test_more_values_than_can_be_named_are_an_array_of_an_input_of_open_shape(
    tmp_path: Path, edged: Callable[..., Edged]
):
    model = write_bundle(
        tmp_path / "mine",
        model="open.tflite",
        name="mine",
        window={"length": ROWS, "hop": ROWS, "channels": [{"name": f"c{index}"} for index in range(4)]},
        inputs=[{"tensor": {"name": "x", "shape": [ROWS, 4], "dtype": "float32"}}],
        outputs=[{"name": "y", "shape": [ROWS, 3], "dtype": "float32"}],
        labels=None,
        postprocess={"kind": "regression"},
    )
    daemon = edged(configured(tmp_path, model))
    shown = edgectl(daemon, "watch", "--count", "1").output
    assert " and 1196 more" in shown
    assert " and 1196 more" in edgectl(daemon, "status").output
    (last,) = [each["last"] for each in daemon.call("pipelines")]
    assert (len(last["values"]), last["count"]) == (16, 3 * ROWS)
    daemon.stop()
    first = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert len(first["values"]) == 3 * ROWS


@pytest.mark.parametrize("decided", [False, True])
def test_a_bare_update_keeps_no_old_labels_against_its_own(tmp_path: Path, edged: Callable[..., Edged], decided: bool):
    named = {"kind": "classification", "decision": {"background": ["red"]}} if decided else {"kind": "classification"}
    model = write_bundle(
        tmp_path / "mine",
        model="metadata.tflite",
        name="mine",
        postprocess=named,
        probation={"seconds": 0.2, "windows": 5},
    )
    daemon = edged(configured(tmp_path, model))
    retrained = tmp_path / "retrained.tflite"
    retrained.write_bytes(relabelled(["blau", "rot", "gruen"]))
    done = edgectl(daemon, "update-model", retrained, "--model", "mine")
    if decided:
        assert (done.code, "and no 'red', which mine 1.0 names" in done.output) == (6, True), done.output
        assert serving(daemon) == "1.0"
        return
    assert done.code == 0, done.output
    assert "The file's own labels (blau, rot, gruen) are used" in done.output
    assert serving(daemon) == "1.1"
    assert daemon.call("pipelines")[0]["last"]["label"] in ("blau", "rot", "gruen")
