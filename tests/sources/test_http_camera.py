"""HTTP cameras: snapshots and streams of good and of bad servers."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.api import Chunk, ConfigError, DeviceError, Source
from edged.core.http_login import Login, authorization
from edged.core.picture_stream import NO_PICTURE, TRUNCATED
from edged.core.source_health import DROPPED
from edged.sources.http_camera import HttpCameraSource
from edged.testing.source_contract import PictureSourceContract
from tests.broker import Certificates, make_certificates
from tests.broker import server as scripted
from tests.jpegs import jpeg, png
from tests.patience import PATIENCE
from tests.reading import failure, take
from tests.web_server import Handler, Order, WebServer, redirect, status

PICTURES = [jpeg(shade) for shade in (10, 90, 170)]
BOUNDARY = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n"


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Event for servers that hang, set at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer(PICTURES[0]) as server:
        server.tags = False
        yield server


class TestContract(PictureSourceContract):
    @pytest.fixture
    def config(self) -> Iterator[HttpCameraSource]:
        with WebServer(b"") as server:
            server.orders += [snapshot(jpeg(number % 256)) for number in range(500)]
            yield HttpCameraSource(url=server.url("/cam"), rate=1000.0)


def snapshot(body: bytes, kind: str = "image/jpeg", length: int | None = None) -> Order:
    """Return an order for a picture, with a Content-Length, possibly wrong."""
    stated = str(len(body) if length is None else length)
    return lambda handler: handler.answer(200, {"Content-Type": kind, "Content-Length": stated}, body)


def stream(
    *parts: bytes, kind: str = "multipart/x-mixed-replace; boundary=frame", until: threading.Event | None = None
) -> Order:
    """Return an order for a stream of parts until an event."""

    def order(handler: Handler) -> None:
        handler.answer(200, {"Content-Type": kind, "Content-Length": None})
        for part in parts:
            handler.wfile.write(part)
        if until:
            until.wait(PATIENCE)

    return order


def raw(data: bytes, until: threading.Event | None = None) -> Order:
    """Return an order for any bytes."""

    def order(handler: Handler) -> None:
        handler.wfile.write(data)
        if until:
            until.wait(PATIENCE)

    return order


def opened(server: WebServer, path: str = "/cam", host: str = "", **options: object) -> Source:
    options = {"rate": 1000.0} | options
    config = HttpCameraSource(url=server.url(path, host), **options)  # type: ignore[arg-type]
    assert config.describe().pictures
    return config.open()


def data(chunk: Chunk) -> bytes:
    return chunk.samples.tobytes()


# Snapshots


def test_snapshots_are_requested_again_and_again(server: WebServer) -> None:
    server.orders += map(snapshot, PICTURES)
    source = opened(server)
    chunks = [take(source) for _ in PICTURES]
    assert [data(chunk) for chunk in chunks] == PICTURES
    assert chunks[0].samples.shape == (1, len(PICTURES[0]))
    assert chunks[0].picture
    assert (chunks[0].picture.width, chunks[0].picture.height) == (16, 12)
    assert source.faults == {}
    source.close()
    source.close()


def test_a_snapshot_may_have_another_format(server: WebServer) -> None:
    server.orders.append(snapshot(png(), "image/png"))
    source = opened(server)
    assert data(take(source)) == png()
    source.close()


def test_a_snapshot_without_a_length_ends_with_the_connection(server: WebServer) -> None:
    server.orders.append(stream(png(), kind="image/png"))
    source = opened(server)
    assert data(take(source)) == png()
    source.close()


def test_a_snapshot_that_is_shorter_than_stated_is_complete_all_the_same(
    server: WebServer, stop: threading.Event
) -> None:
    def order(handler: Handler) -> None:
        snapshot(PICTURES[1], length=99_999)(handler)
        stop.wait(PATIENCE)

    server.orders.append(order)
    source = opened(server)
    assert data(take(source)) == PICTURES[1]
    source.close()


def test_a_snapshot_that_is_longer_than_stated_is_truncated(server: WebServer) -> None:
    server.orders += [snapshot(PICTURES[0], length=200), snapshot(PICTURES[1])]
    source = opened(server)
    assert data(take(source)) == PICTURES[1]
    assert source.faults == {TRUNCATED: 1}
    source.close()


def test_a_truncated_snapshot_is_a_fault(server: WebServer) -> None:
    server.orders += [snapshot(PICTURES[0][:-10]), snapshot(b""), snapshot(PICTURES[1])]
    source = opened(server)
    assert data(take(source)) == PICTURES[1]
    assert source.faults == {TRUNCATED: 1, NO_PICTURE: 1}
    source.close()


def test_snapshots_in_chunks(server: WebServer) -> None:
    start, rest = PICTURES[0][:100], PICTURES[0][100:]
    body = b"64\r\n" + start + f"\r\n{len(rest):x}\r\n".encode() + rest + b"\r\n0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.orders.append(raw(head + body))
    source = opened(server)
    assert data(take(source)) == PICTURES[0]
    source.close()


def test_a_pause_between_two_snapshots_ends_no_later_than_a_read(server: WebServer) -> None:
    server.orders += map(snapshot, PICTURES)
    source = opened(server, rate=0.001)
    take(source)
    assert source.read(0.01) is None
    assert source.read(0.0) is None
    assert len(server.requests) == 1
    source.close()


# Streams


@pytest.mark.parametrize("name", ["frame", "--frame", '"frame"', "another"])
def test_a_stream_has_whatever_boundary(server: WebServer, stop: threading.Event, name: str) -> None:
    kind = f"multipart/x-mixed-replace;boundary={name}"
    server.orders.append(stream(BOUNDARY, PICTURES[0], until=stop, kind=kind))
    source = opened(server)
    assert data(take(source)) == PICTURES[0]
    assert source.faults == {}
    source.close()


def test_lengths_of_parts_may_be_wrong(server: WebServer, stop: threading.Event) -> None:
    parts = [b"--frame\r\nContent-Length: 5\r\n\r\n", PICTURES[0], b"--frame\r\nContent-Length: 99999\r\n\r\n"]
    server.orders.append(stream(*parts, PICTURES[1], until=stop))
    source = opened(server, rate=None)
    while data(take(source)) != PICTURES[1]:
        pass
    assert source.faults.keys() <= {DROPPED}
    source.close()


def test_a_stream_in_chunks(server: WebServer, stop: threading.Event) -> None:
    def order(handler: Handler) -> None:
        handler.answer(
            200,
            {"Content-Type": "multipart/x-mixed-replace", "Content-Length": None, "Transfer-Encoding": "chunked"},
        )
        for part in (BOUNDARY, PICTURES[0][:77], PICTURES[0][77:]):
            handler.wfile.write(f"{len(part):X}\r\n".encode() + part + b"\r\n")
        stop.wait(PATIENCE)

    server.orders.append(order)
    source = opened(server)
    assert data(take(source)) == PICTURES[0]
    source.close()


def test_the_newest_picture_counts_and_older_ones_are_dropped(server: WebServer, stop: threading.Event) -> None:
    sent = threading.Event()

    def order(handler: Handler) -> None:
        stream(*(BOUNDARY + picture for picture in PICTURES))(handler)
        sent.set()
        stop.wait(PATIENCE)

    server.orders.append(order)
    source = opened(server)
    assert sent.wait(PATIENCE)
    seen = [data(take(source))]
    while seen[-1] != PICTURES[-1]:  # on a busy machine they may arrive one by one
        seen.append(data(take(source)))
    assert len(seen) + source.faults.get(DROPPED, 0) == 3
    source.close()


def test_a_truncated_picture_of_a_stream_costs_no_other(server: WebServer, stop: threading.Event) -> None:
    server.orders.append(stream(BOUNDARY, jpeg(size=(160, 120))[:-30], BOUNDARY, PICTURES[1], until=stop))
    source = opened(server)
    assert data(take(source)) == PICTURES[1]
    assert source.faults == {TRUNCATED: 1}
    source.close()


def test_a_stream_may_change_the_size_of_its_pictures(server: WebServer, stop: threading.Event) -> None:
    more = threading.Event()

    def order(handler: Handler) -> None:
        stream(BOUNDARY, jpeg(size=(16, 12)))(handler)
        more.wait(PATIENCE)
        handler.wfile.write(BOUNDARY + jpeg(size=(64, 48)))
        stop.wait(PATIENCE)

    server.orders.append(order)
    source = opened(server)
    first = take(source).picture
    more.set()
    second = take(source).picture
    assert first
    assert second
    assert [(first.width, first.height), (second.width, second.height)] == [(16, 12), (64, 48)]
    source.close()


def test_the_end_of_a_stream_is_a_failure(server: WebServer) -> None:
    server.orders.append(stream(BOUNDARY, PICTURES[0]))
    source = opened(server)
    assert data(take(source)) == PICTURES[0]
    assert "has ended the stream" in failure(source).message


def test_a_stream_of_something_else_has_a_remedy(server: WebServer, stop: threading.Event) -> None:
    server.orders.append(stream(b"\0\0\1\x67" * 10_000, kind="video/mp4", until=stop))
    source = opened(server)
    deadline = time.monotonic() + PATIENCE
    while NO_PICTURE not in source.faults and time.monotonic() < deadline:
        assert source.read(0.1) is None
    assert source.obstacle is not None  # type: ignore[attr-defined]
    assert source.obstacle.reason == "the camera sends no JPEG pictures"  # type: ignore[attr-defined]
    assert source.refused.startswith(r"\x00")  # type: ignore[attr-defined]
    source.close()


# Servers that do not answer


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"])
def test_a_server_that_never_ends_its_headers_is_given_up(
    server: WebServer, stop: threading.Event, start: bytes
) -> None:
    server.orders.append(raw(start, until=stop))
    error = failure(opened(server, timeout=0.3))
    assert re.fullmatch(r"127\.0\.0\.1:\d+ does not answer for 0\.3 s", error.message)
    assert error.retryable


def test_a_server_that_trickles_headers_is_given_up(server: WebServer, stop: threading.Event) -> None:
    def order(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.01):
            handler.wfile.write(b"X: y\r\n")

    server.orders.append(order)
    message = failure(opened(server, timeout=0.3)).message
    assert "does not answer for 0.3 s" in message or "headers are longer than 16 KiB" in message


def test_endless_headers_are_refused(server: WebServer, stop: threading.Event) -> None:
    server.orders.append(raw(b"HTTP/1.1 200 OK\r\n" + b"X-Header: value\r\n" * 2000, until=stop))
    assert failure(opened(server)).message == "the server's headers are longer than 16 KiB"


def test_a_server_that_trickles_a_picture_is_given_up(server: WebServer, stop: threading.Event) -> None:
    def order(handler: Handler) -> None:
        stream(BOUNDARY)(handler)
        for byte in PICTURES[0]:
            if not stop.wait(0.05):
                handler.wfile.write(bytes([byte]))

    server.orders.append(order)
    assert "sends no picture for 0.3 s" in failure(opened(server, timeout=0.3)).message


def test_a_server_that_hangs_up_at_once(server: WebServer) -> None:
    server.orders.append(raw(b""))
    assert "has ended the connection before an answer" in failure(opened(server)).message


def test_a_server_of_another_protocol(server: WebServer, stop: threading.Event) -> None:
    server.orders.append(raw(b"RTSP/1.0 200 OK\r\n\r\n", until=stop))
    assert failure(opened(server)).message == r"the server does not speak HTTP: RTSP/1.0 200 OK\r\n\r\n"


def test_a_camera_out_of_reach() -> None:
    with WebServer(b"") as gone:
        config = HttpCameraSource(url=gone.url("/cam?password=hush"))
    with pytest.raises(DeviceError, match=r"127\.0\.0\.1:\d+ cannot be reached: Connection refused") as error:
        config.open()
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(("code", "remedy"), [(503, "restart the camera"), (404, "check the url"), (403, "password")])
def test_refusals_have_a_remedy(server: WebServer, code: int, remedy: str) -> None:
    server.orders.append(status(code))
    error = failure(opened(server))
    assert error.message.endswith(f"answers {code}")
    assert remedy in error.hint
    assert error.retryable


def test_a_web_page_is_no_picture(server: WebServer) -> None:
    server.orders.append(snapshot(b"<html>", "text/html; charset=utf-8"))
    error = failure(opened(server))
    assert error.message.endswith("sends text/html in place of a picture")
    assert "not of its page" in error.hint


# Redirects


def test_a_redirect_within_the_server_is_followed(server: WebServer) -> None:
    server.orders += [redirect("/elsewhere?size=1"), snapshot(PICTURES[0])]
    source = opened(server)
    assert data(take(source)) == PICTURES[0]
    assert [request.path for request in server.requests] == ["/cam", "/elsewhere?size=1"]
    source.close()


def test_a_redirect_to_another_server_is_refused_unless_stated(server: WebServer) -> None:
    with WebServer(PICTURES[1]) as other:
        other.orders.append(snapshot(PICTURES[1]))
        server.orders.append(redirect(other.url("/secret?token=1")))
        error = failure(opened(server))
        assert "redirects to another server, http://127.0.0.1:" in error.message
        assert "token" not in str(error)
        assert other.requests == []
        server.orders.append(redirect(other.url("/")))
        source = opened(server, origins=(other.url(""),))
        assert data(take(source)) == PICTURES[1]
        source.close()


@pytest.mark.parametrize("location", ["file:///etc/shadow", "ftp://x/", "http://[::1/"])
def test_a_redirect_out_of_the_web_is_refused(server: WebServer, location: str) -> None:
    server.orders.append(redirect(location))
    assert "is no http or https URL" in failure(opened(server)).message


def test_redirects_in_a_circle_end(server: WebServer) -> None:
    server.orders += [redirect("/cam")] * 20
    assert "redirects more than 5 times" in failure(opened(server)).message
    assert len(server.requests) == 6


# Passwords

LOGIN = Login("me", "hush hush")
DIGEST = 'Digest realm="cam", nonce="abc", qop="auth", algorithm={}'


@pytest.fixture
def login(tmp_path: Path) -> dict[str, str]:
    """Return options with a password."""
    (tmp_path / "password").write_text("hush hush\nmore\n")
    return {"username": "me", "password_file": str(tmp_path / "password")}


def asking(challenge: str, order: Order) -> Order:
    """Return an order to check an answer to a challenge, or to send the challenge."""

    def answer(handler: Handler) -> None:
        given = handler.headers.get("Authorization", "")
        nonce = re.search(r'cnonce="(\w+)"', given)
        if given and given == authorization(challenge, LOGIN, "GET", handler.path, nonce[1] if nonce else ""):
            order(handler)
        else:
            handler.answer(401, {"WWW-Authenticate": challenge})

    return answer


@pytest.mark.parametrize("challenge", ['Basic realm="cam"', DIGEST.format("MD5"), DIGEST.format("SHA-256")])
def test_a_password_is_sent_when_asked_for(server: WebServer, login: dict[str, str], challenge: str) -> None:
    server.orders += [asking(challenge, snapshot(picture)) for picture in (b"", *PICTURES)]
    source = opened(server, "/cam?size=2", **login)
    assert data(take(source)) == PICTURES[0]
    assert "Authorization" not in server.requests[0].headers
    assert "hush" not in server.requests[1].headers["Authorization"]
    assert data(take(source)) == PICTURES[1]
    assert len(server.requests) == 3  # the second snapshot is requested with the password at once
    source.close()


def test_a_challenge_that_has_changed_is_answered_again(server: WebServer, login: dict[str, str]) -> None:
    server.orders.append(asking(DIGEST.format("MD5"), snapshot(b"")))
    server.orders.append(asking(DIGEST.format("MD5"), snapshot(PICTURES[0])))
    newer = DIGEST.format("MD5").replace("abc", "def")
    server.orders += [asking(newer, snapshot(PICTURES[1]))] * 2
    source = opened(server, **login)
    assert [data(take(source)) for _ in range(2)] == PICTURES[:2]
    source.close()


def test_a_wrong_password_is_sent_once(server: WebServer, login: dict[str, str]) -> None:
    server.orders += [asking('Basic realm="another", charset="UTF-8"', snapshot(b""))] * 1
    server.orders += [status(401)] * 5
    error = failure(opened(server, **login))
    assert error.message.endswith("answers 401")
    assert "password_file" in error.hint
    assert "hush" not in str(error)
    assert len(server.requests) == 2


def test_a_camera_that_wants_a_password_without_one(server: WebServer) -> None:
    server.orders.append(status(401))
    assert failure(opened(server)).hint == "set username and password_file"


def test_an_unknown_scheme_is_refused(server: WebServer, login: dict[str, str]) -> None:
    server.orders.append(lambda handler: handler.answer(401, {"WWW-Authenticate": "Negotiate"}))
    assert "another scheme than Digest and Basic" in failure(opened(server, **login)).message


def test_no_other_server_gets_the_password(server: WebServer, login: dict[str, str]) -> None:
    with WebServer(b"") as other:
        challenge = {"WWW-Authenticate": 'Basic realm="cam"'}
        other.orders += [lambda handler: handler.answer(401, challenge)] * 3
        server.orders.append(asking(challenge["WWW-Authenticate"], snapshot(b"")))
        server.orders.append(redirect(other.url("/cam")))
        assert failure(opened(server, origins=(other.url(""),), **login)).message.endswith("answers 401")
        secret = b64encode(b"me:hush hush").decode()
        assert secret in server.requests[1].headers["Authorization"]
        assert ["Authorization" in request.headers for request in other.requests] == [False]


def test_an_unreadable_password_file_names_the_option(server: WebServer, tmp_path: Path) -> None:
    server.orders += [asking("Basic realm=x", snapshot(b""))]
    source = opened(server, username="me", password_file=str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"password_file .* cannot be used: No such file"):
        source.read(PATIENCE)
    source.close()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[WebServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    with WebServer(PICTURES[0], context) as server:
        yield server


def test_https_with_an_authority(secure: WebServer, certificates: Certificates, stop: threading.Event) -> None:
    large = jpeg(size=(1600, 1200)) * 3
    secure.orders += [snapshot(PICTURES[0]), stream(BOUNDARY, large, until=stop)]
    for expected in (PICTURES[0], jpeg(size=(1600, 1200))):
        source = opened(secure, host="localhost", ca_file=str(certificates.ca))
        assert data(take(source)) == expected
        source.close()


def test_https_with_the_cameras_own_certificate(secure: WebServer, certificates: Certificates) -> None:
    secure.orders.append(snapshot(PICTURES[0]))
    source = opened(secure, host="localhost", ca_file=str(certificates.server))
    assert data(take(source)) == PICTURES[0]
    source.close()


@pytest.mark.parametrize(("host", "given"), [("localhost", "stranger"), ("127.0.0.1", "ca"), ("localhost", "")])
def test_a_certificate_is_always_verified(secure: WebServer, certificates: Certificates, host: str, given: str) -> None:
    ca_file = str(getattr(certificates, given)) if given else ""
    with pytest.raises(DeviceError, match=f"the certificate of {host}:.* cannot be trusted"):
        opened(secure, host=host, ca_file=ca_file)
    assert secure.requests == []


def test_a_server_that_trickles_tls_is_given_up(stop: threading.Event) -> None:
    def trickle(client: socket.socket) -> None:
        client.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                client.sendall(b"\x02")

    with scripted(trickle) as port, pytest.raises(DeviceError, match="broke off: TLS did not begin in time"):
        HttpCameraSource(url=f"https://localhost:{port}/", timeout=0.3).open()


def test_a_server_without_tls(server: WebServer) -> None:
    config = HttpCameraSource(url=server.url("/cam").replace("http:", "https:"))
    with pytest.raises(DeviceError, match="does not speak TLS"):
        config.open()


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "rtsp://cam/"}, "is no http or https URL"),
        ({"url": "cam"}, "is no http or https URL"),
        ({"url": "http://me:hush@cam/"}, "the url holds a user or a password"),
        ({"username": "me"}, "username and password_file go together"),
        ({"password_file": "x"}, "username and password_file go together"),
        ({"ca_file": "x"}, "ca_file has no effect without TLS"),
        ({"origins": ("http://cam/path",)}, "is no origin"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        HttpCameraSource(**({"url": "http://cam/snapshot.jpg"} | options)).describe()  # type: ignore[arg-type]
    assert "hush" not in str(error.value)
