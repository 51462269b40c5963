"""The real daemon on disks that lose data, run full or refuse: a version serves, and the fault is reported.

The loss of versions one after the other, down to none, is in test_updates.py.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.motion import FACTORY, ROOT, bundle, config, edgectl, incoming, ledger, litter, serving, shelf
from tests.power.block_log import LoggedDisk, missing

DONE = 0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Edged]:
    with Edged(tmp_path, config()) as running:
        running.wait_for_log(" serves: ")
        yield running


def restart(daemon: Edged) -> None:
    if daemon.process.poll() is None:
        daemon.stop()
    daemon.log.clear()
    daemon.start()
    daemon.wait_for_log(" serves: ")


def cut_off(version: Path) -> None:
    os.truncate(version / "model.tflite", 1000)


def empty(version: Path) -> None:
    (version / "manifest.json").write_bytes(b"")


def lose_a_file(version: Path) -> None:
    (version / "golden.npz").unlink()


def lose_all(version: Path) -> None:
    shutil.rmtree(version)


@pytest.mark.parametrize("spoil", [cut_off, empty, lose_a_file, lose_all])
def test_what_was_lost_is_stood_in_for_until_it_is_sent_again(spoil: Callable[[Path], None], tmp_path, daemon: Edged):
    new = bundle(tmp_path, "1.1.0")
    assert edgectl(daemon, "update-model", new).code == DONE
    spoil(shelf(daemon) / "versions" / str(ledger(daemon).active))
    restart(daemon)
    assert serving(daemon) == "1.0.0"
    said = edgectl(daemon, "update-model", new)
    assert said.code == DONE, said.output
    assert serving(daemon) == "1.1.0"
    assert litter(daemon) == incoming(daemon) == set()


def test_the_ledger_has_a_copy_and_without_both_there_is_what_the_folder_tells(tmp_path: Path, daemon: Edged):
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0")).code == DONE
    daemon.stop()
    (shelf(daemon) / "state.json").write_bytes(b"\0" * 500)
    restart(daemon)
    assert serving(daemon) == "1.1.0"
    daemon.stop()
    for name in ("state.json", "state.copy.json"):
        (shelf(daemon) / name).write_bytes(b"\0" * 500)
    restart(daemon)
    assert serving(daemon) == "1.1.0"
    said = edgectl(daemon, "update-model", bundle(tmp_path, "1.0.9"))
    assert "1.0.9 is older than 1.1.0" in said.output
    assert edgectl(daemon, "update-model", bundle(tmp_path, "1.2.0")).code == DONE
    assert serving(daemon) == "1.2.0"
    assert litter(daemon) == incoming(daemon) == set()


def test_a_board_without_any_model_says_so(tmp_path: Path):
    factory = tmp_path / "site" / "firmware_models" / "motion" / "1.0.0"
    shutil.copytree(FACTORY, factory)
    (tmp_path / "site" / "edged").symlink_to(ROOT / "edged")
    cut_off(factory)
    topics = [f"edged/board/{topic}" for topic in ("models/motion/state", "pipelines/motion/state", "state")]
    with Broker(tmp_path) as broker, Subscriber(broker.port, *topics) as subscriber:
        text = f'{config()}[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'
        with Edged(tmp_path, text, PYTHONPATH=str(tmp_path / "site"), PYTHONSAFEPATH="1") as daemon:
            daemon.wait_for_log(" serves: ")
            waited_for = dict.fromkeys(topics[:2], "failed") | {topics[2]: "degraded"}
            while waited_for:
                message = subscriber.next()
                state = json.loads(message.payload)
                if state["state"] == waited_for.get(message.topic):
                    assert state["reason"]
                    del waited_for[message.topic]
            assert "fetch or install the model again" in edgectl(daemon, "status").output
            assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0")).code == DONE
            assert serving(daemon) == "1.1.0"


# Disks with errors


@pytest.fixture
def card(tmp_path: Path) -> Iterator[LoggedDisk]:
    """Return the disk with the state of a board's daemon."""
    pytest.importorskip("mfusepy")
    if missing():
        pytest.skip(missing())
    with LoggedDisk(tmp_path) as card:
        yield card


def test_a_full_card(tmp_path: Path, card: LoggedDisk):
    (tmp_path / "state").symlink_to(card.mount)
    ballast = card.mount / "ballast"
    with Edged(tmp_path, config()) as daemon:
        daemon.wait_for_log(" serves: ")
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        said = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0"))
        assert said.code != DONE
        assert "free some space on that disk" in said.output
        assert serving(daemon) == "1.0.0"
        ballast.unlink()
        said = edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0"))
        assert said.code == DONE, said.output
        assert serving(daemon) == "1.1.0"
        assert litter(daemon) == incoming(daemon) == set()


def test_a_card_that_dies(tmp_path: Path, card: LoggedDisk):
    (tmp_path / "state").symlink_to(card.mount)
    with Edged(tmp_path, config()) as daemon:
        daemon.wait_for_log(" serves: ")
        assert edgectl(daemon, "update-model", bundle(tmp_path, "1.1.0")).code == DONE
        card.fail()
        said = edgectl(daemon, "update-model", bundle(tmp_path, "1.2.0"))
        assert said.code != DONE
        assert "read the kernel's log about the disk" in said.output, said.output
        assert serving(daemon) == "1.1.0"
        daemon.stop(signal.SIGKILL)
        card.fail(False)
        card.mount_again()
        daemon.log.clear()
        daemon.start()
        daemon.wait_for_log(" serves: ")
        assert serving(daemon) == "1.1.0"
        said = edgectl(daemon, "update-model", bundle(tmp_path, "1.2.0"))
        assert said.code == DONE, said.output
        assert litter(daemon) == incoming(daemon) == set()
