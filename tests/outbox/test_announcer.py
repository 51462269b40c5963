import json
from collections.abc import Callable
from typing import Any

import pytest

from edged.core.description import Description, PipelineOutput
from edged.core.topics import Topics
from edged.outbox.announcer import Announcer

TOPIC = "homeassistant/device/edged_pi/config"
STATUS = "homeassistant/status"


class Broker:
    """Remembers what is retained, and how often each topic was sent again."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.repeated: list[str] = []
        self.handlers: dict[str, Callable[[str, bytes, bool], None]] = {}

    def publish_state(self, topic: str, payload: bytes) -> None:
        self.retained[topic] = payload

    def repeat_state(self, topic: str) -> None:
        self.repeated.append(topic)

    def subscribe(self, topic: str, handler: Callable[[str, bytes, bool], None]) -> None:
        self.handlers[topic] = handler

    def components(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.retained[TOPIC])["cmps"]
        return found


def description(*pipelines: str) -> Description:
    outputs = tuple(PipelineOutput(name, "classification", ("on", "off")) for name in pipelines)
    return Description(topics=Topics("edged", "pi"), version="1.0.0", pipelines=outputs)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def announcer(broker: Broker) -> Announcer:
    return Announcer("homeassistant", "pi", broker, {})


def test_what_there_is_is_announced(announcer: Announcer, broker: Broker):
    announcer.announce(description("door"))
    assert broker.components()["pipeline_door_class"]["options"] == ["on", "off", "none"]


def test_a_pipeline_that_is_gone_is_taken_back(announcer: Announcer, broker: Broker):
    announcer.announce(description("door", "window"))
    announcer.announce(description("door"))
    assert broker.components()["pipeline_window_class"] == {"p": "sensor"}
    assert "unique_id" in broker.components()["pipeline_door_class"]


def test_what_went_while_the_daemon_was_away_is_learnt_from_the_broker_and_taken_back(
    announcer: Announcer, broker: Broker
):
    announcer.announce(description("door", "window"))
    old = broker.retained[TOPIC]
    restarted = Announcer("homeassistant", "pi", broker, {})
    restarted.announce(description("door"))
    assert "pipeline_window_class" not in broker.components()
    broker.handlers[TOPIC](TOPIC, old, True)
    assert broker.components()["pipeline_window_class"] == {"p": "sensor"}


def test_the_echo_of_an_announcement_is_no_news(announcer: Announcer, broker: Broker):
    announcer.announce(description("door"))
    said = broker.retained[TOPIC]
    broker.handlers[TOPIC](TOPIC, b'{"cmps": {"pipeline_x_class": {"p": "sensor", "unique_id": "x"}}}', False)
    assert broker.retained[TOPIC] == said


def test_what_is_no_announcement_of_ours_changes_nothing(announcer: Announcer, broker: Broker):
    announcer.announce(description("door"))
    said = broker.retained[TOPIC]
    broker.handlers[TOPIC](TOPIC, b"\xff not JSON", True)
    assert broker.retained[TOPIC] == said


def test_home_assistant_is_told_again_when_it_restarts(announcer: Announcer, broker: Broker):
    announcer.announce(description("door"))
    broker.handlers[STATUS](STATUS, b"offline", False)
    assert broker.repeated == []
    broker.handlers[STATUS](STATUS, b"online", False)
    assert broker.repeated == [TOPIC]


def test_what_went_while_the_daemon_was_away_is_taken_back_by_the_names_that_were_kept(broker: Broker):
    announcer = Announcer("homeassistant", "pi", broker, {"pipeline_window_class": "sensor"})
    announcer.announce(description("door"))
    assert broker.components()["pipeline_window_class"] == {"p": "sensor"}
    assert "pipeline_window_class" in announcer.known
    broker.handlers[TOPIC](TOPIC, broker.retained[TOPIC], False)  # the broker has it
    assert set(announcer.known) == {"state", "pipeline_door_problem", "pipeline_door_class", "pipeline_door_score"}
