"""Limits of MQTT messages: a daemon, a broker and web servers in namespaces of their own.

A refused request must not have caused even a connection.
"""

from __future__ import annotations

import json
import random
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.broker import Broker, Certificates, Subscriber, make_certificates
from tests.edged_process import Edged
from tests.motion import bundle, config, edgectl, serving
from tests.namespaces import BOARD_ADDRESS, INTERNET_ADDRESS, Namespaces
from tests.patience import PATIENCE
from tests.web_server import ForwardProxy, Handler, Order, WebServer, drip, redirect, status

DESIRED = "edged/board/models/motion/desired"
UPDATES = "edged/board/models/motion/update"

INSIDE = ("10.0.0.7", "172.16.0.7", "192.168.1.7", "169.254.169.254", "100.64.0.7", "fd00::7")
"""Addresses of servers in the networks of the board, or of the provider."""


class Rig:
    """The two namespaces, a broker in the board's namespace, and servers started by a test."""

    def __init__(self, folder: Path, spaces: Namespaces, stack: ExitStack) -> None:
        self.folder = folder
        self.spaces = spaces
        self._stack = stack
        self.broker = Broker(folder, within=self._within(spaces.board))
        stack.enter_context(self.broker)
        self.subscriber = spaces.run(spaces.board, lambda: Subscriber(self.broker.port, UPDATES))
        stack.enter_context(self.subscriber)

    def daemon(self, options: str = "") -> Edged:
        text = f'{config()}[mqtt]\nhost = "127.0.0.1"\nport = {self.broker.port}\n'
        text += f"[updates]\ncheck_every = 10\n[updates.fetch]\npause = 0.01\nstall_seconds = 1\n{options}"
        daemon = Edged(self.folder, text, within=self._within(self.spaces.board))
        self._stack.enter_context(daemon)
        daemon.wait_for_log(" serves: ")
        return daemon

    def server(
        self, space: str, address: str, content: bytes = b"", context: ssl.SSLContext | None = None
    ) -> WebServer:
        server = WebServer(content, context, address)
        self.spaces.run(space, server.__enter__)
        self._stack.callback(server.__exit__)
        return server

    def proxy(self) -> ForwardProxy:
        proxy = ForwardProxy(refuse=502)
        self.spaces.run(self.spaces.board, proxy.__enter__)
        self._stack.callback(proxy.__exit__)
        return proxy

    def wish(self, url: str) -> tuple[str, str]:
        """Request a URL, and return the published outcome and text."""
        wish = json.dumps({"url": url})
        self.subscriber.client.publish(DESIRED, wish, qos=1, retain=True).wait_for_publish(PATIENCE)
        return self.ended()

    def ended(self) -> tuple[str, str]:
        """Return the next published outcome and text."""
        ended = json.loads(self.subscriber.next(lambda message: json.loads(message.payload)["outcome"]).payload)
        return ended["outcome"], ended["text"]

    def _within(self, space: str) -> tuple[str, ...]:
        return "ip", "netns", "exec", space


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        spaces = stack.enter_context(Namespaces())
        yield Rig(tmp_path, spaces, stack)


REFUSED = ("refused", "refused by policy")


def test_a_wish_leads_to_public_addresses_only(rig: Rig, tmp_path: Path):
    spaces = rig.spaces
    spaces.add_addresses(*INSIDE)
    new = bundle(tmp_path, "1.1.0").read_bytes()
    public = rig.server(spaces.internet, INTERNET_ADDRESS, new)
    inside = [rig.server(spaces.internet, address) for address in INSIDE]
    inside += [rig.server(spaces.board, address) for address in ("127.0.0.1", "::1", BOARD_ADDRESS)]
    urls = [server.url() for server in inside]
    port = inside[-3].port
    urls += [
        inside[-3].url(host=host) for host in ("localhost", "127.1", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]")
    ]
    daemon = rig.daemon()
    told = {url: rig.wish(url) for url in urls}
    for url in urls:
        public.orders.append(redirect(url))
        told[f"to {url}"] = rig.wish(public.url(f"/{len(told)}.edgm"))
    assert told == dict.fromkeys(told, REFUSED)
    assert [server.requests for server in inside] == [[]] * len(inside)
    assert f"http://127.0.0.1:{port} is at 127.0.0.1, an address of this board" in "".join(daemon.log)
    assert rig.wish(public.url()) == ("done", "motion: version 1.1.0 is confirmed; version 1.1.0 serves")
    assert serving(daemon) == "1.1.0"


