"""The daemon fetches new versions: over breaking links, from misbehaving servers, across restarts.

The cost and the treatment of each answer are tested in tests/transfer; here every fetch ends with the new version in
service, or with the old version and a reason.
"""

import json
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.broker import Broker, Certificates, Subscriber, make_certificates
from tests.edged_process import Edged
from tests.flaky_proxy import FlakyProxy
from tests.motion import Said, bundle, config, edgectl, incoming, litter, serving
from tests.patience import PATIENCE
from tests.web_server import (
    Handler,
    Order,
    WebServer,
    corrupt,
    cut_after,
    drip,
    for_ever,
    redirect,
    silence,
    status,
    swap,
    whole,
    wrong_start,
    wrong_total,
)

DONE, REFUSED, UNFIT = 0, 6, 7
HASTY = '[updates.fetch]\npause = 0.01\nlongest_pause = 0.05\nlow_speed_seconds = 1.0\nca_file = "{ca}"\n'
"""Patience for a test: a pause after a cut is short, and a connection is slow after a second."""

UPDATES = "edged/board/models/motion/update"
DESIRED = "edged/board/models/motion/desired"
STEPS = ["verified", "unpacked", "offered", "counted", "trying", "tried", "proven", "serving", "confirmed", "ended"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


def board(folder: Path, broker: Broker | None = None, *, way: str = "", url: str = "", ca: Path | str = "") -> Edged:
    """Start a board that fetches from a URL in the configuration, in an MQTT message, or in a command."""
    text = config() + HASTY.format(ca=ca)
    if way == "wished":
        text += f'origins = ["{url.rpartition("/")[0]}"]\n'
    if way == "configured":
        text += f'[models.motion]\nurl = "{url}"\n[updates]\ncheck_every = 10\n'
    if broker:
        text += f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'
    return Edged(folder, text)


def tls(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    return context


def big(folder: Path, version: str = "1.1.0", size: int = 600_000) -> bytes:
    """Return a version that takes a while to fetch."""
    return bundle(folder, version, files={"noise.bin": random.Random(version).randbytes(size)}).read_bytes()


def wish(broker: Broker, url: str) -> None:
    """Publish a desired version, retained for later subscribers."""
    payload = json.dumps({"url": url, "version": "1.1.0"})
    with Subscriber(broker.port, DESIRED) as someone:
        someone.client.publish(DESIRED, payload, qos=1, retain=True).wait_for_publish(PATIENCE)


def assert_reported(subscriber: Subscriber, broker: Broker) -> None:
    """Check the published steps of an update up to the retained last step; short steps may be missing."""
    steps = []
    while not steps or steps[-1] != "ended":
        steps.append(json.loads(subscriber.next().payload)["id"].removeprefix("update."))
    assert [step for step in steps if step != "fetching"] == [step for step in STEPS if step in steps]
    assert "trying" in steps
    with Subscriber(broker.port, UPDATES) as latecomer:
        message = latecomer.next()
    assert message.retain
    assert json.loads(message.payload)["text"] == "motion: version 1.1.0 is confirmed; version 1.1.0 serves"


# Three ways to request a fetch, over breaking links


@pytest.mark.parametrize("way", ["told", "configured", "wished"])
def test_a_version_is_fetched_over_a_link_that_is_cut_all_the_time(
    way: str, tmp_path: Path, broker: Broker, certificates: Certificates
):
    new, chance = big(tmp_path), random.Random(way)
    with (
        WebServer(new, tls(certificates)) as server,
        FlakyProxy(server.port, cut_after=iter(lambda: chance.randrange(60_000, 120_000), None)) as link,
        Subscriber(broker.port, UPDATES) as subscriber,
    ):
        url = f"https://localhost:{link.port}/motion.edgm"
        with board(tmp_path, broker, way=way, url=url, ca=certificates.ca) as daemon:
            daemon.wait_for_log(" serves: ")
            if way == "wished":
                wish(broker, url)
            if way == "told":
                said = edgectl(daemon, "update-model", url)
                assert said.code == DONE, said.output
                assert said.output.endswith("motion: version 1.1.0 is confirmed; version 1.1.0 serves\n")
            assert_reported(subscriber, broker)
            assert serving(daemon) == "1.1.0"
            assert litter(daemon) == set()
            wait_until_tidy(daemon)
    assert link.cuts > 4


def test_a_version_is_fetched_over_a_link_that_hardly_lives(tmp_path: Path):
    chance = random.Random(1)
    with (
        WebServer(big(tmp_path, size=60_000)) as server,
        FlakyProxy(server.port, cut_after=iter(lambda: chance.randrange(2_000, 4_000), None)) as link,
        board(tmp_path) as daemon,
    ):
        daemon.wait_for_log(" serves: ")
        said = edgectl(daemon, "update-model", f"http://127.0.0.1:{link.port}/motion.edgm")
        assert said.code == DONE, said.output
        assert serving(daemon) == "1.1.0"
        assert litter(daemon) == incoming(daemon) == set()
    assert link.cuts > 20


# The daemon ends on the way


@pytest.mark.parametrize(
    ("way", "end"), [("told", signal.SIGTERM), ("configured", signal.SIGKILL), ("wished", signal.SIGKILL)]
)
def test_a_fetch_goes_on_where_the_daemon_was_ended(way: str, end: int, tmp_path: Path, broker: Broker):
    new = big(tmp_path, size=1_200_000)
    with (
        WebServer(new) as server,
        FlakyProxy(server.port, rate=800_000) as link,
        Subscriber(broker.port, UPDATES) as subscriber,
    ):
        url = f"http://127.0.0.1:{link.port}/motion.edgm"
        with board(tmp_path, broker, way=way, url=url) as daemon:
            daemon.wait_for_log(" serves: ")
            if way == "wished":
                wish(broker, url)
            if way == "told":
                daemon.call("fetch", url=url)
            wait_for_bytes(daemon, 700_000)
            daemon.stop(end)
            daemon.log.clear()
            link.rate = 0
            daemon.start()
            daemon.wait_for_log(" serves: ")
            if way == "told":
                said = edgectl(daemon, "update-model", url)
                assert said.code == DONE, said.output
            assert_reported(subscriber, broker)
            assert serving(daemon) == "1.1.0"
            assert litter(daemon) == set()
            wait_until_tidy(daemon)
    later = server.requests[1:2] if way == "configured" else server.requests[1:]  # a URL is looked at again
    assert all(request.start >= 512 << 10 for request in later), "what was durable has been asked for again"


def wait_until_tidy(daemon: Edged) -> None:
    """Wait until no partial file is left: a URL in the configuration may be polled again at this time."""
    until = time.monotonic() + PATIENCE
    while incoming(daemon):
        assert time.monotonic() < until, incoming(daemon)
        time.sleep(0.01)  # no event to await


def wait_for_bytes(daemon: Edged, size: int) -> None:
    """Until so much of a container has come."""
    while not any(part.stat().st_size >= size for part in (daemon.state_dir / "incoming").glob("*/part")):
        time.sleep(0.01)  # no event to await


# Misbehaving servers


class Board:
    """A daemon shared by all of these tests, and a source of ever newer versions."""

    def __init__(self, folder: Path, daemon: Edged) -> None:
        self.folder, self.daemon = folder, daemon
        self._numbers = count(1)
        self.version = "1.0.0"

    def newer(self) -> bytes:
        self.version = f"1.{next(self._numbers)}.0"
        return big(self.folder, self.version, size=300_000)

    def fetch(self, server: WebServer) -> Said:
        return edgectl(self.daemon, "update-model", server.url())

    def assert_tidy(self) -> None:
        assert litter(self.daemon) == incoming(self.daemon) == set()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("board")
    with board(folder) as daemon:
        daemon.wait_for_log(" serves: ")
        yield Board(folder, daemon)


def endless(handler: Handler) -> None:
    """The right thing, and then zeros until the client hangs up."""
    handler.answer(200, {"Content-Length": None})
    handler.wfile.write(handler.web.content)
    while True:
        handler.wfile.write(bytes(0x10000))


SOME = 30_000
STOP = threading.Event()


@pytest.mark.parametrize(
    "orders",
    [
        [cut_after(SOME), wrong_start(7), cut_after(SOME), wrong_start(-7), cut_after(SOME), wrong_total],
        [cut_after(SOME), whole],
        [status(429, retry_after="0"), status(500), status(502), status(503, retry_after="0")],
        [redirect("/elsewhere"), corrupt(SOME), corrupt(2 * SOME)],
        [drip(STOP, 0.1), silence(STOP, threading.Event())],
        [endless],
    ],
    ids=["another range", "200 for a range", "trouble", "damage", "hardly a word", "endless"],
)
def test_a_server_that_misbehaves_for_a_while(orders: list[Order], shared: Board):
    with WebServer(shared.newer()) as server:
        server.orders += orders
        said = shared.fetch(server)
        assert said.code == DONE, said.output
        assert not server.orders
    assert serving(shared.daemon) == shared.version
    shared.assert_tidy()


def test_a_file_that_is_another_on_the_way(shared: Board):
    old, new = shared.newer(), shared.newer()
    with WebServer(old) as server:
        server.orders += [cut_after(SOME), swap(new, cut_after(SOME))]
        said = shared.fetch(server)
        assert said.code == DONE, said.output
    assert serving(shared.daemon) == shared.version
    shared.assert_tidy()


def web_page(handler: Handler) -> None:
    handler.answer(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Welcome to the hotel</title>")


@pytest.mark.parametrize(
    ("order", "code", "reason"),
    [
        (status(404), UNFIT, "the server answers 404\n  -> check the URL"),
        (status(410), UNFIT, "the server answers 410\n  -> the file was removed: use another URL"),
        (status(403), UNFIT, "the server answers 403\n  -> check the token, and that the link has not expired"),
        (status(429, retry_after="86400"), UNFIT, "a wait of 86400 s\n  -> try again after"),
        (for_ever, REFUSED, "not"),
        (web_page, UNFIT, "a web page arrived instead of a bundle\n  -> check the URL, and log in"),
    ],
    ids=["404", "410", "403", "come tomorrow", "for ever", "a web page"],
)
def test_a_server_that_has_nothing_for_us(order: Callable[[Handler], None], code: int, reason: str, shared: Board):
    before = serving(shared.daemon)
    with WebServer(b"") as server:
        server.orders += [order] * 3
        said = shared.fetch(server)
    assert (said.code, reason in said.output) == (code, True), said.output
    assert serving(shared.daemon) == before
    shared.assert_tidy()
