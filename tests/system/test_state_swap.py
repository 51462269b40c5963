"""The real daemon, whose files somebody deletes or replaces under its hands, and then its process is killed."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.system.test_spool import CONFIG, ENDED, results, unsaved


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
        daemon.wait_for_log("77 messages that wait were saved there again")
        assert unsaved(daemon) == 0
        daemon.stop(signal.SIGKILL)
    daemon.configure(f'[device]\nname = "board"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n')
    with broker, Subscriber(broker.port, "edged/#") as subscriber, daemon:
        assert [each["seq"] for each in results(subscriber, 77)] == list(range(77))
        assert json.loads((daemon.state_dir / "holder.json").read_text())["pid"] == daemon.process.pid
