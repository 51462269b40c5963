"""A connection to a web server: TCP, through a proxy and TLS if wanted. Another thread can cut the connection.

`http.client` speaks HTTP over an `HttpConnection` as over a socket. Every received byte passes `readinto`: the minimum
speed applies to bodies, headers, chunk sizes and a proxy's response alike, and no server can hold the fetch forever
with a byte now and then.
"""

from __future__ import annotations

import base64
import io
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from threading import Event, Lock
from typing import Any, NamedTuple, cast
from urllib.parse import SplitResult, unquote
from urllib.request import getproxies_environment, proxy_bypass

from edged import __version__
from edged.system.credentials import find, read_secret, unusable
from edged.system.later import ssl
from edged.system.tls import tls_refusal, trusting
from edged.system.urls import FetchError, origin, place
from edged.transfer.http_response import AbandonedError
from edged.transfer.origins import OriginPolicy, parse_proxy


class MinimumSpeed(NamedTuple):
    """A minimum speed of `least()` bytes a second, measured over `seconds`, and of one byte in that time.

    Connecting and sending may take `seconds`, too.
    """

    least: Callable[[], float]
    seconds: float


class TooSlowError(OSError):
    """The server sends more slowly than the minimum speed."""


class Cancellation:
    """A cancellation of all connections, now and later, from any thread."""

    def __init__(self) -> None:
        self._cancelled = Event()
        self._lock = Lock()
        self._socket: socket.socket | None = None

    def cancel(self) -> None:
        """Cut the open connection, and refuse others."""
        with self._lock:
            self._cancelled.set()
            if self._socket is not None:
                with suppress(OSError):
                    # SSLSocket.shutdown would remove the encryption while another thread reads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise AbandonedError after a cancellation."""
        if self._cancelled.is_set():
            raise AbandonedError("the fetch was cancelled", hint="fetch again to continue", retryable=True)

    def wait(self, seconds: float) -> None:
        """Sleep. Raises AbandonedError as soon as cancelled."""
        self._cancelled.wait(seconds)
        self.check()

    def watch(self, sock: socket.socket) -> None:
        """Take over a socket, which only `release` closes. Raises AbandonedError."""
        with self._lock:
            self._socket = sock
        self.check()

    def release(self) -> None:
        """Close the socket."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None


class HttpConnection:
    """A connected socket for http.client. The Cancellation closes the socket, not http.client."""

    def __init__(self, sock: socket.socket, minimum: MinimumSpeed, received: Callable[[int], None]) -> None:
        self._socket = sock
        self._minimum = minimum
        self._received = received

    def sendall(self, data: bytes) -> None:
        """Send all bytes, within the seconds of the minimum speed."""
        self._socket.settimeout(self._minimum.seconds)
        self._socket.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file of the received bytes."""
        return io.BufferedReader(_Inflow(self._socket, self._minimum, self._received))


class _Inflow(io.RawIOBase):
    """The received bytes, counted, at no less than the minimum speed."""

    def __init__(self, sock: socket.socket, minimum: MinimumSpeed, received: Callable[[int], None]) -> None:
        self._socket = sock
        self._minimum = minimum
        self._received = received
        self._count = 0
        self._deadline = time.monotonic() + minimum.seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer, and return the number of bytes. Raises TooSlowError."""
        while True:
            count = self._receive(buffer)
            self._enforce_minimum(count or 0)
            if count is not None:
                self._received(count)
                return count

    def _receive(self, buffer: memoryview) -> int | None:
        """Return the number of bytes received; None if the deadline came first."""
        self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            return self._socket.recv_into(buffer)
        except TimeoutError:
            return None

    def _enforce_minimum(self, count: int) -> None:
        self._count += count
        now = time.monotonic()
        if now < self._deadline:
            return
        if not self._count or self._count < self._minimum.least() * self._minimum.seconds:
            raise TooSlowError(f"only {self._count} bytes arrived within {self._minimum.seconds:g} s")
        self._count, self._deadline = 0, now + self._minimum.seconds


class Identity(NamedTuple):
    """TLS contexts without and with the board's certificate, and the token. Only the first server gets the latter."""

    anonymous: ssl.SSLContext
    certified: ssl.SSLContext
    token: str


def identify(ca_file: str, cert_file: str, key_file: str, token_file: str) -> Identity:
    """Read the named files. Raises ConfigError for an unusable file."""
    anonymous = certified = trusting(ca_file)
    if cert_file:
        certified = trusting(ca_file)
        try:
            # OpenSSL would ask for a passphrase on the terminal; an empty one makes a protected key an error.
            certified.load_cert_chain(find(cert_file), find(key_file), password="")
        except OSError as error:
            raise unusable("cert_file or key_file", f"{cert_file}, {key_file}", error) from error
    return Identity(anonymous, certified, read_secret("token_file", token_file) if token_file else "")


# Proxies


def find_proxies(proxy: str, no_proxy: str) -> dict[str, str]:
    """Return proxy URLs by scheme, and under "no" the hosts to reach directly, from the options or the environment."""
    if proxy == "none":
        return {}
    return {"http": proxy, "https": proxy, "no": no_proxy} if proxy else getproxies_environment()


# Requests


