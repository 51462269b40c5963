"""Home Assistant's view, through a real mosquitto."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.core.description import Description, PipelineOutput
from edged.core.health import Status
from edged.core.topics import Topics
from edged.outbox.announcer import Announcer
from edged.outbox.options import MqttOptions
from edged.outbox.publisher import Publisher
from edged.outbox.spool import MemorySpool
from tests.broker import PATIENCE, Broker, Subscriber

CONFIG = "homeassistant/device/edged_board/config"
TOPICS = Topics("edged", "board")
PUMP = PipelineOutput("pump", "anomaly")
MOTION = PipelineOutput("motion", "classification", labels=("walking", "resting"))


class Daemon:
    """A publisher with an announcer that has announced some pipelines."""

    def __init__(self, port: int, *pipelines: PipelineOutput) -> None:
        status = Status("mqtt", time.monotonic, lambda name, health: None)
        spool = MemorySpool(max_messages=10, max_bytes=1 << 20, clock=time.monotonic)
        self.publisher = Publisher(MqttOptions(host="127.0.0.1", port=port), TOPICS, spool, status)
        self._announcer = Announcer(self.publisher, "homeassistant", "board")
        self.announce(*pipelines)
        self.publisher.start()

    def announce(self, *pipelines: PipelineOutput) -> None:
        self._announcer.announce(Description(topics=TOPICS, version="1.0", pipelines=pipelines))

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.stop(PATIENCE)
        assert self.publisher.join(PATIENCE)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def home_assistant(broker: Broker) -> Iterator[Subscriber]:
    with Subscriber(broker.port, CONFIG, TOPICS.availability) as subscriber:
        yield subscriber


def pump_components(home_assistant: Subscriber) -> dict[str, object]:
    components = json.loads(home_assistant.wait_for(CONFIG).payload)["cmps"]
    return {name: component for name, component in components.items() if "pump" in name}


STUBS = {
    "pipeline_pump_anomaly": {"p": "binary_sensor"},
    "pipeline_pump_problem": {"p": "binary_sensor"},
    "pipeline_pump_score": {"p": "sensor"},
}


def test_the_announcement_comes_before_online(broker: Broker, home_assistant: Subscriber) -> None:
    with Daemon(broker.port, MOTION):
        assert [home_assistant.next().topic for _ in range(2)] == [CONFIG, TOPICS.availability]


def test_it_is_repeated_when_home_assistant_starts(broker: Broker, home_assistant: Subscriber) -> None:
    with Daemon(broker.port, MOTION):
        first = home_assistant.wait_for(CONFIG).payload
        home_assistant.client.publish("homeassistant/status", "online", qos=1)

        assert home_assistant.wait_for(CONFIG).payload == first


def test_a_removed_pipeline_is_removed_once(broker: Broker, home_assistant: Subscriber) -> None:
    with Daemon(broker.port, MOTION, PUMP) as daemon:
        assert len(pump_components(home_assistant)) == 3
        daemon.announce(MOTION)
        assert pump_components(home_assistant) == STUBS
        home_assistant.client.publish("homeassistant/status", "online", qos=1)
        assert pump_components(home_assistant) == {}


def test_a_pipeline_that_was_removed_while_we_were_down_goes_too(broker: Broker, home_assistant: Subscriber) -> None:
    with Daemon(broker.port, MOTION, PUMP):
        home_assistant.wait_for(TOPICS.availability, b"online")
    with Daemon(broker.port, MOTION):
        home_assistant.wait_for(TOPICS.availability, b"stopped")
        while (found := pump_components(home_assistant)) != STUBS:
            assert found == {}
