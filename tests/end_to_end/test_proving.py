"""The real daemon proves and tunes in service, with the devices of the board, and then serves by the measurements."""

import json

import pytest

from edged.ctl import exit_codes as exits
from edged.ctl.main import main
from edged.models.tuning_records import Tunings
from tests.bundles import write_bundle
from tests.delegates import faulty_library
from tests.edged_process import Edged

CONFIG = """
[mqtt]
host = "127.0.0.1"
port = 1

[sources.noise]
kind = "synthetic"
channels = ["c0", "c1", "c2", "c3"]
rate = 10

[pipelines.colours]
source = "noise"
model = "colours"
sinks = ["stdout"]

[sinks.stdout]
kind = "stdout"

[models.colours]
path = "{folder}/bundle"

[delegates.slow]
kind = "external"
library = "{library}"
options = {{ delay_us = "10000" }}

[delegates.wrong]
kind = "external"
library = "{library}"
options = {{ wrong = "constant" }}
"""


@pytest.fixture
def edged(tmp_path):
    variants = [{"name": name, "delegate": name, "file": "model.tflite"} for name in ("slow", "wrong")]
    write_bundle(tmp_path / "bundle", variants=variants)
    with Edged(tmp_path, CONFIG.format(folder=tmp_path, library=faulty_library())) as daemon:
        daemon.wait_for_log("model colours on slow is accelerated")
        yield daemon


@pytest.fixture
def edgectl(edged, capsys):
    """Return a function that runs edgectl beside the daemon, and returns exit code and output."""

    def run(*words):
        capsys.readouterr()
        code = main(["--config", str(edged.config), "--runtime-dir", str(edged.runtime_dir), *words])
        return code, capsys.readouterr().out

    return run


def test_it_proves_and_tunes_what_it_serves(edged, edgectl):
    code, output = edgectl("prove", "--json")
    assert code == exits.BAD
    assert [(each["delegate"], each["state"]) for each in json.loads(output)] == [
        ("slow", "agrees"),
        ("wrong", "disagrees"),
    ]
    assert edged.call("models")[0]["choice"].startswith("as in the manifest: not measured here by edgectl tune")

    code, output = edgectl("tune", "--all", "--seconds", "0.1", "--json")
    assert code == exits.DONE
    steps = [json.loads(line) for line in output.splitlines()]
    assert "has the same value everywhere" in steps[-2]["measurement"]["failure"]
    assert steps[-1]["why"].startswith("measured here: the CPU with ")
    assert Tunings(edged.state_dir / "tuning").read("colours").model == "colours"

    (model,) = edged.call("models")
    assert (model["runner"]["delegate"], model["accelerator"]) == ("cpu", None)
    assert model["choice"] == steps[-1]["why"]
    assert edgectl("models")[1].splitlines()[-1].strip() == model["choice"]
    assert edged.call("status")["pipelines"][0]["health"]["state"] == "running"
    assert edged.stop() == 0
