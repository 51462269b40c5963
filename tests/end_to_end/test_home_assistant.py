"""The real Home Assistant beside the real daemon: real templates, availability and discovery, over a real broker."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broker import Broker, Subscriber
from tests.edged_process import SerialPort
from tests.end_to_end.test_listeners import SERIAL, mqtt, replay
from tests.flaky_proxy import FlakyProxy
from tests.motion import lines

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("EDGED_HOME_ASSISTANT", ROOT / ".venv-home-assistant/bin/python"))
PATIENCE = 60.0
CLASS, PROBLEM = "sensor.board_motion", "binary_sensor.board_motion_problem"

pytestmark = [
    pytest.mark.wide,
    pytest.mark.skipif(not PYTHON.exists(), reason="packaging/set-up-home-assistant has set up none"),
]


class RealHomeAssistant:
    """Child process with Home Assistant; `history` is each entity and its new state, None for a removed entity."""

    def __init__(self, port: int) -> None:
        self.history: list[tuple[str, str | None]] = []
        self.log: list[str] = []
        self._heard = threading.Condition()
        command = [PYTHON, ROOT / "tests" / "home_assistant_child.py", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._complain, daemon=True).start()

    def wait_for(self, entity: str, state: str | None, since: int = 0) -> int:
        """Wait for a new state, and return its position in the history."""

        def found() -> int:
            wanted = (entity, state)
            return next((at for at, each in enumerate(self.history[since:], since) if each == wanted), -1)

        with self._heard:
            assert self._heard.wait_for(lambda: found() >= 0, PATIENCE), (self.history, self.log)
        return found()

    @property
    def misunderstood(self) -> list[str]:
        """Return Home Assistant's complaints about messages and templates."""
        return [line for line in self.log if any(word in line for word in ("emplate", "JSON", "nvalid"))]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._heard:
                self.history.append(tuple(json.loads(line)))
                self._heard.notify_all()

    def _complain(self) -> None:
        assert self._process.stderr is not None
        self.log += self._process.stderr

    def __enter__(self) -> "RealHomeAssistant":
        self.wait_for("mqtt", "loaded")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        print("".join(self.log))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def home(broker: Broker) -> Iterator[RealHomeAssistant]:
    with RealHomeAssistant(broker.port) as running:
        yield running


def test_a_sensor_that_dies_and_comes_back(
    tmp_path: Path, broker: Broker, home: RealHomeAssistant, edged: Callable[..., object]
):
    sensor = SerialPort(tmp_path / "imu")
    daemon = edged(mqtt(broker.port) + SERIAL.format(link=sensor.link, supervision=""))
    daemon.wait_for_log("source wrist is open")
    sensor.write(lines(0, 50))
    stood = home.wait_for(CLASS, "standing")
    sensor.unplug()
    gone = home.wait_for(CLASS, "unavailable", stood)
    home.wait_for(PROBLEM, "on")
    sensor.plug()
    daemon.wait_for_log("source wrist is open", times=2)
    sensor.write(lines(0, 50))
    home.wait_for(CLASS, "standing", gone)
    home.wait_for(PROBLEM, "off", gone)
    daemon.stop()
    home.wait_for(CLASS, "unavailable", gone + 1)
    assert not home.misunderstood


def test_an_outage_is_no_flood_and_a_removed_pipeline_is_no_entity(
    broker: Broker, home: RealHomeAssistant, edged: Callable[..., object]
):
    with FlakyProxy(broker.port) as link, Subscriber(broker.port, "edged/#") as subscriber:
        config = mqtt(link.port) + replay(100)
        daemon = edged(config)
        home.wait_for("sensor.board_replayed", "walking")
        link.refuse()
        subscriber.wait_for("edged/board/availability", b"offline")
        while daemon.call("status")["mqtt"]["spool"]["depth"] < 100:
            pass
        before = len(home.history)
        link.refuse(False)
        subscriber.next(lambda message: message.topic.endswith("/result") and b'"replayed":true' in message.payload)
        while daemon.call("status")["mqtt"]["spool"]["depth"] > 5:
            pass
        changes = [state for name, state in home.history[before:] if name == "sensor.board_replayed"]
        assert len(changes) < 20
        daemon.configure(config.replace("pipelines.replayed", "pipelines.other"))
        daemon.reload()
        home.wait_for("sensor.board_replayed", None)
        home.wait_for("sensor.board_other", "unknown")
    assert not home.misunderstood
