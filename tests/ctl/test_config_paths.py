"""Whose configuration and state folder the verbs read that need no daemon."""

import pytest

GOOD = """
[sources.ramp]
kind = "synthetic"
channels = ["x"]
[pipelines.mine]
source = "ramp"
model = "not-here-yet"
sinks = ["stdout"]
"""


@pytest.fixture
def named(daemon, tmp_path):
    """The file that the daemon says it was started with."""
    file = tmp_path / "its-own.toml"
    file.write_text(GOOD)
    daemon.status = {
        **daemon.status,
        "config": {**daemon.status["config"], "files": [str(file)], "state_dir": str(tmp_path / "state")},
    }
    return file


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in ("EDGED_CONFIG", "EDGED_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_it_is_the_daemons_that_answers(edgectl, named):
    code, output, _ = edgectl("config", "check")
    assert (code, output.splitlines()[-1]) == (0, f"{named}: valid: 1 pipeline, 1 source, 1 model, 1 sink")
    assert 'model = "not-here-yet"' in edgectl("config", "show")[1]


def test_what_is_said_counts_before_it(edgectl, named, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("[log]\nlevel = 'debug'\n")
    assert 'level = "debug"' in edgectl("--config", str(other), "config", "show")[1]


def test_without_a_daemon_it_is_the_systems(edgectl):
    code, _, complaints = edgectl("config", "show")
    assert code == 4
    assert "/etc/edged/edged.toml" in complaints


def test_what_is_written_as_root_takes_nobodys_word(edgectl, named):
    code, _, complaints = edgectl("devices", "allow", "--dry-run")
    assert code == 4
    assert "/etc/edged/edged.toml" in complaints
