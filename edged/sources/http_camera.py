"""A camera on the network: snapshots, requested one by one, or a stream of JPEG pictures (MJPEG).

The camera's first answer tells which of both a URL leads to. core/http_stream.py and core/picture_stream.py understand
the bytes; this module fetches them, and never waits longer than asked: a camera that trickles or hangs is given up
once no picture has come for `timeout` seconds.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Annotated
from urllib.parse import SplitResult

from msgspec import Meta

from edged import __version__
from edged.api import Chunk, ConfigError, DeviceError, Obstacle, Source, SourceConfig, SourceInfo
from edged.core.framing import Faults
from edged.core.http_login import Login, authorization
from edged.core.http_stream import HttpStream
from edged.core.picture_stream import NO_PICTURE, JpegSplitter, PictureSplitter, WholePicture
from edged.core.types import MAX_URL
from edged.pictures.encoded import EncodedPicture
from edged.sources.newest_picture import NewestPicture, PictureRate, Timeout
from edged.system.credentials import read_secret
from edged.system.later import ssl
from edged.system.tls import tls_refusal, trusting
from edged.system.urls import FetchError, Origin, follow, origin, parse_origin, parse_url, place

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
"""Longest time to connect, below the time after which a source counts as hung."""

_PIECE = 256 << 10
_MOST_PIECES = 64
"""Number of pieces after which a read looks at the clock again, however fast the camera sends."""

_STREAMS = ("multipart/", "video/", "application/octet-stream")

_Text = Annotated[str, Meta(max_length=1000)]


class HttpCameraSource(SourceConfig, frozen=True, kw_only=True):
    """Options of [sources.X] with kind = "http_camera": a camera on the network, by HTTP or HTTPS.

    The `url` leads to a snapshot, which is requested again and again, or to an MJPEG stream. A server's certificate is
    always verified. The password goes to the server of `url` alone, by the scheme Digest or Basic, whichever the server
    asks for; proxies are not used.

    Keys:
        url: Address of the camera's snapshot or stream, without user and password.
        rate (pictures/s): Pictures to take, at most. Default: all pictures of a stream, and one snapshot a second.
        username: User name at the camera.
        password_file: File with the password in its first line, read again for each connection. A relative name is a
            credential of the service.
        ca_file: Certificates of trusted authorities, or the camera's own certificate. Default: the system's.
        origins: Other servers to which the camera may redirect, written as https://files.example.org:8443. They get no
            password.
        timeout (s): Time without a picture after which the connection is given up, and opened again.
    """

    url: Annotated[str, Meta(min_length=1, max_length=MAX_URL)]
    rate: PictureRate | None = None
    username: _Text = ""
    password_file: _Text = ""
    ca_file: _Text = ""
    origins: Annotated[tuple[_Text, ...], Meta(max_length=100)] = ()
    timeout: Timeout = 10.0

    def describe(self) -> SourceInfo:
        """Describe a source of pictures."""
        self._target()
        self._redirects()
        if bool(self.username) != bool(self.password_file):
            raise ConfigError("username and password_file go together", hint="give both or neither")
        return SourceInfo(shape=(), pictures=True)

    def open(self) -> Source:
        """Connect to the camera, and request a picture."""
        return HttpPictures(self, self._target(), self._redirects())

    def _target(self) -> SplitResult:
        try:
            target = parse_url(self.url)
        except FetchError as error:
            raise ConfigError(error.message, hint="write the url as http://camera.local/snapshot.jpg") from error
        if target.username is not None or target.password is not None:
            raise ConfigError(
                "the url holds a user or a password", hint="set username, and the password in a password_file"
            )
        if self.ca_file and target.scheme == "http":
            raise ConfigError("ca_file has no effect without TLS", hint="begin the url with https://")
        return target._replace(fragment="")

    def _redirects(self) -> frozenset[Origin]:
        return frozenset(map(parse_origin, self.origins))


class HttpPictures:
    """Pictures of an HTTP camera. `faults` counts discarded pictures by reason."""

    def __init__(
        self,
        options: HttpCameraSource,
        home: SplitResult,
        redirects: frozenset[Origin],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.faults = Faults()
        self._options = options
        self._home = home
        self._allowed = redirects | {origin(home)}
        self._clock = clock
        self._newest = NewestPicture(options.rate, EncodedPicture, self.faults)
        self._challenge = ""
        self._asked = self._heard = clock()
        self._exchange: _Exchange | None = self._ask(home)

    @property
    def refused(self) -> str:
        """The beginning of the last discarded input, escaped."""
        return self.faults.last

    @property
    def obstacle(self) -> Obstacle | None:
        """The reason for input without pictures."""
        if self.faults.keys() != {NO_PICTURE}:
            return None
        return Obstacle("the camera sends no JPEG pictures", 'set the camera to MJPEG, or use kind = "rtsp"')

    def read(self, timeout: float) -> Chunk | None:
        """Return the newest picture; None if none has arrived, or if the rate allows none yet."""
        deadline = self._clock() + timeout
        while True:
            now = self._clock()
            if self._exchange is not None:
                until = deadline if self._newest.due is None else min(deadline, self._newest.due)
                self._receive(self._exchange, max(until - now, 0.0))
            elif now < self._next_snapshot:
                time.sleep(max(min(deadline, self._next_snapshot) - now, 0.0))
            else:
                self._asked = self._heard = now
                self._exchange = self._ask(self._home)
            has_ended = self._exchange is not None and self._exchange.ended
            chunk = self._newest.take(math.inf if has_ended else self._clock())
            if chunk or self._clock() >= deadline:
                return chunk

    def close(self) -> None:
        """Cut the connection."""
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = None

    @property
    def _next_snapshot(self) -> float:
        return self._asked + 1.0 / (self._options.rate or 1.0)

    def _ask(self, target: SplitResult, redirects: int = 0, refusals: int = 0) -> _Exchange:
        """Send a request, the first or after redirects and refusals, with the password if the home server wants it."""
        header = ""
        if self._challenge and origin(target) == origin(self._home):
            header = self._login(target)
        return _Exchange(target, header, self._options, redirects, refusals)

    def _login(self, target: SplitResult) -> str:
        login = Login(self._options.username, read_secret("password_file", self._options.password_file))
        value = authorization(self._challenge, login, "GET", _asked_for(target), os.urandom(16).hex())
        if not value:
            raise DeviceError(
                f"{place(target)} asks for a password by another scheme than Digest and Basic",
                hint="choose Digest or Basic in the camera's settings",
                retryable=True,
            )
        return f"Authorization: {value}\r\n"

    def _receive(self, exchange: _Exchange, pause: float) -> None:
        """Take over all that has arrived, or arrives within `pause` seconds."""
        pictures: list[bytes] = []
        for piece in exchange.pieces(pause):
            body = exchange.response.feed(piece)
            if not exchange.accepted and exchange.response.status:
                if not self._accepts(exchange):
                    return
                exchange.accepted = True
            pictures += exchange.split(body, self.faults)
        now = self._clock()
        if exchange.ended:
            pictures += exchange.split_end(self.faults)
        self._newest.offer(pictures, now)
        if pictures:
            self._heard = now
        if exchange.ended or (pictures and not exchange.is_stream):
            self._leave(exchange)
        elif now - self._heard > self._options.timeout:
            said = "sends no picture" if exchange.response.status else "does not answer"
            raise DeviceError(
                f"{place(exchange.target)} {said} for {self._options.timeout:g} s",
                hint="check the camera's power and network, and the url",
                retryable=True,
            )

    def _accepts(self, exchange: _Exchange) -> bool:
        """Judge the headers of an answer; return False if another request was sent instead."""
        response, target = exchange.response, exchange.target
        if response.status == 200:
            exchange.check_type()
            return True
        exchange.close()
        at_home = origin(target) == origin(self._home)
        if response.status == 401 and self._options.password_file and at_home and not exchange.refusals:
            self._challenge = response.headers.get("www-authenticate", "")
            self._exchange = self._ask(target, exchange.redirects, exchange.refusals + 1)
            return False
        if response.status in (301, 302, 303, 307, 308) and "location" in response.headers:
            self._exchange = self._ask(self._redirected(exchange), exchange.redirects + 1)
            return False
        raise DeviceError(
            f"{place(target)} answers {response.status}", hint=self._remedy(response.status), retryable=True
        )

    def _redirected(self, exchange: _Exchange) -> SplitResult:
        try:
            target = follow(exchange.target, exchange.response.headers["location"])
        except FetchError as error:
            raise DeviceError(error.message, hint=error.hint, retryable=True) from error
        if origin(target) not in self._allowed:
            raise DeviceError(
                f"{place(exchange.target)} redirects to another server, {target.scheme}://{place(target)}",
                hint="check the url; to allow the other server, name it in origins",
                retryable=True,
            )
        if exchange.redirects >= MAX_REDIRECTS:
            raise DeviceError(
                f"{place(target)} redirects more than {MAX_REDIRECTS} times", hint="check the url", retryable=True
            )
        return target

    def _remedy(self, status: int) -> str:
        if status == 401 and not self._options.password_file:
            return "set username and password_file"
        if status in (401, 403):
            return "check username, and the password in password_file"
        return "restart the camera if this lasts" if status >= 500 else "check the url"

    def _leave(self, exchange: _Exchange) -> None:
        """Leave a snapshot's connection. The end of a stream is an error once its last picture was given out."""
        if exchange.accepted and not exchange.is_stream:
            self.close()
        elif self._newest.due is None:
            what = "the stream" if exchange.is_stream else "the connection before an answer"
            raise DeviceError(
                f"{place(exchange.target)} has ended {what}",
                hint="restart the camera if this lasts; a camera may serve a few connections only",
                retryable=True,
            )


