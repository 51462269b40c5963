"""Meaning of an HTTP response for a download that may be half done: pure rules, from status and headers to a verdict.

The rules never trust that a range is the requested one, that the file has not changed, or that a redirect is harmless.
An error that no further request could cure is final, and has a remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from edged.system.urls import FetchError


class AbandonedError(FetchError):
    """The fetch was cancelled."""


class NotFoundError(FetchError):
    """The server refuses the file with a final status."""


class WrongFileError(FetchError):
    """Another file arrived, as from a network that requires a log-in first: the right one may arrive later."""


class RangeRequest(NamedTuple):
    """A request for the bytes from `offset` on, of `total` bytes (None: unknown) of the edition `tag`."""

    offset: int
    total: int | None
    tag: str


class Body(NamedTuple):
    """The bytes from `start` on follow, of `total`, of the edition `tag`. With a start of 0 the file begins anew."""

    start: int
    total: int | None
    tag: str


class Whole(NamedTuple):
    """The transfer has every byte already."""


class StartAgain(NamedTuple):
    """The received bytes do not fit the server's file, for a reason."""

    reason: str


class TryAgain(NamedTuple):
    """The request failed for a reason that may pass: in `after` seconds, if the server says so."""

    reason: str
    after: float | None = None


class Redirect(NamedTuple):
    """The file is at another location."""

    location: str


Answer = Body | Whole | StartAgain | TryAgain | Redirect

_REMEDIES = {
    401: "check the token or the password; edged sends a token only to servers in the configuration: see origins in "
    "[updates.fetch]",
    403: "check the token, and that the link has not expired",
    404: "check the URL",
    407: "check the user and password of the proxy",
    410: "the file was removed: use another URL",
}
_PASSING = {408, 425, 429}


def interpret(status: int, headers: Mapping[str, str], asked: RangeRequest) -> Answer:
    """Return the meaning of a response. The names of `headers` are in lower case.

    Raises:
        FetchError: the response is a final error.
    """
    if status == 200:
        return _whole(headers, asked)
    if status == 206:
        return _range(headers, asked)
    if status == 416 and asked.offset:
        return _beyond_the_end(headers, asked)
    if status in (301, 302, 303, 307, 308) and "location" in headers:
        return Redirect(headers["location"])
    if status in _PASSING or status >= 500:
        return TryAgain(f"the server answers {status}", _retry_after(headers))
    raise NotFoundError(f"the server answers {status}", hint=_REMEDIES.get(status, "check the URL"))


def _whole(headers: Mapping[str, str], asked: RangeRequest) -> Body | TryAgain:
    _refuse_encoded(headers)
    if asked.offset and headers.get("content-type", "").lower().startswith("text/html"):
        # A captive portal, say, answers in the server's place: keep the received bytes.
        return TryAgain("a web page arrived instead of the rest")
    total = None if "transfer-encoding" in headers else _number(headers.get("content-length", ""))
    return Body(0, total, _tag(headers))


def is_page(content_type: str, start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a web page."""
    text = start[:100].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return content_type.lower().startswith("text/html") or text.startswith((b"<!doctype html", b"<html"))


_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)", re.ASCII)


def _range(headers: Mapping[str, str], asked: RangeRequest) -> Body | StartAgain:
    _refuse_encoded(headers)
    said = headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(said)
    if found is None:
        return StartAgain(f"the server sends a part with an unusable Content-Range: {said[:80]!r}")
    start, total = int(found[1]), None if found[3] == "*" else int(found[3])
    if start != asked.offset:
        return StartAgain(f"the server sends the part from {start} instead of {asked.offset}")
    if None not in (total, asked.total) and total != asked.total:
        return StartAgain(f"the file has changed on the server from {asked.total} to {total} bytes")
    tag = _tag(headers)
    if asked.tag and tag and tag != asked.tag:
        return StartAgain("the file has changed on the server")
    return Body(start, total if total is not None else asked.total, tag or asked.tag)


def _beyond_the_end(headers: Mapping[str, str], asked: RangeRequest) -> Whole | StartAgain:
    said = _number(headers.get("content-range", "").removeprefix("bytes */"))
    total = asked.total if said is None else said
    if total == asked.offset and asked.total in (None, total):
        return Whole()
    return StartAgain(f"the server has no byte {asked.offset}: the file has changed")


def _refuse_encoded(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise FetchError(
            f"the server sends the file encoded ({encoding[:40]}) against the request",
            hint="turn off compression of this file on the server, or on the proxy between",
        )


def _tag(headers: Mapping[str, str]) -> str:
    """Return a value for If-Range that identifies an edition of the file byte for byte; "" if there is none.

    A strong ETag does, and else a modification date older than the response, since a file may change twice in a second.
    """
    etag = headers.get("etag", "")
    if re.fullmatch(r'"[\x21\x23-\x7e]{0,200}"', etag):
        return etag
    modified, now = _date(headers.get("last-modified", "")), _date(headers.get("date", ""))
    if etag or modified is None or now is None or now - modified < 1:
        return ""
    return headers["last-modified"].strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return seconds. A date is compared with the server's own clock, since the board's may be wrong."""
    said = headers.get("retry-after", "").strip()
    seconds = _number(said)
    if seconds is not None:
        return float(seconds)
    until, now = _date(said), _date(headers.get("date", ""))
    return None if until is None or now is None else max(until - now, 0.0)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _date(text: str) -> float | None:
    from email.utils import parsedate_to_datetime  # a large package, for a rare header

    try:
        return parsedate_to_datetime(text).timestamp() if re.fullmatch(r"[ -~]{1,40}", text) else None
    except (ValueError, OverflowError):
        return None
