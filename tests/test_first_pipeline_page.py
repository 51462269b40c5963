"""The commands and files of docs/guide/first-pipeline.md lead from a .tflite file to a sound configuration."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guide/first-pipeline.md").read_text()


def block(language, containing):
    (found,) = [each for each in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S) if containing in each]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The reader's folder: a model of four gestures, their labels, and a recording."""
    folder = tmp_path_factory.mktemp("gestures")
    shutil.copy(ROOT / "firmware_models/motion/1.0.0/model.tflite", folder / "gestures.tflite")
    shutil.copy(ROOT / "demo/recording.csv", folder / "recording.csv")
    (folder / "labels.txt").write_text("standing\nwalking\nrunning\nbadminton\n")
    (folder / "part.json").write_text(block("json", "normalise"))
    (folder / "edged.toml").write_text(block("toml", "[models.gestures]"))
    return folder


def run(folder, command):
    assert command.startswith("edgectl ")
    done = subprocess.run(
        [sys.executable, "-m", "edged.ctl", *command.split()[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_model_is_packed_tried_and_configured(folder):
    assert "int8 [1, 40, 6]" in run(folder, block("sh", "edgectl inspect"))
    assert "gestures-1.0.edgm" in run(folder, block("sh", "edgectl pack"))
    assert "DECISION" in run(folder, block("sh", "edgectl infer"))
    assert "1 pipeline" in run(folder, block("sh", "config check edged.toml"))