class _Exchange:
    """A request and its answer. The answer has `ended` if the server sends no more."""

    def __init__(
        self, target: SplitResult, header: str, options: HttpCameraSource, redirects: int, refusals: int
    ) -> None:
        self.target = target
        self.redirects = redirects
        self.refusals = refusals
        self.response = HttpStream()
        self.accepted = False
        self.is_stream = False
        self.ended = False
        self._splitter: PictureSplitter | None = None
        self._more = False
        self._socket = _connected(target, options)
        self._arrival = select.poll()
        self._arrival.register(self._socket, select.POLLIN)
        request = f"GET {_asked_for(target)} HTTP/1.1\r\nHost: {place(target)}\r\nUser-Agent: edged/{__version__}\r\n"
        try:
            self._socket.sendall(f"{request}Accept: */*\r\n{header}Connection: close\r\n\r\n".encode())
        except OSError as error:
            self.close()
            raise _broken(target, error) from error
        self._socket.setblocking(False)

    def pieces(self, pause: float) -> Iterator[bytes]:
        """Yield the bytes that have arrived, or arrive within `pause` seconds, up to a limit."""
        if not self._more and not self._arrival.poll(pause * 1000):
            return
        self._more = False
        for _ in range(_MOST_PIECES):
            try:
                piece = self._socket.recv(_PIECE)
            except BlockingIOError:
                return
            except ssl.SSLWantReadError:  # no class to be put into a tuple before the import of ssl
                return
            except OSError as error:
                raise _broken(self.target, error) from error
            if piece:
                yield piece
            if self.response.ended or not piece:
                self.ended = True
                return
        self._more = True

    def check_type(self) -> None:
        """Note whether a stream follows, or a snapshot. Raises DeviceError for anything else."""
        kind = self.response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self.is_stream = kind.startswith(_STREAMS)
        if not self.is_stream and not kind.startswith("image/"):
            raise DeviceError(
                f"{place(self.target)} sends {kind[:80] or 'something without a type'} in place of a picture",
                hint="set the url of the camera's snapshot or MJPEG stream, not of its page",
                retryable=True,
            )

    def split(self, body: bytes, faults: Faults) -> list[bytes]:
        """Return the pictures completed by a piece of the body. A snapshot may be of any format."""
        if self._splitter is None and body:
            is_jpeg = self.is_stream or b"\xff\xd8".startswith(body[:2])
            self._splitter = JpegSplitter(faults) if is_jpeg else WholePicture(faults)
        return self._splitter.feed(body) if self._splitter else []

    def split_end(self, faults: Faults) -> list[bytes]:
        """Return the picture completed by the end of the body, if any."""
        splitter = self._splitter or WholePicture(faults)
        return splitter.end() if self.accepted else []

    def close(self) -> None:
        """Cut the connection."""
        self._socket.close()


