"""Fakes to open a sink with, and predictions to send."""

from __future__ import annotations

from typing import Any

from edged.api import Anomaly, Classification, Message, Outcome, Prediction, Regression, Score, SinkContext, Topics

WALKING = Classification("walking", 0.75, (Score("walking", 0.75), Score("resting", 0.25)), "walking", True)
LEVELS = Regression({"level": 1.5, "flow": -2.0})
STRANGE = Anomaly(0.5, 0.125, True, False)


class FakeOutbox:
    """Outbox with every message in the list `messages`."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def put(self, message: Message) -> None:
        """Append the message."""
        self.messages.append(message)


class FixedClock:
    """Wall clock, `ahead` seconds ahead of the monotonic clock."""

    def __init__(self, ahead: float = 1_700_000_000.0, *, synchronised: bool = True) -> None:
        self.ahead = ahead
        self.synchronised = synchronised

    def at(self, monotonic: float) -> float:
        """Return the Unix time at a monotonic time."""
        return monotonic + self.ahead

    def knows(self, monotonic: float) -> bool:
        """Return whether the wall clock was synchronised at a monotonic time."""
        return self.synchronised


def prediction(seq: int = 1, outcome: Outcome = WALKING, pipeline: str = "motion") -> Prediction:
    """Return a prediction of the model gait 1.2."""
    return Prediction(pipeline, "gait", "1.2", seq, 10.0, 12.0, 0.0078125, 0.00390625, outcome)


def context(**fields: Any) -> SinkContext:
    """Return the context of a sink on the device "board", with `fields` replaced."""
    given = {"device": "board", "boot": "b00t", "topics": Topics("edged", "board")}
    return SinkContext(**{**given, "outbox": FakeOutbox(), "clock": FixedClock(), **fields})
