"""`edgectl bench`: measurements, means and output. Speed is not tested."""

import io
import json

import pytest

from edged.ctl.bench import BenchProgress
from edged.ctl.main import main
from tests.bundles import DATA, write_bundle


@pytest.fixture
def nowhere(tmp_path):
    """No configuration: names are factory models."""
    return ["--config", str(tmp_path / "none.toml")]


def test_one_model_against_the_bare_interpreter(capsys):
    assert main(["bench", str(DATA / "metadata.tflite"), "--runs", "5", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["model"], result["runs"]) == ("metadata", 5)
    assert list(result["seconds"]) == ["bare", "runner", "window"]
    for shares in result["seconds"].values():
        assert 0 < shares["p50"] <= shares["p90"] <= shares["p99"]
    assert result["runner"]["threads"] == 1
    assert result["load_seconds"] > 0


def test_a_bare_file_whose_meaning_is_not_certain_is_measured_all_the_same(capsys):
    assert main(["bench", str(DATA / "float.tflite"), "--runs", "2", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["model"], list(result["seconds"])) == ("float", ["bare", "runner", "window"])


@pytest.mark.parametrize("name", ["two_by_two.tflite", "edgetpu.tflite", "custom_op.tflite", "absent.tflite"])
def test_what_cannot_be_measured_says_why(name, capsys):
    assert main(["bench", str(DATA / name), "--runs", "2"]) == 4
    assert name in capsys.readouterr().err


def test_every_factory_model_unless_one_is_named(nowhere, capsys):
    assert main(["bench", "--runs", "2", *nowhere]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODEL", "WAY", "P50", "us", "P90", "us", "P99", "us", "P50"]
    assert [line.split()[0] for line in lines[1::3]][:3] == ["anomaly", "digits", "motion"]
    assert lines[1].endswith("1.00x")
    assert lines[-1].startswith("motion: 2 runs of each way, ")


def test_another_backend_has_no_bare_counterpart(tmp_path, capsys):
    tensor = {"name": "x", "shape": [1, 4], "dtype": "float32"}
    fake = {"inputs": [tensor], "outputs": [{"name": "y", "shape": [1, 3], "dtype": "float32"}]}
    folder = write_bundle(tmp_path / "fake", backend="fake", files={"model.tflite": json.dumps(fake).encode()})
    assert main(["bench", str(folder), "--runs", "2", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)[0]["seconds"]) == ["runner", "window"]


def test_threads_are_set_on_the_backend(capsys):
    assert main(["bench", str(DATA / "metadata.tflite"), "--runs", "2", "--threads", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["runner"]["threads"] == 2


@pytest.mark.parametrize("runs", ["0", "-1", "many", "1000001"])
def test_a_number_of_runs_out_of_reason_is_refused(runs, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--runs", runs])
    assert "--runs" in capsys.readouterr().err


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


def drawn(terminal, times):
    """Return the drawing of progress at these times and at the end."""
    screen, clock = Screen(terminal), iter([0.0, *times])
    progress = BenchProgress("motion", screen, lambda: next(clock))
    for done in range(len(times)):
        progress.show(done, 4)
    progress.end()
    return screen.getvalue()


def test_progress_is_drawn_after_a_second_and_taken_away():
    bar = "\rmotion [#######.......................] 1/4"
    assert drawn(True, [0.5, 1.0, 1.05]) == bar + "\r\x1b[K"


def test_no_progress_for_what_is_quick_or_goes_to_a_file():
    assert drawn(True, [0.5, 0.9]) == ""
    assert drawn(False, [0.5, 2.0]) == ""


def test_a_model_that_is_not_there(nowhere, capsys):
    assert main(["bench", "motoin", *nowhere]) == 4
    assert "did you mean 'motion'?" in capsys.readouterr().err
