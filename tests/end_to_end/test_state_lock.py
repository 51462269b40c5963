"""Two real programs and one state folder: the second learns the owner, and changes nothing in the folder."""

import json
import os
from pathlib import Path

from tests.edged_process import Edged
from tests.motion import bundle, config, edgectl
from tests.patience import PATIENCE


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
    assert f"the state folder {first.state_dir} is in use by {holder} (stop the other program, or choose" in said
    assert files(first.state_dir) == before


def test_edgectl_tune_for_another_runtime_folder_is_refused(edged, tmp_path: Path):
    daemon = edged()
    daemon.runtime_dir, ours = tmp_path / "elsewhere", daemon.runtime_dir
    said = edgectl(daemon, "tune", "motion", "--state-dir", daemon.state_dir)
    assert said.code == 4
    assert f"is in use by edged (process {daemon.process.pid}, runtime folder {ours})" in said.output
    assert not (daemon.state_dir / "tuning").exists()


def test_the_state_is_its_users_alone_whatever_the_umask(tmp_path: Path):
    before = os.umask(0o022)
    try:
        daemon = Edged(tmp_path, config() + '[mqtt]\nhost = "127.0.0.1"\nport = 1\n')
        with daemon:
            daemon.wait_for_log(" serves: ")
            said = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0"))
            assert said.code == 0, said.output
            while not list(daemon.state_dir.glob("spool/spool.db-wal")):
                pass
            found = [daemon.state_dir, *daemon.state_dir.rglob("*")]
            modes = {(each.name, each.lstat().st_mode & 0o777) for each in found if not each.is_symlink()}
    finally:
        os.umask(before)
    assert {name for name, _ in modes} >= {"state", "spool.db", "spool.db-wal", "state.json", "versions", "incoming"}
    assert {each for each in modes if each[1] & 0o077} == {("holder.json", 0o644)}


def test_a_daemon_that_was_killed_leaves_the_folder_to_the_next(edged):
    daemon = edged()
    daemon.process.kill()
    daemon.process.wait()
    next_one = edged()
    assert json.loads((next_one.state_dir / "holder.json").read_text())["pid"] == next_one.process.pid
