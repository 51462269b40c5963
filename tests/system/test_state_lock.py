"""Two real programs and one state folder: the second is told who has it, and nothing in it changes."""

import json
from pathlib import Path

from tests.edged_process import PATIENCE, Edged
from tests.motion import config, edgectl


def files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and "spool" not in str(file)}


def test_a_second_daemon_with_a_runtime_folder_of_its_own_is_refused(edged, tmp_path: Path):
    first = edged()
    before = files(first.state_dir)
    (tmp_path / "other").mkdir()
    second = Edged(tmp_path / "other", config())
    second.state_dir = first.state_dir
    with second:
        assert second.process.wait(PATIENCE) == 1
        said = second.wait_for_log("the state folder")
    holder = f"edged (process {first.process.pid}, runtime folder {first.runtime_dir})"
    assert f"the state folder {first.state_dir} is in use by {holder} (stop it, or give this one a state" in said
    assert files(first.state_dir) == before


def test_edgectl_tune_for_another_runtime_folder_is_refused(edged, tmp_path: Path):
    daemon = edged()
    daemon.runtime_dir, ours = tmp_path / "elsewhere", daemon.runtime_dir
    said = edgectl(daemon, "tune", "motion", "--state-dir", daemon.state_dir)
    assert said.code == 4
    assert f"is in use by edged (process {daemon.process.pid}, runtime folder {ours})" in said.output
    assert not (daemon.state_dir / "tuning").exists()


def test_a_daemon_that_was_killed_leaves_the_folder_to_the_next(edged):
    daemon = edged()
    daemon.process.kill()
    daemon.process.wait()
    next_one = edged()
    assert json.loads((next_one.state_dir / "holder.json").read_text())["pid"] == next_one.process.pid
