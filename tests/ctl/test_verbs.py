"""The verbs that show one part of what `status` shows, and the small ones."""

import json
import platform

import pytest

from edged import __version__


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("pipelines", "● motion    running  imu     motion 1.2  mqtt,log"),
        ("sources", "● imu     running  serial  ax,ay     100 Hz  99.88 Hz     4200"),
        ("models", "● motion  running  1.2      factory  motion     52.3 kB  edgetpu, 9 of 12 nodes"),
    ],
)
def test_one_table(edgectl, daemon, verb, line):
    code, output, _ = edgectl(verb)
    assert code == 0
    assert output.splitlines()[1].startswith(line)
    assert json.loads(edgectl(verb, "--json")[1]) == daemon.status[verb]


def test_a_model_on_the_cpu_in_a_process_of_its_own(edgectl, daemon):
    runner = {**daemon.status["models"][0]["runner"], "delegate": "cpu"}
    daemon.answers["models"] = [daemon.status["models"][0] | {"accelerator": None, "isolated": True, "runner": runner}]
    _, output, _ = edgectl("models")
    assert output.splitlines()[1].split()[8:] == ["cpu", "(litert", "2.3.0,", "isolated)", "8", "samples,", "±1"]
    assert len(output.splitlines()) == 2


def test_an_accelerator_is_released(edgectl, daemon):
    daemon.answers["release"] = {"released": "edgetpu"}
    assert edgectl("release", "edgetpu") == (
        0,
        "edgetpu is tried again; edgectl models shows what comes of it\n",
        "",
    )
    assert daemon.asked == [("release", {"accelerator": "edgetpu"})]
    assert json.loads(edgectl("release", "edgetpu", "--json")[1]) == {"released": "edgetpu"}


def test_metrics_are_passed_through(edgectl, daemon):
    assert edgectl("metrics") == (0, "edged_info 1\n", "")


def test_versions_with_and_without_a_daemon(edgectl, request):
    without = json.loads(edgectl("version", "--json")[1])
    assert (without["edgectl"], without["edged"]) == (__version__, None)
    assert without["python"] == platform.python_version()
    request.getfixturevalue("daemon")
    code, output, _ = edgectl("version")
    assert code == 0
    assert output.startswith(f"edgectl         {__version__}\nedged           0.1.0\n")
