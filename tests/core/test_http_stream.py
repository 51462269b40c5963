"""Responses of web servers, by literal bytes and cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import DeviceError
from edged.core.http_stream import HttpStream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
RESPONSES = {
    "of a stated length": (HEAD + b"Content-Length: 5\r\n\r\nhello", True),
    "of a stated length, with more after it": (HEAD + b"content-length:5\r\n\r\nhello, world", True),
    "until the end": (HEAD + b"\r\nhello", False),
    "in chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n", True),
    "in chunks, with bare line feeds": (HEAD + b"Transfer-Encoding: Chunked\r\n\r\n5\nhello\n0\n\n", True),
    "after an interim response": (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello", True),
    "with bare line feeds": (b"HTTP/1.0 200 \nContent-Type: image/jpeg\n\nhello", False),
    "with a length without meaning": (HEAD + b"Content-Length: -1\r\n\r\nhello", False),
}


@pytest.mark.parametrize(("response", "ended"), RESPONSES.values(), ids=RESPONSES)
@given(cuts=st.lists(st.integers(1, 40), min_size=1))
def test_the_body_is_the_same_however_the_response_is_cut(response: bytes, ended: bool, cuts: list[int]) -> None:
    stream, body, at, number = HttpStream(), b"", 0, 0
    while at < len(response):
        size = cuts[number % len(cuts)]
        body += stream.feed(response[at : at + size])
        at, number = at + size, number + 1
    assert (stream.status, stream.headers["content-type"], body, stream.ended) == (200, "image/jpeg", b"hello", ended)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_a_response_or_an_error(first: bytes, second: bytes) -> None:
    stream = HttpStream()
    try:
        stream.feed(b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n" + first)
        stream.feed(second)
    except DeviceError:
        pass


def test_headers_of_one_name_are_joined() -> None:
    stream = HttpStream()
    stream.feed(b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=a\r\nWWW-Authenticate: Digest realm=b\r\n\r\n")
    assert stream.headers == {"www-authenticate": "Basic realm=a, Digest realm=b"}


def test_headers_of_blanks_take_little_time() -> None:
    stream = HttpStream()
    stream.feed(b"HTTP/1.1 200 OK\r\nX: a" + b" " * 16_000 + b"b\r\n\r\n")
    assert stream.headers == {"x": "a" + " " * 16_000 + "b"}


def test_headers_that_never_end_take_bounded_memory() -> None:
    stream = HttpStream()
    stream.feed(b"HTTP/1.1 200 OK\r\n" + b"X-Camera: yes\r\n" * 1000)
    with pytest.raises(DeviceError, match="headers are longer than 16 KiB"):
        stream.feed(b"X-Camera: yes\r\n" * 100)


@pytest.mark.parametrize(
    "response", [b"RTSP/1.0 200 OK\r\n\r\n", b"SSH-2.0-x", b"HTTP/1.1 OK\r\n\r\n", b"\x15\x03\x01"]
)
def test_other_protocols_are_named(response: bytes) -> None:
    with pytest.raises(DeviceError, match="the server does not speak HTTP: "):
        HttpStream().feed(response)


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"5\r\nhelloworld\r\n", b"5" * 2000])
def test_damaged_chunks(chunk: bytes) -> None:
    with pytest.raises(DeviceError, match="the server sends damaged chunks"):
        HttpStream().feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
