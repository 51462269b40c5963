"""The real daemon on boards with a wrong clock: in 1970, as without a battery, and in 2100.

Validity dates of keys are compared with the clock or, if later, the newest signed time seen by the board.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests import signing
from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.motion import ROOT, bundle, config, edgectl, incoming, ledger, litter, seal, serving

DONE, REFUSED = 0, 6
SPRING, SUMMER = (int(datetime(2026, month, 15, tzinfo=UTC).timestamp()) for month in (3, 6))
FAR = int(datetime(2034, 6, 15, tzinfo=UTC).timestamp())
SIGNERS = """
always@example.org namespaces="edged-bundle" {always}
young@example.org namespaces="edged-bundle",valid-after="20260101" {young}
spring@example.org namespaces="edged-bundle",valid-after="20260101",valid-before="20260401" {spring}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    made = tmp_path_factory.mktemp("clock") / "clock.so"
    source = ROOT / "tests" / "data" / "clock.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, source], check=True)
    return made


@pytest.fixture
def board_in(tmp_path: Path, library: Path) -> Iterator[Callable[[int], Edged]]:
    """Return a function that starts, in a given year, a board that trusts three keys."""
    boards: list[Edged] = []
    keys = {name: signing.make_key(tmp_path, name) for name in ("always", "young", "spring")}
    (tmp_path / "signers").write_text(SIGNERS.format(**{name: signing.public(key) for name, key in keys.items()}))
    policy = f'[updates]\nrequire_signature = true\nallowed_signers = "{tmp_path}/signers"\n'

    def start(year: int, *, synchronised: bool = False) -> Edged:
        shift = round(datetime(year, 1, 2, tzinfo=UTC).timestamp() - time.time())
        environ = {"CLOCK_SYNCHRONISED": "1"} if synchronised else {}
        daemon = Edged(tmp_path, config() + policy, LD_PRELOAD=str(library), CLOCK_SHIFT=str(shift), **environ)
        boards.append(daemon)
        daemon.start()
        assert f"{year}-01-0" in daemon.wait_for_log(" serves: ")
        return daemon

    yield start
    for daemon in boards:
        daemon.__exit__()


def signed(folder: Path, version: str, who: str, created: int = 0) -> Path:
    """Return a version with a time of creation, signed by a key."""
    made = bundle(folder, version, created=created)
    seal(made, folder / who)
    return made


def test_a_version_of_a_day_that_is_yet_to_come_is_refused_where_the_clock_is_right(
    tmp_path: Path, board_in: Callable[..., Edged]
):
    """Such a version would exclude all keys that expire before that day."""
    daemon = board_in(2026, synchronised=True)
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.1.0", "always", FAR))
    assert (said.code, "made on 2034-06-15, and today is 2026-01-0" in said.output) == (REFUSED, True), said.output
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.2.0", "spring"))
    assert said.code == DONE, said.output


def test_a_version_of_a_day_that_is_yet_to_come_does_no_harm_once_the_clock_is_right(
    tmp_path: Path, board_in: Callable[..., Edged]
):
    daemon = board_in(2026)
    assert edgectl(daemon, "update-model", signed(tmp_path, "1.1.0", "always", FAR)).code == DONE
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.2.0", "spring"))
    assert (said.code, "no longer valid on 2034-06-15" in said.output) == (REFUSED, True), said.output
    assert daemon.stop() == 0
    daemon = board_in(2026, synchronised=True)
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.2.0", "spring"))
    assert said.code == DONE, said.output


@pytest.mark.parametrize("year", [1970, 2100])
def test_versions_come_and_go_in_any_year(year: int, tmp_path: Path, board_in: Callable[[int], Edged]):
    daemon = board_in(year)
    for version in ("1.1.0", "1.2.0"):
        said = edgectl(daemon, "update-model", signed(tmp_path, version, "always"))
        assert said.code == DONE, said.output
        assert serving(daemon) == version
    assert edgectl(daemon, "rollback", "motion").output == "motion is rolled back; 1.1.0 serves\n"
    assert daemon.stop() == 0
    daemon.log.clear()
    daemon.start()
    daemon.wait_for_log(" serves: ")
    assert serving(daemon) == "1.1.0"
    assert ledger(daemon).floor == "1.2.0"
    assert litter(daemon) == incoming(daemon) == set()


