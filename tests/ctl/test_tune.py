"""`edgectl tune`: by a daemon or without one, and how it is told."""

import json
import os

import pytest

from edged.ctl import exit_codes as exits
from edged.ctl import tune
from edged.ctl.main import main
from edged.models.tuning_records import Tunings
from tests.bundles import write_bundle
from tests.delegates import faulty_library


@pytest.fixture
def here(tmp_path, capsys):
    """Runs edgectl without a daemon, on a device with the model colours and two delegates, of which one is wrong."""
    variants = [{"name": name, "delegate": name, "file": "model.tflite"} for name in ("good", "bad")]
    write_bundle(tmp_path / "bundle", variants=variants)
    external = f'kind = "external"\nlibrary = "{faulty_library()}"\n'
    (tmp_path / "edged.toml").write_text(
        f'[models.colours]\npath = "{tmp_path}/bundle"\n'
        f"[delegates.good]\n{external}"
        f'[delegates.bad]\n{external}options = {{ wrong = "zeros" }}\n'
    )

    def edgectl(*words):
        place = ["--config", str(tmp_path / "edged.toml"), "--runtime-dir", str(tmp_path)]
        code = main([*place, "--state-dir", str(tmp_path / "state"), *words])
        return code, *capsys.readouterr()

    return edgectl


def test_what_was_measured_is_told_step_by_step_and_kept(here, tmp_path):
    code, output, _ = here("tune", "colours", "--seconds", "0.02")
    lines = output.splitlines()
    record = Tunings(tmp_path / "state/tuning").read("colours")
    assert code == exits.DONE
    assert lines[0] == f"colours 1.0: {len(record.measurements)} ways to run it"
    assert lines[1].startswith("  the CPU with 1 thread        p50 ")
    assert lines[-4].startswith("  good (good)                  p50 ")
    assert lines[-3].startswith(
        "  bad (bad)                    colours 1.0 on bad disagrees with the CPU on sample 0: "
    )
    assert lines[-1].startswith("  measured here: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give things away")
def test_what_root_has_measured_is_the_daemons_to_read_and_to_replace(here, tmp_path):
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 65534, 65534)
    here("tune", "colours", "--seconds", "0.02")
    kept = [tmp_path / "state/tuning", *(tmp_path / "state/tuning").iterdir()]
    assert [(each.name, each.stat().st_uid, each.stat().st_gid) for each in kept] == [
        ("tuning", 65534, 65534),
        ("colours.json", 65534, 65534),
    ]


def test_in_json_each_step_is_a_line(here):
    code, output, _ = here("tune", "--all", "--seconds", "0.02", "--json")
    steps = [json.loads(line) for line in output.splitlines()]
    assert code == exits.DONE
    assert [step["id"] for step in (steps[0], steps[1], steps[-1])] == ["tune.begun", "tune.measured", "tune.recorded"]
    assert steps[-2]["measurement"]["failure"]


@pytest.mark.parametrize("words", [(), ("colours", "--all")])
def test_it_must_be_said_which(here, words):
    code, _, complaints = here("tune", *words)
    assert code == exits.FAILED
    assert "no model to tune is given" in complaints


@pytest.mark.parametrize("seconds", ["0", "-1", "61", "nan", "long"])
def test_a_time_out_of_reason_is_refused(here, seconds):
    with pytest.raises(SystemExit, match="2"):
        here("tune", "colours", "--seconds", seconds)


WARM = {
    "delegate": "cpu",
    "variant": "",
    "threads": 1,
    "worst": 0.0,
    "p50": 0.0012,
    "p99": 0.0034,
    "runs": 1500,
    "rss_bytes": 54_300_000,
    "celsius_before": 48.4,
    "celsius_after": 61.0,
    "failure": "",
    "hint": "",
}
STEPS = [
    {"id": "tune.begun", "model": "motion", "version": "1.2", "ways": 2},
    {"id": "tune.measured", "model": "motion", "title": "the CPU with 1 thread", "measurement": WARM},
    {
        "id": "tune.measured",
        "model": "motion",
        "title": "edgetpu",
        "measurement": WARM | {"failure": "it hung\x1b[2J", "hint": "replug it"},
    },
    {"id": "tune.recorded", "model": "motion", "why": "measured here: the CPU with 1 thread took 1.2 ms"},
]


def test_how_it_looks():
    assert [line for step in STEPS for line in tune.lines(step)] == [
        "motion 1.2: 2 ways to run it",
        "  the CPU with 1 thread        p50 1.200 ms, p99 3.400 ms in 1500 runs, 54.3 MB, 48 to 61 °C",
        "  edgetpu                      it hung\ufffd[2J",
        "      -> replug it",
        "  measured here: the CPU with 1 thread took 1.2 ms",
    ]


def test_a_daemon_that_runs_is_asked(daemon, edgectl):
    daemon.records = STEPS
    code, output, _ = edgectl("tune", "--all", "--json")
    assert (code, [json.loads(line) for line in output.splitlines()]) == (exits.DONE, STEPS)
    assert daemon.asked[-1] == ("tune", {"model": "motion", "seconds": 2.0})
