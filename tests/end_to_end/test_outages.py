"""A day of outages: the real daemon, a mosquitto that comes and goes, and an auditor who accounts for every result.

The day is drawn from a seed: seven outages of each kind in the long form, four in the short. An outage lasts from two
minutes to two hours, and so does the calm before; then all times are scaled so that the 24 hours take SECONDS: an hour
is 20 seconds in the long form (the longest stalls outlast twice the keepalive and are noticed as half-open
connections), and a quarter of a second in the short. The daemon's retries are not scaled: the next outage waits,
outside of the scaled time, until a message has arrived after the last. The sensor is a recording, at a pace of 100
results per second in each of two pipelines.

`EDGED_SOAK=1` selects the long form (`make soak`), `EDGED_SEED` repeats a day.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edged.outbox.retry import LONGEST_RETRY
from tests.accounting import PROMISES, UNBOUNDED, Auditor, balance, line_of, said
from tests.broker import Broker
from tests.edged_process import Edged
from tests.flaky_proxy import FlakyProxy
from tests.motion import long_recording
from tests.patience import PATIENCE

SOAK = bool(os.environ.get("EDGED_SOAK"))
SECONDS, OUTAGES = (480.0, 49) if SOAK else (6.0, 4)

CONFIG = (
    """
[device]
name = "board"
[mqtt]
host = "127.0.0.1"
port = {port}
username = "board"
password_file = "{password}"
keepalive = 2
connect_timeout = 2
[spool]
commit_seconds = 0.2
[sources.wrist]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = 1000
chunk = 10
loop = true
"""
    + PROMISES
)


class World:
    """The daemon, broker and link affected by outages."""

    def __init__(self, folder: Path, broker: Broker, link: FlakyProxy, auditor: Auditor) -> None:
        self.broker, self.link, self.auditor = broker, link, auditor
        self.password, self.book = folder / "password", folder / "book.jsonl"
        self.password.write_text("right")
        where = {"password": self.password, "book": self.book, "recording": long_recording(folder)}
        self.daemon = Edged(folder, CONFIG.format(port=link.port, **where))

    @property
    def refusals(self) -> int:
        """Return the number of refusals after the first connection of the daemon."""
        return sum("refused the connection" in line for line in self.daemon.log)

    def let_in(self) -> None:
        """Let the daemon connect to a broker after an outage, after the auditor."""
        self.auditor.hear_out()
        self.broker.start()
        self.auditor.connect()
        self.link.listen(True)


Outage = Callable[[World, float], None]


def killed(world: World, seconds: float) -> None:
    world.broker.stop(kill=True)
    world.link.listen(False)
    time.sleep(seconds)
    world.let_in()


def restarted(world: World, seconds: float) -> None:
    world.broker.stop()
    world.link.listen(False)
    time.sleep(seconds)
    world.let_in()


def not_listening(world: World, seconds: float) -> None:
    world.link.listen(False)
    time.sleep(seconds)
    world.link.listen(True)


def not_authorised(world: World, seconds: float) -> None:
    """Refuse each CONNECT, at least one, at the broker."""
    refused = world.refusals
    world.password.write_text("wrong")
    world.link.drop()
    time.sleep(seconds)
    while world.refusals == refused:
        time.sleep(0.05)
    world.password.write_text("right")


def stalled(world: World, seconds: float) -> None:
    """Stall all traffic silently, and then deliver the delayed bytes."""
    world.link.blackhole()
    time.sleep(seconds)
    world.link.blackhole(False)


def stalled_and_cut(world: World, seconds: float) -> None:
    """Stall all traffic silently, and then drop the delayed bytes."""
    world.link.blackhole()
    time.sleep(seconds)
    world.link.drop()
    world.link.blackhole(False)


def cut_again_and_again(world: World, seconds: float) -> None:
    for _ in range(4):
        world.link.drop()
        time.sleep(seconds / 4)


KINDS = (killed, restarted, not_listening, not_authorised, stalled, stalled_and_cut, cut_again_and_again)


class Turn(NamedTuple):
    """So many seconds of calm, and then an outage of so many seconds."""

    calm: float
    outage: Outage
    dark: float


def day(chance: random.Random) -> list[Turn]:
    outages = chance.sample(KINDS * 7, OUTAGES)
    drawn = [Turn(hours(chance), outage, hours(chance)) for outage in outages]
    scale = SECONDS / sum(turn.calm + turn.dark for turn in drawn)
    return [Turn(calm * scale, outage, dark * scale) for calm, outage, dark in drawn]


def hours(chance: random.Random) -> float:
    """From two minutes to two hours, each order of magnitude as likely as the other."""
    return 2.0 / 60.0 ** chance.random()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    passwords = {"board": "right", "auditor": "secret"}
    with Broker(tmp_path, passwords=passwords, lines=UNBOUNDED) as broker, FlakyProxy(broker.port) as link:
        auditor = Auditor(broker.port, "auditor", "secret")
        auditor.connect()
        yield World(tmp_path, broker, link, auditor)
        auditor.disconnect()


def test_a_day_of_outages_costs_no_result_and_no_order(world: World):
    seed = int(os.environ.get("EDGED_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"EDGED_SEED={seed}")
    with world.daemon as daemon:
        assert world.auditor.hears_more(PATIENCE)
        for calm, outage, dark in day(random.Random(seed)):
            time.sleep(calm)
            print(f"{outage.__name__} for {dark:.1f} s")
            outage(world, dark)
            assert world.auditor.hears_more(LONGEST_RETRY + PATIENCE), "it does not come back"
        while daemon.call("spool")["depth"] > 100:
            pass
        assert daemon.stop() == 0
    made = said(world.book)
    assert world.auditor.hears_all({result["id"] for result in made})

    books = balance(world.auditor.heard)
    print(f"{len(made)} results, {books.again} came again")
    for line in {line_of(result) for result in made}:
        numbers = [result["seq"] for result in made if line_of(result) == line]
        assert books.arrived[line] == numbers, f"EDGED_SEED={seed}: lost or out of order in {line}"
