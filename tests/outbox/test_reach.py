"""Networks that come and go under a real broker: noticed in time, with the first message right after the return.

The broker is in a network namespace, behind a pair of virtual interfaces.
"""

from __future__ import annotations

import itertools
import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.core.topics import Topics
from tests.broker import Broker, Subscriber
from tests.flaky_proxy import FlakyProxy
from tests.outbox.test_publisher import Rig, message

TOPICS = Topics("edged", "board")
RESULT = TOPICS.result("motion")
KEEPALIVE = 2

BACK_SECONDS = 2.5
"""Less than a second on a quiet machine; the kernel alone would take three or more."""


def test_a_connection_that_swallows_everything_is_left_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        Broker(tmp_path) as broker,
        FlakyProxy(broker.port) as link,
        Subscriber(broker.port, RESULT) as subscriber,
        Rig(link.port, keepalive=KEEPALIVE) as rig,
    ):
        rig.wait_for("running")
        link.blackhole()
        rig.publisher.put(message(1))
        assert rig.wait_for("failed").reason
        link.blackhole(False)
        link.drop()

        assert json.loads(subscriber.wait_for(RESULT).payload)["seq"] == 1


def free_network() -> str:
    """Return the first three numbers of an unused network: another run may be under way, or was killed."""
    used = subprocess.run(["ip", "-o", "-4", "address"], check=True, capture_output=True, text=True).stdout
    networks = (f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}" for _ in itertools.count())
    return next(network for network in networks if f" {network}." not in used)


class FarBroker:
    """Broker at `address`, beyond the interface `near`, with a subscriber beside the broker."""

    def __init__(self, folder: Path) -> None:
        self.network = free_network()
        self.address = f"{self.network}.2"
        tag = secrets.token_hex(4)
        self.near, self._far, self._space = f"en{tag}", f"ef{tag}", f"edged{tag}"
        self._folder = folder
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> FarBroker:
        if subprocess.run(["ip", "netns", "add", self._space], capture_output=True).returncode:
            pytest.skip("may not make network namespaces here")
        pair = f"link add {self.near} type veth peer name {self._far} netns {self._space}"
        if subprocess.run(["ip", *pair.split()], capture_output=True).returncode:
            self._ip(f"netns delete {self._space}")
            pytest.skip("may not make network interfaces here")
        self._ip(f"address add {self.network}.1/24 dev {self.near}")
        self._ip(f"link set {self.near} up")
        for there in (f"address add {self.address}/24 dev {self._far}", f"link set {self._far} up", "link set lo up"):
            self._ip(f"-n {self._space} {there}")
        config = self._folder / "far.conf"
        config.write_text("listener 1883 0.0.0.0\nallow_anonymous true\nuser root\nlog_dest stderr\n")
        broker = self._run("mosquitto", "-c", str(config), stderr=subprocess.PIPE)
        assert broker.stderr is not None
        while not broker.stderr.readline().rstrip().endswith("running"):
            pass
        listen = ("stdbuf", "-oL", "mosquitto_sub", "-d", "-v", "-W", "30", "-h", "127.0.0.1", "-t", RESULT)
        self._heard = self._run(*listen, stdout=subprocess.PIPE)
        while "Subscribed" not in self._line():
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.communicate()
        self._ip(f"netns delete {self._space}")

    def next(self, seq: int) -> float:
        """When the result of this number was heard."""
        while True:
            topic, _, payload = self._line().partition(" ")
            if topic == RESULT and json.loads(payload)["seq"] == seq:
                return time.monotonic()

    def _line(self) -> str:
        assert self._heard.stdout is not None
        line = self._heard.stdout.readline()
        assert line, "the subscriber has gone"
        return line

    def near_interface(self, what: str) -> None:
        """Set the interface up or down."""
        self._ip(f"link set {self.near} {what}")

    def far_interface(self, what: str) -> None:
        """The same, as if a cable was pulled somewhere on the way."""
        self._ip(f"-n {self._space} link set {self._far} {what}")

    def readdress(self, old: str, new: str) -> None:
        """This side has another address now."""
        self._ip(f"address delete {old}/24 dev {self.near}")
        self._ip(f"address add {new}/24 dev {self.near}")

    def swallow(self, on: bool) -> None:
        """Make the far side discard all packets silently."""
        self._ip(f"-n {self._space} route {'add' if on else 'delete'} blackhole {self.network}.1/32")

    def _run(self, *command: str, **streams: int) -> subprocess.Popen[str]:
        within = ("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._space)  # ends with a killed run
        child = subprocess.Popen([*within, *command], text=True, **streams)  # type: ignore[call-overload]
        self._children.append(child)
        return child  # type: ignore[no-any-return]

    def _ip(self, arguments: str) -> None:
        subprocess.run(["ip", *arguments.split()], check=True)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarBroker]:
    with FarBroker(tmp_path) as broker:
        yield broker


@pytest.fixture
def rig(far: FarBroker) -> Iterator[Rig]:
    with Rig(1883, host=far.address, keepalive=KEEPALIVE) as running:
        running.wait_for("running")
        running.publisher.put(message(0))
        far.next(0)
        yield running


def test_an_interface_that_goes_down_and_comes_back(far: FarBroker, rig: Rig) -> None:
    far.near_interface("down")
    rig.publisher.put(message(1))
    rig.wait_for("failed")
    far.near_interface("up")
    back = time.monotonic()

    assert far.next(1) - back < BACK_SECONDS


def test_a_cable_that_is_pulled_somewhere_and_plugged_in_again(far: FarBroker, rig: Rig) -> None:
    far.swallow(True)
    rig.publisher.put(message(1))
    rig.wait_for("failed")
    far.swallow(False)
    back = time.monotonic()

    assert far.next(1) - back < BACK_SECONDS


def test_a_short_outage_that_the_connection_survives_is_not_waited_out(far: FarBroker, rig: Rig) -> None:
    far.swallow(True)
    rig.publisher.put(message(1))
    time.sleep(3.4)  # by now the kernel pauses for seconds between two attempts
    far.swallow(False)
    back = time.monotonic()

    assert far.next(1) - back < BACK_SECONDS


def test_an_address_that_changes_is_noticed_at_once(far: FarBroker, rig: Rig) -> None:
    far.readdress(f"{far.network}.1", f"{far.network}.9")
    changed = time.monotonic()
    assert "lost the address" in rig.wait_for("failed").reason
    rig.publisher.put(message(1))

    assert far.next(1) - changed < 3 * BACK_SECONDS
