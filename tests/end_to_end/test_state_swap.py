"""The files of a real daemon are deleted or replaced during service, and then the process is killed."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.app.state_lock import StateLock
from edged.core.answers import WATCH
from edged.core.ledger import encode
from edged.ctl.client import UnreachableError, connect
from tests.broker import Broker, Subscriber
from tests.edged_process import PATIENCE, Edged
from tests.end_to_end.test_spool import CONFIG, ENDED, results, unsaved
from tests.motion import bundle, edgectl, ledger, serving, shelf


def delete(state: Path) -> None:
    for file in (state / "spool").glob("spool.db*"):
        file.unlink()


def restore(state: Path) -> None:
    state.rename(state.with_name("moved away"))
    state.with_name("backup").rename(state)


@pytest.mark.parametrize("happen", [delete, restore])
def test_what_is_owed_survives_the_loss_of_the_spools_file(tmp_path: Path, happen: Callable[[Path], None]):
    broker = Broker(tmp_path)
    daemon = Edged(tmp_path, CONFIG + str(broker.port))
    daemon.state_dir.mkdir()
    shutil.copytree(daemon.state_dir, tmp_path / "backup")
    with daemon:
        daemon.wait_for_log(ENDED)
        while unsaved(daemon) or daemon.call("spool")["depth"] < 77:
            pass
        happen(daemon.state_dir)
        daemon.wait_for_log("77 messages were saved at its path again")
        assert unsaved(daemon) == 0
        daemon.stop(signal.SIGKILL)
    daemon.configure(f'[device]\nname = "board"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n')
    with broker, Subscriber(broker.port, "edged/#") as subscriber, daemon:
        assert [each["seq"] for each in results(subscriber, 77)] == list(range(77))
        assert json.loads((daemon.state_dir / "holder.json").read_text())["pid"] == daemon.process.pid


def delete_ledgers(models: Path) -> None:
    for file in models.glob("motion/state*.json"):
        file.unlink()


def swap_models(models: Path) -> None:
    models.rename(models.with_name("moved away"))
    models.mkdir()


@pytest.mark.parametrize("happen", [delete_ledgers, swap_models])
def test_a_ledger_that_is_deleted_is_written_again(edged, tmp_path: Path, happen: Callable[[Path], None]):
    daemon = edged()
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0")).code == 0
    before = ledger(daemon)
    happen(daemon.state_dir / "models")
    daemon.wait_for_log("another program changed or deleted state.json; edged restores the file")
    wait_until(lambda: not isinstance(copies(daemon), Exception) and copies(daemon) == {encode(before)})
    assert serving(daemon) == "1.1.0"


def test_what_was_announced_is_kept_though_somebody_deletes_it(edged, tmp_path: Path):
    with Broker(tmp_path) as broker:
        daemon = edged(f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n')
        daemon.wait_for_log("mqtt broker is running")
        wait_until((daemon.state_dir / "announced.json").exists)
        before = (daemon.state_dir / "announced.json").read_bytes()
        daemon.state_dir.rename(
            tmp_path / "deleted"
        )  # at once: the daemon would write into a folder while it is emptied
        wait_until(lambda: kept(daemon) == before)


def kept(daemon: Edged) -> bytes:
    try:
        return (daemon.state_dir / "announced.json").read_bytes()
    except OSError:
        return b""


def copies(daemon: Edged) -> set[bytes] | OSError:
    try:
        return {(shelf(daemon) / name).read_bytes() for name in ("state.json", "state.copy.json")}
    except OSError as error:
        return error


def test_a_version_whose_files_are_gone_serves_on_says_so_and_can_be_brought_again(edged, tmp_path: Path):
    daemon = edged()
    made = bundle(tmp_path, "1.1.0")
    assert edgectl(daemon, "update-model", made).code == 0
    [folder] = (shelf(daemon) / "versions").iterdir()
    shutil.rmtree(folder)
    said = daemon.wait_for_log("model motion is degraded")
    assert f"{folder} is gone: version 1.1.0 serves from memory, until a restart" in said
    assert "(install it again: edgectl update-model motion-1.1.0.edgm)" in said
    assert edgectl(daemon, "pin", "motion").code == 0  # the updater reads the disk for this
    assert serving(daemon) == "1.1.0"
    assert "is gone" in edgectl(daemon, "status").output
    assert edgectl(daemon, "pin", "motion", "--off").code == 0
    assert edgectl(daemon, "update-model", made).code == 0
    daemon.wait_for_log("model motion is running: version 1.1.0", times=2)
    assert daemon.stop() == 0
    daemon.log.clear()
    daemon.start()
    daemon.wait_for_log(" serves: ")
    assert serving(daemon) == "1.1.0"


def test_a_state_folder_that_somebody_else_has_is_not_written_to(edged, tmp_path: Path):
    daemon = edged()
    with StateLock(tmp_path / "other", "another", hint=""):
        daemon.state_dir.rename(tmp_path / "moved away")
        (tmp_path / "other").rename(daemon.state_dir)
        assert daemon.process.wait(PATIENCE) == 1
        daemon.wait_for_log(f"the state folder {daemon.state_dir} is in use by another (process {os.getpid()})")
        assert [file.name for file in daemon.state_dir.iterdir()] == ["holder.json"]


def test_a_control_socket_that_is_deleted_is_made_anew(edged):
    daemon = edged()
    watching = connect(str(daemon.runtime_dir)).stream(WATCH)
    next(watching)
    for file in daemon.runtime_dir.iterdir():
        file.unlink()
    daemon.wait_for_log("was deleted or replaced, and is made again")
    wait_until(lambda: answers(daemon))
    assert next(watching)["pipeline"] == "motion"


def answers(daemon: Edged) -> bool:
    try:
        return bool(daemon.call("status"))
    except UnreachableError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
