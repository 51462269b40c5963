"""What every sink must do. Derive a test class from `SinkContract` and override `config`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edged.api import (
    Anomaly,
    Classification,
    Message,
    Outcome,
    Prediction,
    Regression,
    Score,
    SinkConfig,
    SinkContext,
    Topics,
)


class FakeOutbox:
    """Keeps messages where a test can see them."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def put(self, message: Message) -> None:
        self.messages.append(message)


class FixedClock:
    """A wall clock that is so many seconds ahead of the monotonic one."""

    def __init__(self, ahead: float = 1_700_000_000.0, *, synchronised: bool = True) -> None:
        self.ahead = ahead
        self.synchronised = synchronised

    def at(self, monotonic: float) -> float:
        return monotonic + self.ahead

    def knows(self, monotonic: float) -> bool:
        return self.synchronised


WALKING = Classification("walking", 0.75, (Score("walking", 0.75), Score("resting", 0.25)), "walking", True)
LEVELS = Regression({"level": 1.5, "flow": -2.0})
STRANGE = Anomaly(0.5, 0.125, True, False)


def prediction(seq: int = 1, outcome: Outcome = WALKING, pipeline: str = "motion") -> Prediction:
    return Prediction(pipeline, "gait", "1.2", seq, 10.0, 12.0, 0.0078125, 0.00390625, outcome)


def context(**fields: Any) -> SinkContext:
    given = {"device": "board", "boot": "b00t", "topics": Topics("edged", "board")}
    return SinkContext(**{**given, "outbox": FakeOutbox(), "clock": FixedClock(), **fields})


class SinkContract:
    """Used by one thread; what it sends must be sent when `send` returns."""

    @pytest.fixture
    def config(self, tmp_path: Any) -> SinkConfig:
        """The sink under test, able to work."""
        raise NotImplementedError

    def test_its_options_are_frozen_and_strangers_are_refused(self, config: SinkConfig) -> None:
        table = msgspec.to_builtins(config, enc_hook=str)
        with pytest.raises(AttributeError):
            setattr(config, type(config).__struct_fields__[0], None)
        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            msgspec.convert({**table, "no_such_option": 1}, type(config), dec_hook=lambda kind, value: kind(value))

    def test_it_is_documented(self, config: SinkConfig) -> None:
        assert type(config).__doc__

    def test_it_sends_every_kind_of_outcome(self, config: SinkConfig) -> None:
        sink = config.open(context())
        for seq, outcome in enumerate((WALKING, LEVELS, STRANGE)):
            sink.send(prediction(seq, outcome))
        sink.close()

    def test_it_takes_several_pipelines(self, config: SinkConfig) -> None:
        sink = config.open(context())
        for name in ("motion", "other", "motion"):
            sink.send(prediction(pipeline=name))
        sink.close()

    def test_it_may_be_closed_twice(self, config: SinkConfig) -> None:
        sink = config.open(context())
        sink.close()
        sink.close()

    def test_it_may_be_opened_again(self, config: SinkConfig) -> None:
        for seq in range(2):
            sink = config.open(context())
            sink.send(prediction(seq))
            sink.close()
