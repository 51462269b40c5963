import os
import subprocess
import sys

import pytest

from edged.app.state_lock import StateLock
from edged.core.errors import StoreError

HOLD = """
import sys
from pathlib import Path
from edged.app.state_lock import StateLock
StateLock(Path(sys.argv[1]), "edged", "/run/edged", hint="").take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "state"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def lock(folder):
    return StateLock(folder, "edgectl tune", hint="stop it")


def test_a_folder_that_another_process_has_names_it_and_the_remedy(tmp_path, other):
    with pytest.raises(StoreError) as refused:
        lock(tmp_path / "state").take()
    holder = f"edged (process {other.pid}, runtime folder /run/edged)"
    assert refused.value.message == f"the state folder {tmp_path}/state is in use by {holder}"
    assert refused.value.hint == "stop it"


def test_deleting_all_that_is_in_the_folder_lets_go_of_nothing(tmp_path, other):
    for file in (tmp_path / "state").iterdir():
        file.unlink()
    with pytest.raises(StoreError, match="is in use by another program"):
        lock(tmp_path / "state").take()


def test_a_process_that_was_killed_has_nothing(tmp_path, other):
    other.kill()
    other.wait()
    with lock(tmp_path / "state"):
        assert (tmp_path / "state/holder.json").read_bytes() == (
            b'{"program":"edgectl tune","pid":%d,"runtime_dir":""}' % os.getpid()
        )
    assert list((tmp_path / "state").iterdir()) == []


def test_a_folder_that_has_taken_the_place_of_ours_is_locked_in_its_turn(tmp_path):
    with lock(tmp_path / "state") as ours:
        (tmp_path / "state").rename(tmp_path / "old")
        (tmp_path / "state").mkdir()
        ours.take()
        with pytest.raises(StoreError, match="is in use by edgectl tune"):
            lock(tmp_path / "state").take()
        lock(tmp_path / "old").take()


def test_a_new_folder_is_its_owners_alone(tmp_path):
    with lock(tmp_path / "state"):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_has_nothing_to_lock(tmp_path, caplog):
    (tmp_path / "file").touch()
    with lock(tmp_path / "file" / "state"):
        assert "cannot be used" in caplog.text
