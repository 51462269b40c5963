"""The way to a server: TLS, proxies, credentials, the least speed, and being called off."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from edged.core.container import MAGIC, PREFIX
from edged.core.errors import ConfigError
from edged.models.container_check import ContainerCheck
from edged.system.urls import FetchError
from edged.transfer.http_connection import AbandonedError
from edged.transfer.http_fetch import Fetcher
from edged.transfer.options import FetchOptions
from tests.broker import Certificates, make_certificates
from tests.containers import colours, container, entry
from tests.fetching import fetch, open_transfer, options
from tests.patience import PATIENCE
from tests.web_server import ForwardProxy, Handler, WebServer, drip, redirect, silence, status

FILE = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Event that is set at the end of the test, for servers that hang."""
    event = threading.Event()
    yield event
    event.set()


def serving(certificates: Certificates, *, client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    if client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates.ca)
    return context


def own(certificates: Certificates) -> dict[str, str]:
    """Return options with the test's certificate."""
    return {"cert_file": str(certificates.client), "key_file": str(certificates.client_key)}


def origin(url: str) -> str:
    """Scheme, host and port."""
    return url.rpartition("/")[0]


# Addresses


def test_a_name_is_looked_up_once_for_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up might give another address than the checked address."""
    looked_up: list[str] = []
    look_up = socket.getaddrinfo

    def counted(host: str, *rest: object, **more: object) -> object:
        looked_up.append(host)
        return look_up(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    with WebServer(FILE) as server, open_transfer(tmp_path) as transfer:
        given = options(origins=(origin(server.url(host="localhost")),))
        Fetcher(given, guarded=True).fetch(server.url(host="localhost"), transfer)
    assert looked_up.count("localhost") == 1


# TLS


def test_a_server_of_our_authority_is_trusted(tmp_path: Path, certificates: Certificates) -> None:
    with WebServer(FILE, serving(certificates)) as server:
        assert fetch(server.url(host="localhost"), tmp_path, ca_file=str(certificates.ca))[0] == FILE


@pytest.mark.parametrize("authority", ["stranger", "the system's"])
def test_a_server_of_another_is_not(tmp_path: Path, certificates: Certificates, authority: str) -> None:
    ca_file = str(certificates.stranger) if authority == "stranger" else ""
    with WebServer(FILE, serving(certificates)) as server:
        with pytest.raises(FetchError, match=r"certificate of localhost:\d+ cannot be trusted") as refusal:
            fetch(server.url(host="localhost"), tmp_path, ca_file=ca_file)
        assert "ca_file" in refusal.value.hint
        assert server.requests == []


def test_a_server_by_another_name_is_not_trusted(tmp_path: Path, certificates: Certificates) -> None:
    with WebServer(FILE, serving(certificates)) as server, pytest.raises(FetchError, match="cannot be trusted"):
        fetch(server.url(host="127.0.0.1"), tmp_path, ca_file=str(certificates.ca))


CA_CONFIG = """
[ca]
default_ca = here
[here]
dir = {folder}
new_certs_dir = {folder}
database = {folder}/index
serial = {folder}/serial
default_md = sha256
policy = any
copy_extensions = copy
x509_extensions = signed
[any]
commonName = supplied
[signed]
authorityKeyIdentifier = keyid
"""


def dated(folder: Path, start: str, end: str) -> Certificates:
    """Return certificates; the server's is valid from `start` to `end`, as YYYYMMDD."""
    made = make_certificates(folder)
    (folder / "ca.conf").write_text(CA_CONFIG.format(folder=folder))
    (folder / "index").touch()
    (folder / "serial").write_text("01\n")
    request = folder / "server.csr"
    make = ["openssl", "req", "-new", "-key", made.server_key, "-subj", "/CN=localhost", "-out", request]
    make += ["-addext", "subjectAltName=DNS:localhost"]
    sign = ["openssl", "ca", "-batch", "-notext", "-config", folder / "ca.conf", "-in", request, "-out", made.server]
    sign += ["-cert", made.ca, "-keyfile", folder / "ca.key"]
    sign += ["-startdate", f"{start}000000Z", "-enddate", f"{end}000000Z"]
    for command in (make, sign):
        subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.mark.parametrize(
    ("start", "end", "hint"),
    [
        ("20990101", "21000101", r"set this board's clock, which says \d{4}-\d\d-\d\d"),
        ("20010101", "20020101", r"renew the certificate, or set this board's clock if today is not \d{4}-\d\d-\d\d"),
    ],
)
def test_a_certificate_of_another_time_may_be_the_clocks_fault(tmp_path: Path, start: str, end: str, hint: str) -> None:
    """To a board in 1970 every certificate is from the future."""
    made = dated(tmp_path, start, end)
    with WebServer(FILE, serving(made)) as server, pytest.raises(FetchError, match=hint) as refusal:
        fetch(server.url(host="localhost"), tmp_path, ca_file=str(made.ca))
    assert refusal.value.retryable


