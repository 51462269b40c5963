"""Pictures from a source to pipelines: fitted once, counted if unreadable, supervised like samples."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edged.api import Chunk, DeviceError, Source, SourceConfig, SourceInfo
from edged.core.errors import PictureError
from edged.core.health import Health, Status
from edged.core.pictures import PictureForm, PictureSpec, place
from edged.core.source_health import DROPPED, UNREADABLE, Supervision
from edged.flow.reader import Reader

SMALL, LARGE = (PictureForm(PictureSpec(width=side, height=side)) for side in (2, 4))
HINT = "check the camera"


@dataclass
class FakePicture:
    """Picture of one brightness, and the forms asked for."""

    value: int = 0
    problem: Exception | None = None
    width: int = 8
    height: int = 8
    scaled: list[PictureForm] = field(default_factory=list)
    memory: dict[PictureForm, Any] = field(default_factory=dict)

    def fitted(self, form):
        if self.problem:
            raise self.problem
        if form not in self.memory:
            self.scaled.append(form)
            self.memory[form] = np.full(form.spec.shape, self.value, np.uint8)
        return self.memory[form]

    def placement(self, form):
        return place(form, self.width, self.height)

    def jpeg(self, boxes=(), max_width=0):
        return b""


def truncated(place: int = 1) -> FakePicture:
    return FakePicture(problem=PictureError(f"a picture is truncated at byte {place}", hint=HINT))


def chunk(picture: FakePicture) -> Chunk:
    return Chunk(np.full((1, 5), picture.value, np.uint8), 100.0, picture=picture)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Camera:
    """Opened camera that plays pictures; a number is a time to pass, and a table the faults from then on."""

    def __init__(self, acts: list[Any], clock: Clock) -> None:
        self.faults: dict[str, int] = {}
        self._acts = deque(acts)
        self._clock = clock

    def read(self, timeout: float) -> Chunk | None:
        if not self._acts:
            raise EOFError
        act = self._acts.popleft()
        if isinstance(act, FakePicture):
            return chunk(act)._replace(time=self._clock.now)
        if isinstance(act, dict):
            self.faults = act
        else:
            self._clock.now += act
        return None

    def close(self) -> None:
        pass


class CameraOptions(SourceConfig, frozen=True, kw_only=True):
    openings: list[list[Any]]
    clock: Clock
    eventful: bool = False

    def describe(self) -> SourceInfo:
        return SourceInfo(shape=(), pictures=True, eventful=self.eventful)

    def open(self) -> Source:
        return Camera(self.openings.pop(0), self.clock)


class Feed:
    """Pipeline that keeps the brightness of each picture."""

    name = "find"

    def __init__(self, form: PictureForm) -> None:
        self.form = form
        self.values: list[int] = []

    def push(self, chunk: Chunk) -> None:
        assert chunk.picture is not None
        self.values.append(int(chunk.picture.fitted(self.form)[0, 0, 0]))


def played(*openings: list[Any], feeds=(), supervision=None, **options) -> tuple[Reader, list[Health]]:
    """Return the reader after all openings have been played, and its states."""
    clock, states = Clock(), []
    reader = Reader(
        "yard",
        CameraOptions(openings=[*openings], clock=clock, **options),
        tuple(feeds),
        Status("source/yard", clock, lambda _, health: states.append(health)),
        clock,
        supervision or Supervision(retry_min=0.001, retry_max=0.001),
    )
    reader.start()
    assert reader.join(120)
    return reader, states


def words(states):
    return [(health.state, health.reason, health.hint) for health in states]


def test_pipelines_that_want_the_same_share_one_scaling():
    picture = FakePicture(7)
    feeds = [Feed(SMALL), Feed(LARGE), Feed(PictureForm(PictureSpec(width=2, height=2)))]
    reader, states = played([picture], feeds=feeds)
    assert picture.scaled == [SMALL, LARGE]
    assert [feed.values for feed in feeds] == [[7], [7], [7]]
    assert (reader.samples, reader.faults) == (1, {})
    assert states[0].state == "running"


def test_an_unreadable_picture_is_counted_and_the_next_one_served():
    feed = Feed(SMALL)
    reader, states = played([FakePicture(1), truncated(), FakePicture(2)], feeds=[feed])
    assert feed.values == [1, 2]
    assert (reader.samples, reader.faults) == (2, {UNREADABLE: 1})
    assert reader.refused == "a picture is truncated at byte 1"
    assert reader.feed_errors == 0
    assert {state.state for state in states} == {"running", "stopped"}


def test_unreadable_pictures_in_a_row_are_a_state_with_a_remedy_and_end_with_a_good_one():
    acts = [
        FakePicture(),
        *(step for place in range(9) for step in (truncated(place), 1.0)),
        *(step for _ in range(20) for step in (FakePicture(), 1.0)),
    ]
    _, states = played(acts, feeds=[Feed(SMALL)])
    assert words(states) == [
        ("running", "", ""),
        ("degraded", "stalled: a picture is truncated at byte 0", HINT),
        ("degraded", "mostly garbage", "check the camera and its connection; see rejected input in `edgectl sources`"),
        ("running", "", ""),
        ("stopped", "the recording has ended", ""),
    ]


def test_a_missing_pillow_fails_the_source():
    missing = FakePicture(problem=DeviceError("reading pictures takes Pillow", hint="pip install 'edged[image]'"))
    reader, states = played([missing], [FakePicture(3)], feeds=[Feed(SMALL)])
    assert words(states)[0] == ("failed", "reading pictures takes Pillow", "pip install 'edged[image]'")
    assert reader.samples == 1


def test_a_frozen_picture_is_a_state():
    frozen = [step for _ in range(40) for step in (FakePicture(5), 1.0)]
    _, states = played([*frozen, FakePicture(6), 1.0])
    assert words(states)[:3] == [
        ("running", "", ""),
        (
            "degraded",
            "frozen: identical pictures for 30 s",
            "restart the camera; for a picture that may stay the same, set supervision.flat_after = 0",
        ),
        ("running", "", ""),
    ]


def test_pictures_dropped_to_hold_the_rate_are_no_garbage():
    acts = [step for count in range(20) for step in ({DROPPED: 30 * count}, FakePicture(count), 1.0)]
    reader, states = played(acts)
    assert {state.state for state in states} == {"running", "stopped"}
    assert reader.faults == {DROPPED: 570}


@pytest.mark.parametrize(("eventful", "expected"), [(False, "degraded"), (True, "running")])
def test_a_source_of_events_may_be_silent(eventful, expected):
    _, states = played([1.0, 3600.0, 1.0], eventful=eventful)
    assert states[0].state == expected


def test_a_long_silence_after_a_picture_is_not_a_frozen_picture():
    _, states = played([FakePicture(1), 3600.0, FakePicture(2), 1.0], eventful=True)
    assert {state.state for state in states} == {"running", "stopped"}