def test_a_board_in_1970_goes_by_what_it_has_seen(tmp_path: Path, board_in: Callable[[int], Edged]):
    daemon = board_in(1970)
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.1.0", "young"))
    assert (said.code, "is not yet valid on 1970-01-02" in said.output) == (REFUSED, True), said.output
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.2.0", "spring", SPRING))
    assert said.code == DONE, said.output
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.3.0", "young"))
    assert said.code == DONE, said.output  # the clock shows spring or later
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.4.0", "young", SUMMER))
    assert said.code == DONE, said.output
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.5.0", "spring", SPRING))
    assert (said.code, "is no longer valid on 2026-06-15" in said.output) == (REFUSED, True), said.output
    assert serving(daemon) == "1.4.0"
    assert daemon.stop() == 0
    assert litter(daemon) == incoming(daemon) == set()


def test_a_board_in_2100_says_that_a_key_is_over(tmp_path: Path, board_in: Callable[[int], Edged]):
    daemon = board_in(2100)
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.1.0", "spring", SPRING))
    assert (said.code, "is no longer valid on 2100-01-02" in said.output) == (REFUSED, True), said.output
    assert "correct the clock" in said.output
    said = edgectl(daemon, "update-model", signed(tmp_path, "1.2.0", "young", SPRING))
    assert said.code == DONE, said.output
    assert litter(daemon) == incoming(daemon) == set()


TWO_DAYS = 2 * 86400
BROKER = '[mqtt]\nhost = "127.0.0.1"\nport = {port}\n'


@pytest.fixture
def set_later(tmp_path: Path, library: Path) -> Iterator[Callable[..., tuple[Edged, Subscriber, Callable[[], None]]]]:
    """Return a board, a subscriber, and a function that sets the clock two days ahead."""
    with contextlib.ExitStack() as opened:

        def start(**environ: str) -> tuple[Edged, Subscriber, Callable[[], None]]:
            fifo = tmp_path / "set"
            os.mkfifo(fifo)
            broker = opened.enter_context(Broker(tmp_path))
            subscriber = opened.enter_context(Subscriber(broker.port, "edged/board/#"))
            environ = {"CLOCK_SHIFT": str(TWO_DAYS), "CLOCK_SET": str(fifo), "LD_PRELOAD": str(library), **environ}
            daemon = Edged(tmp_path, config() + BROKER.format(port=broker.port), **environ)
            opened.enter_context(daemon)
            return daemon, subscriber, lambda: fifo.write_bytes(b"set") and None

        yield start


def test_no_result_is_vouched_for_across_a_jump(set_later):
    daemon, subscriber, set_clock = set_later(CLOCK_SYNCHRONISED="1")

    def result() -> dict[str, Any]:
        return json.loads(subscriber.wait_for("edged/board/pipelines/motion/result").payload)  # type: ignore[no-any-return]

    before = result()
    set_clock()
    results = [result()]
    while len(results) < 2000 and not (
        results[-1]["synchronised"] and results[-1]["time"] > before["time"] + TWO_DAYS / 2
    ):
        results.append(result())
    daemon.wait_for_log("the clock was set: jump by +17280")
    states = [(each["time"] - before["time"] > TWO_DAYS / 2, each["synchronised"]) for each in results]
    assert [state for state, _ in groupby(states)][-2:] == [(True, False), (True, True)]
    assert set(states) <= {(False, True), (False, False), (True, False), (True, True)}
    assert states.index((True, False)) < states.index((True, True))
    for each in results:
        assert each["time"] - each["start"] == pytest.approx(before["time"] - before["start"], abs=0.5)


def test_retained_states_are_told_by_the_clock_as_it_was_set(set_later):
    _, subscriber, set_clock = set_later()
    subscriber.wait_for("edged/board/pipelines/motion/result")
    set_clock()
    for topic in ("edged/board/sources/wrist/state", "edged/board/pipelines/motion/state"):
        subscriber.next(
            lambda message, topic=topic: (
                message.topic == topic and json.loads(message.payload)["since"] > time.time() + TWO_DAYS / 2
            )
        )