def test_a_server_may_want_our_certificate(tmp_path: Path, certificates: Certificates) -> None:
    with WebServer(FILE, serving(certificates, client=True)) as server:
        url, ca_file = server.url(host="localhost"), str(certificates.ca)
        with pytest.raises(FetchError, match="refuses the board's certificate, or requires one") as refusal:
            fetch(url, tmp_path, ca_file=ca_file)
        assert "cert_file" in refusal.value.hint
        assert fetch(url, tmp_path, ca_file=ca_file, origins=(origin(url),), **own(certificates))[0] == FILE


def test_a_port_without_tls_is_told(tmp_path: Path) -> None:
    with WebServer(FILE) as server, pytest.raises(FetchError, match="does not speak TLS"):
        fetch(server.url().replace("http:", "https:"), tmp_path)


def test_files_that_cannot_be_used_are_told(tmp_path: Path, certificates: Certificates) -> None:
    (tmp_path / "empty").touch()
    for given, option in (
        ({"ca_file": "/nowhere"}, "ca_file '/nowhere' cannot be used: No such file"),
        ({"ca_file": "relative.crt"}, "the service has no credentials"),
        ({"token_file": str(tmp_path / "empty")}, "token_file '.*empty' cannot be used"),
        ({"cert_file": str(certificates.client), "key_file": str(certificates.server_key)}, "cert_file or key_file"),
    ):
        with pytest.raises(ConfigError, match=option):
            fetch("https://localhost:1/", tmp_path, **given)


def test_relative_names_are_credentials_of_the_service(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(certificates.ca.parent))
    with WebServer(FILE, serving(certificates)) as server:
        assert fetch(server.url(host="localhost"), tmp_path, ca_file="ca.crt")[0] == FILE


# Credentials


def test_user_and_password_stay_at_home(tmp_path: Path) -> None:
    with WebServer(FILE) as home, WebServer(FILE) as other:
        home.orders += [redirect("/b"), redirect(other.url().replace("http://", "http://eve:x@"))]
        fetch(home.url().replace("http://", "http://user:p%40ss@"), tmp_path)
        basic = f"Basic {b64encode(b'user:p@ss').decode()}"
        assert [request.headers["Authorization"] for request in home.requests] == [basic, basic]
        assert [request.headers["Authorization"] for request in other.requests] == [None]
        assert home.requests[0].headers["Host"] == f"127.0.0.1:{home.port}"


def test_a_token_stays_at_home(tmp_path: Path, certificates: Certificates) -> None:
    token = tmp_path / "token"
    token.write_text("swordfish\n")
    with WebServer(FILE, serving(certificates)) as home, WebServer(FILE, serving(certificates)) as other:
        home.orders.append(redirect(other.url(host="localhost")))
        url, names = home.url(host="localhost"), (origin(home.url(host="localhost")), origin(other.url()))
        fetch(url, tmp_path, ca_file=str(certificates.ca), token_file=str(token), origins=names)
        assert [request.headers["Authorization"] for request in home.requests] == ["Bearer swordfish"]
        assert [request.headers["Authorization"] for request in other.requests] == [None]