def _connected(target: SplitResult, options: HttpCameraSource) -> socket.socket:
    """Return a socket connected to a server, through TLS if asked for."""
    _, host, port = origin(target)
    seconds = min(options.timeout, CONNECT_SECONDS)
    try:
        plain = socket.create_connection((host, port), timeout=seconds)
    except OSError as error:
        raise DeviceError(
            f"{place(target)} cannot be reached: {error.strerror or error}",
            hint="check the address, the camera's power and the network",
            retryable=True,
        ) from error
    if target.scheme == "http":
        return plain
    try:
        context = trusting(options.ca_file)
        # Python 3.13 refuses home-made certificates that lack an extension. Names and dates are verified all the same.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusts the camera's own certificate, too
        secured = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        _shake_hands(secured, time.monotonic() + seconds)
        secured.settimeout(seconds)
        return secured
    except OSError as error:
        plain.close()
        refusal = tls_refusal(error, place(target), time.time()) if isinstance(error, ssl.SSLError) else None
        if refusal is None:
            raise _broken(target, error) from error
        raise DeviceError(refusal.message, hint=refusal.hint, retryable=True) from error


def _shake_hands(secured: ssl.SSLSocket, deadline: float) -> None:
    """Begin TLS. A time-out of the socket would apply to each byte of a server that trickles."""
    secured.setblocking(False)
    while True:
        waiting = select.poll()
        try:
            secured.do_handshake()
            return
        except ssl.SSLWantReadError:
            waiting.register(secured, select.POLLIN)
        except ssl.SSLWantWriteError:
            waiting.register(secured, select.POLLOUT)
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not waiting.poll(remaining * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "TLS did not begin in time")


def _broken(target: SplitResult, error: OSError) -> DeviceError:
    return DeviceError(
        f"the connection to {place(target)} broke off: {error.strerror or error}",
        hint="check the camera's power and network",
        retryable=True,
    )


def _asked_for(target: SplitResult) -> str:
    """Return the path and query of a URL, as a request names them."""
    return f"{target.path or '/'}{'?' if target.query else ''}{target.query}"
