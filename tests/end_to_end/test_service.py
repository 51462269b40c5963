"""The real daemon and a service manager, which is a datagram socket of the test."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edged_process import Edged
from tests.patience import PATIENCE

CONFIG = """
[device]
name = "board"
[sources.waves]
kind = "synthetic"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
[pipelines.motion]
source = "waves"
model = "motion"
sinks = []
"""


class ServiceManager:
    """Service manager; messages are in order of arrival."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)

    def wait_for(self, beginning: str) -> str:
        while not (said := self._socket.recv(4096).decode()).startswith(beginning):
            pass
        return said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    listening = ServiceManager(tmp_path / "notify")
    yield listening
    listening.close()


def test_the_service_manager_is_told_of_a_whole_life(manager: ServiceManager, tmp_path: Path):
    pytest.importorskip("systemd.daemon", reason="pip install edged[systemd]")
    daemon = Edged(tmp_path, CONFIG, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="1000000")
    with daemon:
        manager.wait_for("READY=1")
        assert "0 of 1 pipelines running" in manager.wait_for("STATUS=")
        manager.wait_for("WATCHDOG=1")
        daemon.reload()
        assert "MONOTONIC_USEC=" in manager.wait_for("RELOADING=1")
        manager.wait_for("READY=1")
        daemon.process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert daemon.process.wait(PATIENCE) == 0
