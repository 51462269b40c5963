"""Response of a web server, from pieces that arrive one by one: status, headers, and a body that may never end.

http.client waits for whole lines and whole chunks; a source must not wait. Sizes are bounded: headers by 16 KiB, and
nothing of a body is kept.
"""

from __future__ import annotations

import re

from edged.core.errors import DeviceError
from edged.core.framing import escaped

MAX_HEADERS = 16 << 10
_MAX_CHUNK_LINE = 1024

_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.\d +(\d{3})(?: |\r?$)", re.M)
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?\r?\n")
_WITHOUT_BODY = {204, 304}


class HttpStream:
    """Response to a request, fed with the bytes of the connection.

    `status` is 0 until all headers have arrived. `headers` have names in lower case; several of the same name are
    joined by a comma. The response has `ended` if no byte of the body can follow; a body without a stated length
    lasts until the connection ends.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = False
        self._rest = bytearray()
        self._chunked = False
        self._left: int | None = None

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes of the body in a piece. Raises DeviceError for anything but HTTP."""
        self._rest += piece
        while not self.status:
            if not self._take_headers():
                return b""
        if self._chunked:
            return self._dechunked()
        body = bytes(self._rest[: self._left])
        self._rest.clear()
        if self._left is not None:
            self._left -= len(body)
            self.ended = not self._left
        return body

    def _take_headers(self) -> bool:
        """Take the headers if all have arrived; those of an interim response are passed over."""
        end = _END_OF_HEADERS.search(self._rest)
        if (end.end() if end else len(self._rest)) > MAX_HEADERS:
            raise DeviceError(
                f"the server's headers are longer than {MAX_HEADERS >> 10} KiB", hint="check the url", retryable=True
            )
        if not b"HTTP/1.".startswith(bytes(self._rest[:7])):
            raise _not_http(bytes(self._rest))
        if end is None:
            return False
        head = bytes(self._rest[: end.start()])
        del self._rest[: end.end()]
        line = _STATUS_LINE.match(head)
        if line is None:
            raise _not_http(head)
        if (status := int(line[1])) >= 200:
            self._begin_body(status, head)
        return True

    def _begin_body(self, status: int, head: bytes) -> None:
        for line in head.decode("latin-1").split("\n")[1:]:  # no regular expression: blanks may be thousands
            name, _, value = line.partition(":")
            key, text = name.strip().lower(), value.strip()
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text
        self.status = status
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        if status in _WITHOUT_BODY or self._chunked:
            self._left = 0
        elif re.fullmatch(r"[0-9]{1,15}", length):
            self._left = int(length)
        self.ended = self._left == 0 and not self._chunked

    def _dechunked(self) -> bytes:
        body = bytearray()
        while self._rest and not self.ended:
            if self._left:
                data = self._rest[: self._left]
                del self._rest[: len(data)]
                self._left -= len(data)
                body += data
            elif not self._begin_chunk():
                break
        return bytes(body)

    def _begin_chunk(self) -> bool:
        """Take the line before a chunk, and return whether the line has arrived. The last chunk is empty."""
        while self._rest.startswith((b"\r\n", b"\n")):  # the end of the chunk before
            del self._rest[: 1 + self._rest.startswith(b"\r")]
        line = _CHUNK.match(self._rest)
        if line is None:
            if b"\n" in self._rest or len(self._rest) > _MAX_CHUNK_LINE:
                raise DeviceError(
                    f"the server sends damaged chunks: {escaped(bytes(self._rest))}", hint="check the camera",
                    retryable=True,
                )  # fmt: skip
            return False
        self._left = int(line[1], 16)
        self.ended = not self._left
        del self._rest[: line.end()]
        return True


def _not_http(start: bytes) -> DeviceError:
    return DeviceError(
        f"the server does not speak HTTP: {escaped(start)}", hint="check the port of the url", retryable=True
    )
