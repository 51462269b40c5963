"""A real web server with misbehaviour ordered by the test, one answer at a time, and a proxy for the server.

    with WebServer(content) as server:
        server.orders += [status(503, retry_after="0"), cut_after(1000)]

Without further orders the server behaves: ranges, If-Range, a strong ETag.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Request(NamedTuple):
    """Request of a client."""

    method: str
    path: str
    headers: Message

    @property
    def start(self) -> int:
        """Return the first byte of the requested range; 0 without a range."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else 0


Order = Callable[["Handler"], None]
"""Function for an answer in place of the correct answer."""


class WebServer:
    """Server of `content` at every path, on a port of loopback or of another `address`; over TLS with a `context`."""

    def __init__(self, content: bytes, context: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self.content = content
        self.address = address
        self.tags = True
        self.orders: deque[Order] = deque()
        self.requests: list[Request] = []
        self._context = context

    @property
    def port(self) -> int:
        port: int = self._server.server_address[1]
        return port

    def url(self, path: str = "/model.edgm", host: str = "") -> str:
        place = host or (f"[{self.address}]" if ":" in self.address else self.address)
        return f"{'https' if self._context else 'http'}://{place}:{self.port}{path}"

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'

    def __enter__(self) -> WebServer:
        handler = type("OurHandler", (Handler,), {"web": self, "context": self._context})
        self._server = (_Server6 if ":" in self.address else _Server)((self.address, 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report nothing: the tests make clients that hang up, or fail a handshake."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class Handler(BaseHTTPRequestHandler):
    """Handler of a connection with a single request."""

    web: WebServer
    context: ssl.SSLContext | None
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        if self.context:  # on this connection's own thread
            self.request = self.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        self.asked = Request("GET", self.path, self.headers)
        self.web.requests.append(self.asked)
        try:
            order = self.web.orders.popleft()
        except IndexError:
            order = behave
        order(self)

    def answer(self, status: int, headers: Mapping[str, str | None], body: bytes = b"") -> None:
        """Send an answer without headers that are None."""
        self.send_response(status)
        said = {"Content-Length": str(len(body)), "ETag": self.web.etag if self.web.tags else None, **headers}
        for name, value in said.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def behave(handler: Handler) -> None:
    """Answer correctly."""
    _serve(handler, handler.web.content)


def _serve(handler: Handler, content: bytes) -> None:
    start, etag, total = handler.asked.start, handler.web.etag, len(content)
    if not start or handler.asked.headers.get("If-Range", etag) != etag:
        handler.answer(200, {}, content)
    elif start >= total:
        handler.answer(416, {"Content-Range": f"bytes */{total}"})
    else:
        handler.answer(206, _range(start, total), content[start:])


def _range(start: int, total: int) -> dict[str, str | None]:
    return {"Content-Range": f"bytes {start}-{total - 1}/{total}"}


def status(code: int, *, retry_after: str | None = None) -> Order:
    """Return an order for an answer with only a status."""
    return lambda handler: handler.answer(code, {"Retry-After": retry_after})


def redirect(location: str, code: int = 302) -> Order:
    return lambda handler: handler.answer(code, {"Location": location})


def whole(handler: Handler) -> None:
    """200 for a range."""
    handler.answer(200, {}, handler.web.content)


def wrong_start(by: int) -> Order:
    """Another range than was asked for."""

    def order(handler: Handler) -> None:
        start, total = handler.asked.start + by, len(handler.web.content)
        handler.answer(206, _range(start, total), handler.web.content[start:])

    return order


def wrong_total(handler: Handler) -> None:
    """Answer with the correct range of a longer file."""
    start, total = handler.asked.start, len(handler.web.content)
    handler.answer(206, {"Content-Range": f"bytes {start}-{total - 1}/{total + 1}"}, handler.web.content[start:])


def cut_after(count: int) -> Order:
    """The right thing, for so many bytes of the body, and then the end."""

    def order(handler: Handler) -> None:
        start, total = handler.asked.start, len(handler.web.content)
        headers = {**(_range(start, total) if start else {}), "Content-Length": str(total - start)}
        handler.answer(206 if start else 200, headers)
        handler.wfile.write(handler.web.content[start : start + count])

    return order


def corrupt(at: int) -> Order:
    """The right thing, with the byte at this place of the file changed on the way."""

    def order(handler: Handler) -> None:
        right = handler.web.content
        _serve(handler, right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])

    return order


def swap(content: bytes, order: Order) -> Order:
    """Return an order to replace the file from this answer on."""

    def swapped(handler: Handler) -> None:
        handler.web.content = content
        order(handler)

    return swapped


def for_ever(handler: Handler) -> None:
    """A body without an end, in chunks; until the client hangs up."""
    handler.answer(200, {"Content-Length": None, "Transfer-Encoding": "chunked"})
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def drip(stop: threading.Event, seconds: float) -> Order:
    """The right thing, a byte every so many seconds; until the test is over."""

    def order(handler: Handler) -> None:
        handler.answer(200, {"Content-Length": str(len(handler.web.content))})
        for byte in handler.web.content:
            if stop.wait(seconds):
                return
            handler.wfile.write(bytes([byte]))

    return order


def silence(stop: threading.Event, arrived: threading.Event) -> Order:
    """Not a word, until the test is over."""

    def order(_handler: Handler) -> None:
        arrived.set()
        stop.wait()

    return order


def encoded(encoding: str) -> Order:
    return lambda handler: handler.answer(200, {"Content-Encoding": encoding}, handler.web.content)


def without_length(handler: Handler) -> None:
    """Answer with a body that ends with the connection."""
    handler.answer(200, {"Content-Length": None}, handler.web.content)


class ForwardProxy:
    """HTTP proxy: CONNECT, and GET of whole URLs. `requests` are the received requests."""

    def __init__(self, refuse: int = 0) -> None:
        self.requests: list[Request] = []
        self.refuse = refuse

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ForwardProxy:
        self._server = _Server(("127.0.0.1", 0), type("OurProxy", (_ProxyHandler,), {"proxy": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _ProxyHandler(BaseHTTPRequestHandler):
    proxy: ForwardProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        if self._refused():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port))) as upstream:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(upstream, self.connection), daemon=True)
            back.start()
            _pump(self.connection, upstream)
            back.join()

    def do_GET(self) -> None:
        if self._refused():
            return
        target = urlsplit(self.path)
        headers = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        with socket.create_connection((target.hostname or "", target.port or 80)) as upstream:
            upstream.sendall(f"GET {target.path} HTTP/1.1\r\n{headers}\r\n".encode())
            _pump(upstream, self.connection)

    def _refused(self) -> bool:
        self.close_connection = True
        self.proxy.requests.append(Request(self.command, self.path, self.headers))
        if self.proxy.refuse:
            self.send_response(self.proxy.refuse)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return bool(self.proxy.refuse)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