class HttpClient:
    """Requests files from web servers, one at a time. `received` is called with the size of every read.

    Credentials go to the named origins of the `policy`. A `guarded` client asks no other server in the board's network.
    """

    def __init__(
        self,
        identity: Identity,
        policy: OriginPolicy,
        *,
        guarded: bool,
        proxies: dict[str, str],
        minimum_speed: MinimumSpeed,
        cancellation: Cancellation,
        received: Callable[[int], None],
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._guarded = guarded
        self._proxies = proxies
        self._minimum = minimum_speed
        self._cancellation = cancellation
        self._received = received

    def get(self, target: SplitResult, home: SplitResult, headers: dict[str, str]) -> HTTPResponse:
        """Return the response, with the body still to be read. `home` is the first URL, and gets credentials.

        Raises:
            PolicyError: a guarded client may not ask this server.
            FetchError: a certificate is wrong, or a proxy refuses.
            OSError, HTTPException: the request failed for a reason that may pass.
            AbandonedError: the fetch was cancelled.
        """
        self._cancellation.release()
        try:
            return self._get(target, home, headers)
        except ssl.SSLError as error:
            refusal = tls_refusal(error, place(target), time.time())
            raise (refusal or error) from error

    def _get(self, target: SplitResult, home: SplitResult, headers: dict[str, str]) -> HTTPResponse:
        at_home = origin(target) == origin(home)
        proxy = self._proxy(target)
        sock = self._dial_proxy(proxy, target) if proxy else self._dial(target, guarded=self._guarded)
        path = f"{target.path or '/'}{'?' if target.query else ''}{target.query}"
        asked = {"Host": place(target), **headers, **(self._credentials(home) if at_home else {})}
        if target.scheme == "https":
            if proxy:
                self._tunnel(sock, proxy, target)
            ours = at_home and origin(home) in self._policy.named
            sock = self._secure(sock, target, self._identity.certified if ours else self._identity.anonymous)
        elif proxy:
            path = f"http://{place(target)}{path}"
            asked |= _basic("Proxy-Authorization", proxy)
        return _exchange(HttpConnection(sock, self._minimum, self._received), "GET", path, asked)

    def _proxy(self, target: SplitResult) -> SplitResult | None:
        url = self._proxies.get(target.scheme)
        _, host, port = origin(target)
        return parse_proxy(url) if url and not proxy_bypass(f"{host}:{port}", self._proxies) else None

    def _dial_proxy(self, proxy: SplitResult, target: SplitResult) -> socket.socket:
        if self._guarded:
            self._policy.admit_proxied(target)
        try:
            return self._dial(proxy, guarded=False)
        except OSError as error:
            self._cancellation.check()
            raise OSError(f"the proxy {place(proxy)} cannot be reached: {error.strerror or error}") from error

    def _dial(self, target: SplitResult, *, guarded: bool) -> socket.socket:
        """Connect to one of the addresses, looked up once: a second look-up might give unchecked ones."""
        _, host, port = origin(target)
        refusal = OSError(f"{host} has no address")
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if guarded:
            for family, _, _, _, address in addresses:
                self._policy.admit_address(target, str(address[0]), ours=_is_ours(family, address))
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(self._minimum.seconds)
            self._cancellation.watch(sock)
            try:
                sock.connect(address)
                return sock
            except OSError as error:
                refusal = error
                self._cancellation.release()
        raise refusal

    def _tunnel(self, sock: socket.socket, proxy: SplitResult, target: SplitResult) -> None:
        _, host, port = origin(target)
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = {"Host": authority, **_basic("Proxy-Authorization", proxy)}
        try:
            answer = _exchange(HttpConnection(sock, self._minimum, self._received), "CONNECT", authority, headers)
        except (OSError, HTTPException) as error:
            self._cancellation.check()
            raise OSError(f"the proxy {place(proxy)} does not answer: {error}") from error
        if answer.status in (401, 403, 405, 407):
            raise FetchError(
                f"the proxy {place(proxy)} answers {answer.status} to a connection to {authority}",
                hint="check the user and password of the proxy, and that the proxy allows this host",
            )
        if answer.status != 200:
            raise HTTPException(f"the proxy {place(proxy)} answers {answer.status}")

    def _secure(self, sock: socket.socket, target: SplitResult, context: ssl.SSLContext) -> ssl.SSLSocket:
        secured = context.wrap_socket(sock, server_hostname=target.hostname, do_handshake_on_connect=False)
        self._cancellation.watch(secured)
        secured.settimeout(self._minimum.seconds)
        secured.do_handshake()
        return secured

    def _credentials(self, home: SplitResult) -> dict[str, str]:
        if home.username is not None:
            return _basic("Authorization", home)
        # A token is never sent in the clear, nor to a server that only a message names.
        token = self._identity.token if home.scheme == "https" and origin(home) in self._policy.named else ""
        return {"Authorization": f"Bearer {token}"} if token else {}


def _exchange(connection: HttpConnection, method: str, path: str, headers: dict[str, str]) -> HTTPResponse:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    # A server may respond and close the connection before it has read the request: read the response.
    with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        connection.sendall(
            "\r\n".join([*lines, f"User-Agent: edged/{__version__}", "Connection: close", "", ""]).encode()
        )
    response = HTTPResponse(cast(socket.socket, connection), method=method)
    response.begin()
    return response


def _is_ours(family: int, address: Any) -> bool:
    """Return whether a connection to this address would end at this board. Sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return bool(probe.getsockname()[0] == address[0])
    except OSError:  # no route; connecting will fail, too
        return False


def _basic(header: str, parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {base64.b64encode(pair.encode()).decode()}"}
