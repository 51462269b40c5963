"""The publisher against a real mosquitto: what it says, in which order, and that nothing is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edged.core.health import Health, Status
from edged.core.topics import Topics
from edged.core.types import Message
from edged.outbox.options import MqttOptions
from edged.outbox.publisher import Publisher, backoff
from edged.outbox.spool import MemorySpool
from tests.broker import PATIENCE, Broker, Subscriber, make_certificates

TOPICS = Topics("edged", "board")
RESULT = TOPICS.result("motion")


class Rig:
    """A publisher whose health can be awaited."""

    def __init__(self, port: int, **options: Any) -> None:
        self._healths: Queue[Health] = Queue()
        status = Status("mqtt", time.monotonic, lambda _name, health: self._healths.put(health))
        self.spool = MemorySpool(max_messages=5000, max_bytes=1 << 22, clock=time.monotonic)
        given = MqttOptions(**{"host": "127.0.0.1", "port": port, **options})
        self.publisher = Publisher(given, TOPICS, self.spool, status)

    def wait_for(self, state: str) -> Health:
        while True:
            health = self._healths.get(timeout=PATIENCE)
            if health.state == state:
                return health

    def __enter__(self) -> Rig:
        self.publisher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.stop(0)
        assert self.publisher.join(PATIENCE)


def message(seq: int, *, topic: str = RESULT, **fields: Any) -> Message:
    given = {"payload": json.dumps({"seq": seq}).encode(), "origin": "motion", "created": time.monotonic()}
    return Message(topic=topic, seq=seq, **{**given, **fields})


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_reaches_a_subscriber(broker: Broker, protocol: str) -> None:
    with Subscriber(broker.port, RESULT) as subscriber, Rig(broker.port, protocol=protocol) as rig:
        rig.publisher.put(message(1))

        arrived = subscriber.wait_for(RESULT)

        assert json.loads(arrived.payload) == {"seq": 1}
        assert (arrived.qos, arrived.retain) == (1, False)
        assert rig.publisher.protocol == protocol