@pytest.mark.parametrize("names", [None, (), ("https://models.example", "http://localhost", "https://localhost:1")])
def test_credentials_go_to_nobody_whom_the_configuration_does_not_name(
    tmp_path: Path, certificates: Certificates, names: tuple[str, ...] | None
) -> None:
    token = tmp_path / "token"
    token.write_text("swordfish\n")
    ca_file = str(certificates.ca)
    with WebServer(FILE, serving(certificates)) as server:
        url = server.url(host="localhost")
        fetch(url, tmp_path, ca_file=ca_file, token_file=str(token), origins=names)
        assert [request.headers["Authorization"] for request in server.requests] == [None]
    with (
        WebServer(FILE, serving(certificates, client=True)) as server,
        pytest.raises(FetchError, match="refuses the board's certificate, or requires one"),
    ):
        fetch(server.url(host="localhost"), tmp_path, ca_file=ca_file, origins=names, **own(certificates))


def test_the_url_of_a_model_is_named_by_the_configuration(tmp_path: Path, certificates: Certificates) -> None:
    token = tmp_path / "token"
    token.write_text("swordfish\n")
    given = options(ca_file=str(certificates.ca), token_file=str(token))
    with WebServer(FILE, serving(certificates)) as server, open_transfer(tmp_path) as transfer:
        policy = given.policy([server.url("/stable/motion.edgm", host="localhost"), "no url at all"])
        Fetcher(given, policy).fetch(server.url("/beta/motion.edgm", host="localhost"), transfer)
        assert [request.headers["Authorization"] for request in server.requests] == ["Bearer swordfish"]


def test_a_token_is_never_sent_in_the_clear(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("swordfish\n")
    with WebServer(FILE) as server:
        fetch(server.url(), tmp_path, token_file=str(token))
        assert "Authorization" not in server.requests[0].headers


def test_our_certificate_stays_at_home(tmp_path: Path, certificates: Certificates) -> None:
    with WebServer(FILE, serving(certificates)) as home, WebServer(FILE, serving(certificates, client=True)) as other:
        home.orders.append(redirect(other.url(host="localhost")))
        with pytest.raises(FetchError, match="refuses the board's certificate, or requires one"):
            fetch(home.url(host="localhost"), tmp_path, ca_file=str(certificates.ca), **own(certificates))


def test_encryption_is_not_given_up_for_a_redirect(tmp_path: Path, certificates: Certificates) -> None:
    with WebServer(FILE, serving(certificates)) as home, WebServer(FILE) as other:
        home.orders.append(redirect(other.url()))
        with pytest.raises(FetchError, match="redirects from https to http://127"):
            fetch(home.url(host="localhost"), tmp_path, ca_file=str(certificates.ca))
        assert other.requests == []


# Proxies


def test_a_proxy_is_asked_for_the_whole_url(tmp_path: Path) -> None:
    with WebServer(FILE) as server, ForwardProxy() as proxy:
        url = proxy.url.replace("http://", "http://user:secret@")
        assert fetch(server.url(), tmp_path, proxy=url)[0] == FILE
        [request] = proxy.requests
        assert (request.method, request.path) == ("GET", server.url())
        assert request.headers["Proxy-Authorization"] == f"Basic {b64encode(b'user:secret').decode()}"


def test_a_proxy_carries_tls_and_sees_nothing_of_it(tmp_path: Path, certificates: Certificates) -> None:
    with WebServer(FILE, serving(certificates)) as server, ForwardProxy() as proxy:
        url = server.url(host="localhost")
        assert fetch(url, tmp_path, proxy=proxy.url, ca_file=str(certificates.ca))[0] == FILE
        [request] = proxy.requests
        assert (request.method, request.path) == ("CONNECT", f"localhost:{server.port}")


def test_a_proxy_that_is_not_there_is_named_as_the_proxy(tmp_path: Path) -> None:
    for url in ("http://models.example/", "https://models.example/"):
        with pytest.raises(FetchError, match=r"last: the proxy 127\.0\.0\.1:1 cannot be reached: Connection refused"):
            fetch(url, tmp_path, proxy="http://127.0.0.1:1", stall_seconds=0.05)
        with pytest.raises(FetchError, match=r"last: the proxy no-proxy\.invalid:3128 cannot be reached: .*not known"):
            fetch(url, tmp_path, proxy="http://no-proxy.invalid:3128", stall_seconds=0.05)


def test_a_proxy_that_does_not_answer_is_named_as_the_proxy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FetchError, match=r"last: the proxy 127\.0\.0\.1:\d+ does not answer: only 0 bytes arrived"):
            fetch("https://models.example/", tmp_path, proxy=proxy, stall_seconds=0.05, low_speed_seconds=0.1)


