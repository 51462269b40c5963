import json

import pytest

from edged.api import ControlError
from edged.desired import Desires, Wish
from edged.models.bare import Bare
from edged.models.job import Event, Job, Options

TOPIC = "edged/board/models/motion/desired"
DIGEST = "ab" * 32


class Fetches:
    """Remembers what it was asked to fetch; refuses once it is `full`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.bare: list[Bare | None] = []
        self.full = False

    def fetch(self, url: str, options: Options, model: str = "") -> Job:
        if self.full:
            raise ControlError("too many are under way")
        self.asked.append((url, options.origin))
        self.bare.append(options.bare)
        return Job("fetch-1", options)


class Models:
    """There is motion, and of it one version."""

    def knows(self, model: str) -> bool:
        return model == "motion"

    def has(self, model: str, wish: Wish) -> bool:
        return wish.digest == DIGEST


@pytest.fixture
def fetches() -> Fetches:
    return Fetches()


@pytest.fixture
def said() -> list[Event]:
    return []


@pytest.fixture
def desires(fetches: Fetches, said: list[Event]) -> Desires:
    return Desires(fetches, Models(), said.append)


def test_a_wish_says_where_to_look(desires: Desires, fetches: Fetches):
    desires.hear(TOPIC, b'{"url": "https://models.example/motion-1.1.edgm", "version": "1.1"}')
    assert fetches.asked == [("https://models.example/motion-1.1.edgm", "mqtt: https://models.example/motion-1.1.edgm")]


def test_a_bare_file_is_wished_for_by_its_version(desires: Desires, fetches: Fetches):
    desires.hear(TOPIC, b'{"url": "https://models.example/m.tflite?edition=7", "version": "1.1"}')
    desires.hear(TOPIC, b'{"url": "https://models.example/m.edgd", "version": "1.1"}')
    assert fetches.bare == [Bare(model="motion", version="1.1"), None]


def test_what_serves_already_is_not_fetched(desires: Desires, fetches: Fetches):
    desires.hear(TOPIC, json.dumps({"url": "https://models.example/m.edgm", "digest": DIGEST}).encode())
    assert fetches.asked == []


def test_a_password_in_a_url_goes_no_further(desires: Desires, fetches: Fetches):
    desires.hear(TOPIC, b'{"url": "https://user:secret@models.example/m.edgm"}')
    ((_, origin),) = fetches.asked
    assert "secret" not in origin


@pytest.mark.parametrize(
    "payload",
    [
        b"https://models.example/m.edgm",
        b"\xff\xfe",
        b'{"version": "1.1"}',
        b'{"url": ""}',
        b'{"url": "https://a\\nedged: all is well"}',
        b'{"url": "https://a", "x": ' + b"[" * 4000 + b"]" * 4000 + b"}",
        b'{"url": "https://models.example/m.tflite"}',
        b'{"url": "https://a", "digest": "../../etc"}',
        b'{"url": "https://a", "x": "' + b"y" * 10_000 + b'"}',
    ],
)
def test_what_is_not_understood_is_refused(desires: Desires, fetches: Fetches, said: list[Event], payload: bytes):
    desires.hear(TOPIC, payload)
    assert fetches.asked == []
    assert [(event.model, event.outcome) for event in said] == [("motion", "refused")]
    assert "is not understood: " in said[0].text


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (TOPIC, b""),
        ("edged/board/models/../desired", b'{"url": "https://a"}'),
        ("edged/board/models/motion/state", b'{"url": "https://a"}'),
        ("edged/board/models/whatever/desired", b'{"url": "https://a"}'),
    ],
)
def test_what_is_no_wish_for_a_model_there_is_changes_nothing(
    desires: Desires, fetches: Fetches, said: list[Event], topic: str, payload: bytes
):
    desires.hear(topic, payload)
    assert (fetches.asked, said) == ([], [])


def test_a_wish_that_cannot_be_followed_is_refused_and_forgotten(desires: Desires, fetches: Fetches, said: list[Event]):
    fetches.full = True
    desires.hear(TOPIC, b'{"url": "https://user:secret@models.example/m.edgm"}')
    ((text, outcome),) = [(event.text, event.outcome) for event in said]
    assert outcome == "refused"
    assert text.endswith("models.example/m.edgm cannot be fetched: too many are under way")
    assert "secret" not in text
