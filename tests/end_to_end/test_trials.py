"""Models that kill or hang their process: the real daemon tries them in a child process, and serves all others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import killer, write_bundle
from tests.edged_process import PATIENCE, Edged
from tests.motion import config, edgectl, serving
from tests.plain_client import connect
from tests.real_models import real_model

KILLER = """
[sources.one]
kind = "synthetic"
channels = ["c0"]
rate = 10
[models.killer]
path = "{file}"
[pipelines.killed]
source = "one"
model = "killer"
"""

MINE = """
[device]
name = "board"
[sources.eye]
kind = "replay"
path = "{pictures}"
rate = 50
loop = true
[models.mine]
path = "{path}"
[pipelines.mine]
source = "eye"
model = "mine"
"""

HOLDING = """
import time
from edged.backends.tflite import TfliteBackend

class HoldingBackend(TfliteBackend, frozen=True, kw_only=True):
    "Never loads, and holds a fifo open meanwhile."
    fifo: str
    def load(self, file, *, signature=None):
        with open(self.fifo, "w"):
            time.sleep(600)
"""


def health(daemon: Edged) -> dict[str, str]:
    status = daemon.call("status")
    return {each["name"]: each["health"]["state"] for each in (*status["models"], *status["pipelines"])}


@pytest.mark.usefixtures("garbage_in_memory")
@pytest.mark.parametrize("stage", ["load", "run"])
def test_a_model_that_kills_the_runtime_is_failed_and_all_else_serves(tmp_path: Path, edged, stage):
    daemon = edged(config() + KILLER.format(file=killer(tmp_path, stage)))
    assert serving(daemon) == "1.0.0"
    assert health(daemon) == {"motion": "running", "killer": "failed", "killed": "failed"}
    assert "SIGSEGV" in daemon.call("status")["pipelines"][1]["health"]["reason"]
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()  # proven models are loaded at once, harmful models never
    daemon.wait_for_log("edged.daemon: model killer is failed", times=2)
    assert serving(daemon) == "1.0.0"
    assert sum("model motion is starting: new to this board" in line for line in daemon.log) == 1
    assert daemon.stop() == 0


def test_a_reload_that_brings_one_changes_nothing_else(tmp_path: Path, edged):
    daemon = edged(config())
    assert serving(daemon) == "1.0.0"
    daemon.configure(config() + KILLER.format(file=killer(tmp_path, "run")))
    daemon.reload()
    daemon.wait_for_log("reloaded: sources.one, models.killer, pipelines.killed")
    assert serving(daemon) == "1.0.0"
    assert health(daemon) == {"motion": "running", "killer": "failed", "killed": "failed"}
    said = edgectl(daemon, "prove", "killer")
    assert said.code == 4
    assert "no model 'killer' is loaded" in said.output
    assert daemon.stop() == 0


def test_a_daemon_that_is_killed_during_a_first_trial_takes_the_child_with_it(tmp_path: Path, install_plugin):
    install_plugin("holding", HOLDING, family="backends", holding="holding:HoldingBackend")
    os.mkfifo(tmp_path / "fifo")
    table = f'[models.motion]\nbackend = "holding"\nfifo = "{tmp_path / "fifo"}"\n'
    with Edged(tmp_path, config() + table, PYTHONPATH=sys.path[0]) as daemon:
        end = os.open(tmp_path / "fifo", os.O_RDONLY)  # opened once the child process runs
        daemon.process.kill()
        assert os.read(end, 1) == b""
        os.close(end)
        daemon.process.wait()
        daemon.configure(config())
        daemon.start()
        assert daemon.wait_for_log("pipeline motion is running")
        assert daemon.stop() == 0


@pytest.mark.usefixtures("garbage_in_memory")
def test_check_says_which_model_it_is(tmp_path: Path):
    daemon = Edged(tmp_path, config() + KILLER.format(file=killer(tmp_path, "load")))
    daemon.start("--check")
    assert daemon.process.wait(PATIENCE) == 1
    daemon.wait_for_log("killer 1.0: the self-test crashed while loading the model: SIGSEGV (Segmentation fault)")


@pytest.mark.parametrize(
    "words",
    [
        ("infer", "one.csv", "--model", "killer/"),
        ("bench", "killer/"),
        ("pack", "killer"),
        ("pack", "killer/model.tflite", "--manifest", "killer/manifest.json"),
    ],
)
def test_edgectl_says_what_became_of_it(tmp_path: Path, words):
    killer(tmp_path, "run")
    (tmp_path / "one.csv").write_text("c0\n1\n")
    code = "import sys; from edged.ctl.main import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 4
    assert "crashed" in ended.stderr
    assert "SIGSEGV" in ended.stderr


def test_a_file_that_is_written_over_while_it_serves_does_not_end_the_daemon(tmp_path: Path, edged):
    """The runtime maps the file, and would die of SIGBUS after a truncation."""
    mine = write_bundle(
        tmp_path / "mine",
        files={"model.tflite": real_model("keras_lstm_mnist_ptq.tflite").read_bytes()},
        name="mine",
        window={"length": 1, "hop": 1, "sample_shape": [28, 28], "dtype": "uint8"},
        inputs=[{"tensor": {"name": "x", "shape": [1, 28, 28], "dtype": "uint8", "scale": 1 / 255}}],
        outputs=[{"name": "y", "shape": [1, 10], "dtype": "uint8", "scale": 1 / 256}],
        labels=[str(digit) for digit in range(10)],
        preprocess=[{"step": "none"}],
    )
    np.save(tmp_path / "pictures.npy", np.zeros((100, 28, 28), np.uint8))
    daemon = edged(MINE.format(pictures=tmp_path / "pictures.npy", path=mine))
    assert serving(daemon) == "1.0"
    (mine / "model.tflite").write_bytes(b"")
    answers = connect(str(daemon.runtime_dir)).stream("watch")
    assert [next(answers)["version"] for _ in range(10)] == ["1.0"] * 10
    daemon.configure(daemon.config.read_text() + '[log]\nlevel = "debug"\n')
    daemon.reload()  # no file at the path is sound
    daemon.wait_for_log("the new configuration is refused, the old one stays in effect")
    assert serving(daemon) == "1.0"
    assert daemon.stop() == 0