def test_a_server_in_this_network_is_fetched_from_where_the_configuration_names_it(rig: Rig, tmp_path: Path):
    rig.spaces.add_addresses("192.168.1.7")
    server = rig.server(rig.spaces.internet, "192.168.1.7", bundle(tmp_path, "1.1.0").read_bytes())
    other = rig.server(rig.spaces.internet, "192.168.1.7")
    public = rig.server(rig.spaces.internet, INTERNET_ADDRESS)
    rig.daemon(f'origins = ["{server.url("")}"]\n')
    assert [rig.wish(each.url()) for each in (other, public)] == [REFUSED, REFUSED]
    assert (other.requests, public.requests) == ([], [])
    assert rig.wish(server.url())[0] == "done"


def test_a_token_is_sent_where_the_configuration_says_and_nowhere_else(rig: Rig, tmp_path: Path):
    certificates = make_certificates(tmp_path, "localhost")
    token = tmp_path / "token"
    token.write_text("swordfish\n")
    public = rig.server(rig.spaces.board, "127.0.0.1", context=tls(certificates))
    named = rig.server(rig.spaces.board, "127.0.0.1", context=tls(certificates))
    daemon = rig.daemon(
        f'ca_file = "{certificates.ca}"\ntoken_file = "{token}"\norigins = ["{named.url("", host="localhost")}"]\n'
    )
    named.orders += [status(404)] * 100
    assert rig.wish(public.url("/1.edgm", host="localhost")) == REFUSED
    assert public.requests == []
    assert rig.wish(named.url("/2.edgm", host="localhost")) == ("failed", "not found")
    assert {request.headers["Authorization"] for request in named.requests} == {"Bearer swordfish"}
    job = daemon.call("fetch", url=public.url("/3.edgm", host="localhost"))["job"]
    while daemon.call("job", id=job)["state"] == "running":
        time.sleep(0.01)  # no event to await
    assert [request.headers["Authorization"] for request in public.requests] == [None]


def test_nothing_is_asked_for_through_a_proxy_but_what_the_configuration_names(rig: Rig):
    rig.spaces.add_addresses("192.168.1.7")
    proxy = rig.proxy()
    rig.daemon(f'proxy = "{proxy.url}"\n[models.anomaly]\nurl = "http://192.168.1.7/"\n')
    assert rig.wish("http://192.168.1.7:8080/m.edgm") == REFUSED
    assert rig.wish("https://models.example/m.edgm") == REFUSED
    assert rig.wish("http://192.168.1.7/m.edgm") == ("failed", "unreachable")
    assert {request.path for request in proxy.requests} <= {"http://192.168.1.7/m.edgm", "http://192.168.1.7/"}


def tls(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    return context


def web_page(handler: Handler) -> None:
    handler.answer(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Welcome to the hotel</title>")


def nothing(handler: Handler) -> None:
    handler.answer(200, {})


@pytest.mark.parametrize(
    ("orders", "text"),
    [
        ([web_page], "not a bundle"),
        ([redirect("/portal?wants=motion.edgm"), web_page], "not a bundle"),
        ([nothing], "not a bundle"),
        ([status(500)] * 1000, "unreachable"),
        ([status(404)], "not found"),
    ],
    ids=["a log-in page", "a redirect to one", "nothing", "trouble", "not there yet"],
)
def test_a_wish_is_fetched_when_what_was_in_the_way_is_over(rig: Rig, tmp_path: Path, orders: list[Order], text: str):
    server = rig.server(rig.spaces.internet, INTERNET_ADDRESS, bundle(tmp_path, "1.1.0").read_bytes())
    server.orders += orders
    daemon = rig.daemon()
    assert rig.wish(server.url()) == ("failed", text)
    server.orders.clear()
    daemon.reload()
    assert rig.ended() == ("done", "motion: version 1.1.0 is confirmed; version 1.1.0 serves")


MANY = ("motion", "anomaly", "digits", "fourth", "fifth")


def test_an_operator_does_not_wait_for_servers_that_send_a_few_bytes_a_second(rig: Rig, tmp_path: Path):
    asked, stop = threading.Semaphore(0), threading.Event()

    def trickle(handler: Handler) -> None:
        asked.release()
        drip(stop, 1 / 240)(handler)

    new = bundle(tmp_path, "1.1.0")
    endless = bundle(tmp_path, "1.2.0", files={"noise.bin": random.Random(1).randbytes(600_000)})
    slow = rig.server(rig.spaces.internet, INTERNET_ADDRESS, endless.read_bytes())
    slow.orders += [trickle] * 1000
    server = rig.server(rig.spaces.board, "127.0.0.1", new.read_bytes())
    daemon = rig.daemon("".join(f'[models.{name}]\nurl = "{slow.url(f"/{name}.edgm")}"\n' for name in MANY))
    for _ in range(4):
        assert asked.acquire(timeout=PATIENCE)
    said = edgectl(daemon, "update-model", server.url())
    stop.set()
    assert said.code == 0, said.output
    assert serving(daemon) == "1.1.0"