def test_a_proxy_that_refuses_is_told(tmp_path: Path) -> None:
    with ForwardProxy(refuse=407) as proxy:
        with pytest.raises(
            FetchError, match=r"the proxy 127\.0\.0\.1:\d+ answers 407 to a connection to x\.example:443"
        ):
            fetch("https://x.example/", tmp_path, proxy=proxy.url)
        with pytest.raises(FetchError, match="answers 407") as refusal:
            fetch("http://x.example/", tmp_path, proxy=proxy.url)
    assert "proxy" in refusal.value.hint


def test_a_proxy_in_trouble_is_asked_again(tmp_path: Path) -> None:
    with ForwardProxy(refuse=502) as proxy:
        with pytest.raises(FetchError, match=r"no progress .* last: the proxy .* answers 502"):
            fetch("https://x.example/", tmp_path, proxy=proxy.url, stall_seconds=5.0)
        assert len(proxy.requests) > 1


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "elsewhere.example, 127.0.0.1", "*"])
def test_some_hosts_are_reached_without_it(tmp_path: Path, no_proxy: str) -> None:
    with WebServer(FILE) as server:
        assert fetch(server.url(), tmp_path, proxy="http://127.0.0.1:1", no_proxy=no_proxy)[0] == FILE


def test_the_environment_may_name_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer(FILE) as server, ForwardProxy() as proxy, open_transfer(tmp_path) as transfer:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "elsewhere.example")
        Fetcher(FetchOptions(pause=0.001)).fetch(server.url(), transfer)
        assert len(proxy.requests) == 1


# The least speed


def test_a_server_that_drips_is_left(tmp_path: Path, stop: threading.Event) -> None:
    with WebServer(FILE) as server:
        server.orders.append(drip(stop, 0.01))
        content, fetched = fetch(server.url(), tmp_path, low_speed=2000, low_speed_seconds=0.2)
        assert content == FILE
        assert fetched.cuts >= 1


