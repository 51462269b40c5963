"""The real page over a real connection, with requests of curl and invalid requests."""

import asyncio
import contextlib
import urllib.error
import urllib.request

import pytest

from edged.control.web import MAX_CONNECTIONS, Web
from edged.core.errors import ControlError


@contextlib.asynccontextmanager
async def serving(trouble="", metrics=lambda: "edged_info 1\n", **options):
    web = Web(0, metrics, lambda: trouble, **options)
    await web.start()
    try:
        yield web
    finally:
        await web.stop()


async def exchange(web, request):
    """Return the whole answer to some bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer.decode()


def answer_to(request, **options):
    async def scenario():
        async with serving(**options) as web:
            return await exchange(web, request)

    return asyncio.run(scenario())


def test_the_metrics_page():
    assert answer_to(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") == (
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        "Content-Length: 13\r\n"
        "Connection: close\r\n\r\n"
        "edged_info 1\n"
    )


def test_a_common_client_understands_it():
    def fetch(url):
        with urllib.request.urlopen(url, timeout=120) as answer:
            return answer.status, answer.read()

    async def scenario():
        async with serving() as web:
            return await asyncio.to_thread(fetch, f"http://127.0.0.1:{web.port}/healthz?full")

    assert asyncio.run(scenario()) == (200, b"ok\n")


def test_trouble_is_a_503_that_says_what():
    answer = answer_to(b"GET /healthz HTTP/1.0\r\n\r\n", trouble="pipeline door: no model")
    assert answer.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    assert answer.endswith("\r\n\r\npipeline door: no model\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", "400 Bad Request"),
        (b"\xff\x00 \xfe\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", "431 Request Header Fields Too Large"),
    ],
)
def test_anything_else_is_refused(request_bytes, status):
    assert answer_to(request_bytes).startswith(f"HTTP/1.1 {status}\r\n")


def test_half_a_request_is_given_up():
    assert answer_to(b"GET /metr", timeout=0.05) == ""


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9090", "127.0.0.1:9090", "192.168.1.7", "[::1]:9090"])
def test_the_host_by_address_or_as_localhost_is_answered(host):
    answer = answer_to(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.endswith("\r\n\r\nok\n")


@pytest.mark.parametrize(
    "fields",
    [
        "Host: attacker.example",
        "host:attacker.example:9090",
        "Host: 127.0.0.1.attacker.example",
        "Host: localhost.attacker.example",
        "Host: 127.0.0.1@attacker.example",
        "Host: 2130706433",
        "Host:",
        "Host: localhost\r\nHost: attacker.example",
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(fields):
    answer = answer_to(f"GET /metrics HTTP/1.1\r\n{fields}\r\n\r\n".encode())
    assert answer.startswith("HTTP/1.1 421 Misdirected Request\r\n")
    assert answer.endswith("\r\n\r\nask for this page by the host's address, or as localhost\n")


def test_of_more_clients_than_the_limit_the_oldest_makes_room():
    async def scenario():
        async with serving() as web:
            waiting = [await asyncio.open_connection("127.0.0.1", web.port) for _ in range(MAX_CONNECTIONS + 1)]
            with contextlib.suppress(ConnectionResetError):
                assert await waiting[0][0].read() == b""
            for reader, writer in (waiting[1], waiting[-1]):
                writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
                assert (await reader.read()).endswith(b"ok\n")

    asyncio.run(scenario())


def test_a_page_that_fails_disturbs_nothing_else(caplog):
    def broken():
        raise KeyError("oops")

    async def scenario():
        async with serving(metrics=broken) as web:
            with contextlib.suppress(ConnectionResetError):
                assert await exchange(web, b"GET /metrics HTTP/1.1\r\n\r\n") == ""
            assert (await exchange(web, b"GET /healthz HTTP/1.1\r\n\r\n")).endswith("ok\n")

    asyncio.run(scenario())
    assert "the metrics page failed" in caplog.text


def test_a_port_that_is_taken_says_what_to_do():
    async def scenario():
        async with serving() as web:
            await Web(web.port, lambda: "", lambda: "").start()

    with pytest.raises(ControlError, match=r"cannot listen on 127\.0\.0\.1 port") as refused:
        asyncio.run(scenario())
    assert "[metrics]" in refused.value.hint
