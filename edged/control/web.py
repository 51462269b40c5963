"""Optional page for machines: `GET /metrics` for Prometheus and `GET /healthz` for supervision.

The page is on loopback by default, cannot change the daemon, and reads only the head of a request: 8 KiB, within five
seconds, from at most eight clients at once; a ninth replaces the oldest.

A request must name the host by address or as localhost: a web page may lead its own name here (DNS rebinding) and have
a browser send a request, but only under that name.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

from edged.control.control_socket import WAITING
from edged.control.server import ACCEPTED_AT_ONCE
from edged.core.errors import ControlError
from edged.core.metrics import CONTENT_TYPE

MAX_HEAD = 8 << 10
MAX_CONNECTIONS = 8

log = logging.getLogger("edged.control")


class Response(NamedTuple):
    """An answer: `headers` are lines, each ended."""

    status: HTTPStatus
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"
    headers: str = ""


class Web:
    """Pages on `host` and `port` from `start` to `stop`; with port 0, `port` becomes the chosen port.

    `metrics` renders the metrics. `trouble` is "" while the daemon is well, otherwise the reason. `timeout` is the
    time, in seconds, for a client to send a request and to read the answer.
    """

    def __init__(
        self,
        port: int,
        metrics: Callable[[], str],
        trouble: Callable[[], str],
        *,
        host: str = "127.0.0.1",
        timeout: float = 5.0,
    ) -> None:
        self.host = host
        self.port = port
        self._metrics = metrics
        self._trouble = trouble
        self._timeout = timeout
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def start(self) -> None:
        """Listen.

        Raises:
            ControlError: the address is taken, or not an address of this board.
        """
        try:
            listener = socket.create_server((self.host, self.port))
            self._server = await asyncio.start_server(
                self._accept, sock=listener, limit=MAX_HEAD, backlog=ACCEPTED_AT_ONCE
            )
            listener.listen(WAITING)
        except OSError as error:
            raise ControlError(
                f"the metrics page cannot listen on {self.host} port {self.port}: {error.strerror}",
                hint="set another port in [metrics]; `ss -ltnp` shows who has this one",
            ) from error
        self.port = listener.getsockname()[1]

    async def stop(self) -> None:
        """Let every client go. May be called twice."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections[connection] = None
        connection.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                writer.write(_encode(await self._respond(reader)))
                writer.write_eof()
                writer.transport.set_write_buffer_limits(high=0)
                await writer.drain()
                # Closing with unread data would reset the connection, and the answer might be lost.
                while await reader.read(MAX_HEAD):
                    pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("let go of a client of the metrics page: %r", error)
        except Exception:
            log.exception("the metrics page failed")
        finally:
            writer.transport.abort()

    async def _respond(self, reader: asyncio.StreamReader) -> Response:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return Response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        request, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        if not _is_ours(fields):
            return Response(HTTPStatus.MISDIRECTED_REQUEST, _MISDIRECTED)
        match request.split(b" "):
            case [b"GET", target, b"HTTP/1.1" | b"HTTP/1.0"]:
                return self._page(target.split(b"?", 1)[0])
            case [_, _, b"HTTP/1.1" | b"HTTP/1.0"]:
                return Response(HTTPStatus.METHOD_NOT_ALLOWED, headers="Allow: GET\r\n")
            case _:
                return Response(HTTPStatus.BAD_REQUEST)

    def _page(self, path: bytes) -> Response:
        if path == b"/metrics":
            return Response(HTTPStatus.OK, self._metrics(), CONTENT_TYPE)
        if path == b"/healthz":
            trouble = self._trouble()
            return Response(HTTPStatus.SERVICE_UNAVAILABLE if trouble else HTTPStatus.OK, f"{trouble or 'ok'}\n")
        return Response(HTTPStatus.NOT_FOUND, "try /metrics or /healthz\n")


_MISDIRECTED = "ask for this page by the host's address, or as localhost\n"


def _is_ours(fields: list[bytes]) -> bool:
    """Return whether a request names the host, as browsers always do, only in ways that exclude other names."""
    split = (field.partition(b":") for field in fields)
    return all(_OURS.fullmatch(value.strip()) for name, _, value in split if name.strip().lower() == b"host")


_OURS = re.compile(rb"(?:localhost|\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE)


def _encode(response: Response) -> bytes:
    body = response.body.encode()
    head = (
        f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
        f"Content-Type: {response.content_type}\r\nContent-Length: {len(body)}\r\n{response.headers}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