def test_headers_that_drip_are_left(tmp_path: Path, stop: threading.Event) -> None:
    def order(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not stop.wait(0.01):
            handler.wfile.write(b"x")

    with WebServer(FILE) as server:
        server.orders.append(order)
        content, fetched = fetch(server.url(), tmp_path, low_speed=2000, low_speed_seconds=0.2)
        assert content == FILE
        assert fetched.cuts >= 1


def test_a_head_has_to_come_faster_than_the_rest(tmp_path: Path, stop: threading.Event) -> None:
    manifest = colours(files={"model.tflite": entry(FILE), "notes.bin": entry(FILE)})
    with WebServer(container(manifest, body=FILE * 2)) as server:
        server.orders.append(drip(stop, 0.01))
        speeds = {"low_speed": 1, "low_speed_seconds": 0.2, "head_speed": 5000}
        _, fetched = fetch(server.url(), tmp_path, check=lambda: ContainerCheck(lambda head: None), **speeds)
        assert fetched.cuts >= 1


def test_a_head_is_no_progress_before_all_of_it_is_here(tmp_path: Path, stop: threading.Event) -> None:
    """An incomplete head keeps the thread busy, while other fetches wait."""
    with WebServer(PREFIX.pack(MAGIC, 100_000, 0) + FILE) as server:
        server.orders += repeat(drip(stop, 0.01), 1000)
        with pytest.raises(FetchError, match=r"no progress for 0\.5 s"):
            fetch(server.url(), tmp_path, check=lambda: ContainerCheck(lambda head: None), stall_seconds=0.5)


def test_a_server_without_a_word_is_left_where_any_speed_will_do(tmp_path: Path, stop: threading.Event) -> None:
    with WebServer(FILE) as server:
        server.orders.append(silence(stop, threading.Event()))
        content, fetched = fetch(server.url(), tmp_path, low_speed=0, low_speed_seconds=0.2)
        assert content == FILE
        assert fetched.cuts == 1


# Being called off


class Fetching:
    """A fetch on a thread of its own, and the result."""

    def __init__(self, url: str, folder: Path, **given: object) -> None:
        self.error: Exception | None = None
        self.fetcher = Fetcher(options(**given))
        self._transfer = open_transfer(folder)
        self._thread = threading.Thread(target=self._run, args=(url,))
        self._thread.start()

    def _run(self, url: str) -> None:
        try:
            with self._transfer:
                self.fetcher.fetch(url, self._transfer)
        except FetchError as error:
            self.error = error

    def cancel(self) -> None:
        self.fetcher.cancel()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        assert isinstance(self.error, AbandonedError)


def test_a_fetch_is_called_off_while_the_server_is_silent(tmp_path: Path, stop: threading.Event) -> None:
    arrived = threading.Event()
    with WebServer(FILE) as server:
        server.orders.append(silence(stop, arrived))
        fetching = Fetching(server.url(), tmp_path)
        assert arrived.wait(PATIENCE)
        fetching.cancel()


def test_a_fetch_is_called_off_while_it_connects(tmp_path: Path) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    with full, socket.create_connection(full.getsockname()):  # fills the queue, since no connection is accepted
        Fetching(f"http://127.0.0.1:{full.getsockname()[1]}/", tmp_path).cancel()


def test_a_fetch_is_called_off_over_tls(tmp_path: Path, stop: threading.Event, certificates: Certificates) -> None:
    arrived = threading.Event()
    with WebServer(FILE, serving(certificates)) as server:
        server.orders.append(silence(stop, arrived))
        fetching = Fetching(server.url(host="localhost"), tmp_path, ca_file=str(certificates.ca))
        assert arrived.wait(PATIENCE)
        fetching.cancel()


def test_a_fetch_is_called_off_while_it_pauses(tmp_path: Path) -> None:
    with WebServer(FILE) as server:
        answered = threading.Event()

        def order(handler: Handler) -> None:
            status(500)(handler)
            answered.set()

        server.orders.extend(repeat(order, 5))
        fetching = Fetching(server.url(), tmp_path, pause=600, longest_pause=600)
        assert answered.wait(PATIENCE)
        fetching.cancel()


def test_half_a_file_of_unknown_size_is_not_taken_for_all_of_it(tmp_path: Path, stop: threading.Event) -> None:
    sent = threading.Event()

    def order(handler: Handler) -> None:
        handler.answer(200, {"Content-Length": None}, FILE[:1000])
        sent.set()
        stop.wait()

    with WebServer(FILE) as server:
        server.orders.append(order)
        fetching = Fetching(server.url(), tmp_path)
        assert sent.wait(PATIENCE)
        fetching.cancel()


def test_what_was_called_off_stays_so(tmp_path: Path) -> None:
    fetcher = Fetcher(options())
    fetcher.cancel()
    with WebServer(FILE) as server, open_transfer(tmp_path) as transfer:
        with pytest.raises(AbandonedError, match="the fetch was cancelled"):
            fetcher.fetch(server.url(), transfer)
        assert server.requests == []
