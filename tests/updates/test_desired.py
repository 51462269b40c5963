import asyncio
import contextlib
import json
from collections.abc import Callable

import pytest

from edged.api import ControlError
from edged.models.bare_file import Bare
from edged.updates.desired import DesiredVersion, DesiredVersionPoller, first_pause, pause
from edged.updates.jobs import Event, InstallOptions, Job, Wanted

TOPIC = "edged/board/models/motion/desired"
DIGEST = "ab" * 32


class Fetches:
    """Fetcher that records requests, ends each job as stated by `ending`, and refuses once `full`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.bare: list[Bare | None] = []
        self.wanted: list[Wanted] = []
        self.full = False
        self.ending = "failed"
        self.fetched = True
        self.under_way: Job | None = None

    def fetch(self, url: str, options: InstallOptions, model: str, wanted: Wanted) -> Job:
        if self.full:
            raise ControlError("too many are under way")
        self.asked.append((url, options.origin))
        self.bare.append(options.bare)
        self.wanted.append(wanted)
        job = Job("fetch-1", options, fetched=self.fetched)
        job.end(self.ending, "as the test says")  # type: ignore[arg-type]
        return job

    def desired_job(self, model: str) -> Job | None:
        return self.under_way

    @property
    def urls(self) -> list[str]:
        return [url for url, _ in self.asked]


class Models:
    """Models with a single version of motion."""

    def knows(self, model: str) -> bool:
        return model == "motion"

    def has(self, model: str, desired: DesiredVersion) -> bool:
        return desired.digest == DIGEST


@pytest.fixture
def fetches() -> Fetches:
    return Fetches()


@pytest.fixture
def said() -> list[Event]:
    return []


@pytest.fixture
def poller(fetches: Fetches, said: list[Event]) -> DesiredVersionPoller:
    return DesiredVersionPoller(fetches, Models(), said.append, chance=lambda: 0.0)


def play(poller: DesiredVersionPoller, *steps: Callable[[], object]) -> None:
    """Perform these steps, with a poll after each."""

    async def run() -> None:
        running = asyncio.create_task(poller.run())
        for step in steps:
            step()
            for _ in range(20):  # turns of the event loop, enough for all tasks
                await asyncio.sleep(0)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(run())


def hear(poller: DesiredVersionPoller, payload: bytes) -> None:
    play(poller, lambda: poller.receive(TOPIC, payload))


def test_a_wish_says_where_to_look(poller: DesiredVersionPoller, fetches: Fetches):
    hear(poller, b'{"url": "https://models.example/motion-1.1.edgm", "version": "1.1"}')
    assert fetches.asked == [("https://models.example/motion-1.1.edgm", "mqtt: https://models.example/motion-1.1.edgm")]


def test_a_bare_file_is_wished_for_by_its_version(poller: DesiredVersionPoller, fetches: Fetches):
    play(
        poller,
        lambda: poller.receive(TOPIC, b'{"url": "https://models.example/m.tflite?edition=7", "version": "1.1"}'),
        lambda: poller.receive(TOPIC, b'{"url": "https://models.example/m.edgd", "version": "1.1"}'),
    )
    assert fetches.bare == [Bare(model="motion", version="1.1"), None]
    assert fetches.wanted == [Wanted(), Wanted(version="1.1")]


def test_a_wish_says_which_version_may_come(poller: DesiredVersionPoller, fetches: Fetches):
    wish = {"url": "https://models.example/m.edgm", "digest": "cd" * 32, "version": "1.1"}
    hear(poller, json.dumps(wish).encode())
    assert fetches.wanted == [Wanted(digest="cd" * 32, version="1.1")]


def test_what_serves_already_is_not_fetched(poller: DesiredVersionPoller, fetches: Fetches):
    hear(poller, json.dumps({"url": "https://models.example/m.edgm", "digest": DIGEST}).encode())
    assert fetches.asked == []


def test_a_password_in_a_url_goes_no_further(poller: DesiredVersionPoller, fetches: Fetches):
    hear(poller, b'{"url": "https://user:secret@models.example/m.edgm"}')
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
        b'{"url": "ftp://models.example/m.edgm"}',
        b'{"url": "file:///etc/passwd"}',
        b'{"url": "https://models.example:99999/m.edgm"}',
        b'{"url": "https://a", "digest": "../../etc"}',
        b'{"url": "https://a", "x": "' + b"y" * 10_000 + b'"}',
    ],
)
def test_what_is_not_understood_is_refused(
    poller: DesiredVersionPoller, fetches: Fetches, said: list[Event], payload: bytes
):
    hear(poller, payload)
    assert fetches.asked == []
    assert [(event.model, event.outcome) for event in said] == [("motion", "refused")]
    assert said[0].text.startswith("invalid message on .../models/motion/desired: ")


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
    poller: DesiredVersionPoller, fetches: Fetches, said: list[Event], topic: str, payload: bytes
):
    play(poller, lambda: poller.receive(topic, payload))
    assert (fetches.asked, said) == ([], [])


def test_a_wish_that_cannot_be_followed_is_told(poller: DesiredVersionPoller, fetches: Fetches, said: list[Event]):
    fetches.full = True
    hear(poller, b'{"url": "https://user:secret@models.example/m.edgm"}')
    ((text, outcome),) = [(event.text, event.outcome) for event in said]
    assert outcome == "failed"
    assert text.endswith("models.example/m.edgm cannot be fetched: too many are under way")
    assert "secret" not in text


# Wishes stand

A = b'{"url": "https://models.example/a.edgm"}'
B = b'{"url": "https://models.example/b.edgm"}'
SHORT = 1e-9
"""Seconds between two polls, over before a turn of the loop."""


def test_a_wish_that_failed_is_looked_at_again(poller: DesiredVersionPoller, fetches: Fetches):
    play(poller, lambda: poller.configure({}, SHORT, "board"), lambda: poller.receive(TOPIC, A))
    assert len(fetches.asked) > 2
    assert set(fetches.urls) == {"https://models.example/a.edgm"}


def test_a_wish_that_could_not_even_be_begun_is_looked_at_again(poller: DesiredVersionPoller, fetches: Fetches):
    fetches.full = True
    poller.configure({}, SHORT, "board")
    play(poller, lambda: poller.receive(TOPIC, A), lambda: setattr(fetches, "full", False))
    assert fetches.urls[:1] == ["https://models.example/a.edgm"]


def test_a_wish_that_was_taken_back_is_not_looked_at_again(poller: DesiredVersionPoller, fetches: Fetches):
    counts: list[int] = []
    poller.configure({}, SHORT, "board")
    play(
        poller,
        lambda: poller.receive(TOPIC, A),
        lambda: poller.receive(TOPIC, b""),
        lambda: counts.append(len(fetches.asked)),
        lambda: counts.append(len(fetches.asked)),
    )
    assert counts[0] == counts[1] > 0


def test_the_latest_wish_stands(poller: DesiredVersionPoller, fetches: Fetches):
    poller.configure({}, SHORT, "board")
    play(poller, lambda: poller.receive(TOPIC, A), lambda: poller.receive(TOPIC, B))
    first_b = fetches.urls.index("https://models.example/b.edgm")
    assert set(fetches.urls[first_b:]) == {"https://models.example/b.edgm"}


@pytest.mark.parametrize(
    ("ending", "fetched", "looks_again"),
    [("refused", True, False), ("rolled_back", True, False), ("failed", True, True), ("refused", False, True)],
)
def test_a_bare_file_that_was_judged_is_not_fetched_again(
    poller: DesiredVersionPoller, fetches: Fetches, ending: str, fetched: bool, looks_again: bool
):
    """Only a fetch could show that the file is unchanged; a pin may be removed without a fetch."""
    fetches.ending, fetches.fetched = ending, fetched
    poller.configure({}, SHORT, "board")
    hear(poller, b'{"url": "https://models.example/m.tflite", "version": "1.1"}')
    assert (len(fetches.asked) > 1) == looks_again


def test_a_reload_has_standing_wishes_looked_at_again(poller: DesiredVersionPoller, fetches: Fetches):
    look = lambda: poller.configure({"motion": "https://models.example/c.edgm"}, 3600, "board")  # noqa: E731
    play(poller, look, lambda: poller.receive(TOPIC, A), look)
    a, c = "https://models.example/a.edgm", "https://models.example/c.edgm"
    assert fetches.urls == [c, a, c, a, c]


def test_a_url_in_the_configuration_waits_for_the_wish_that_is_being_fetched(
    poller: DesiredVersionPoller, fetches: Fetches
):
    other = fetches.under_way = Job("fetch-0", InstallOptions())
    before: list[int] = []
    play(
        poller,
        lambda: poller.configure({"motion": "https://models.example/c.edgm"}, 3600, "board"),
        lambda: before.append(len(fetches.asked)),
        lambda: other.end("failed", "it is over"),
    )
    assert (before, fetches.urls) == ([0], ["https://models.example/c.edgm"])


# Looks are spread in time


def test_a_device_looks_at_a_moment_of_its_own_within_the_spread():
    wish = DesiredVersion(url="https://models.example/a.edgm", digest=DIGEST, spread=3600)
    delays = [wish.delay(f"board-{number}") for number in range(1000)]
    assert delays == [wish.delay(f"board-{number}") for number in range(1000)]
    assert 0 <= min(delays) < 36
    assert 3564 < max(delays) < 3600
    assert max(sum(delay // 36 == part for delay in delays) for part in range(100)) < 30
    assert wish.delay("board-1") != DesiredVersion(url=wish.url, digest="cd" * 32, spread=3600).delay("board-1")


def test_without_a_spread_a_wish_is_looked_at_at_once():
    assert DesiredVersion(url="https://models.example/a.edgm").delay("board") == 0


@pytest.mark.parametrize("spread", ["-1", "1e9", "null", '"60"'])
def test_a_spread_is_a_number_of_seconds(poller: DesiredVersionPoller, said: list[Event], spread: str):
    hear(poller, b'{"url": "https://a", "spread": %b}' % spread.encode())
    assert [event.outcome for event in said] == ["refused"]


def test_a_wish_with_a_spread_is_not_looked_at_at_once_nor_after_a_reload(
    poller: DesiredVersionPoller, fetches: Fetches
):
    wish = b'{"url": "https://models.example/a.edgm", "spread": 86400}'
    play(
        poller, lambda: poller.configure({}, 10, "b"), lambda: poller.receive(TOPIC, wish),
        lambda: poller.configure({}, 10, "b"), lambda: poller.receive(TOPIC, wish),
    )  # fmt: skip
    assert fetches.asked == []


def test_the_first_look_after_a_start_comes_within_a_minute_and_the_others_at_their_own_times():
    assert [first_pause(3600, chance) for chance in (0, 0.5, 1)] == [0, 30, 60]
    assert [first_pause(10, chance) for chance in (0, 0.5, 1)] == [0, 0.5, 1]
    assert [pause(3600, chance) for chance in (0, 0.5, 1)] == [2700, 3600, 4500]
