import json
from pathlib import Path

import pytest

from edged.api import Topics
from edged.sinks.mqtt import MqttSink
from edged.testing.fakes import FakeOutbox, context, prediction
from edged.testing.sink_contract import SinkContract


class TestMqttSink(SinkContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> MqttSink:
        return MqttSink()


def test_a_prediction_becomes_a_message_for_its_pipelines_topic() -> None:
    outbox = FakeOutbox()
    sink = MqttSink(qos=0, expiry=60).open(context(outbox=outbox, topics=Topics("site/edged", "board")))
    sink.send(prediction(7))

    [message] = outbox.messages
    assert message.topic == "site/edged/board/pipelines/motion/result"
    assert (message.origin, message.seq, message.qos, message.expiry) == ("motion", 7, 0, 60)
    assert message.created == 12.0078125
    assert message.properties == (
        ("schema", "edged.result/1"),
        ("id", "b00t:motion:7"),
        ("model", "gait"),
        ("version", "1.2"),
    )
    assert json.loads(message.payload)["id"] == "b00t:motion:7"


def test_it_never_waits_and_so_needs_no_thread() -> None:
    assert not MqttSink.blocking
