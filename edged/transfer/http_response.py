"""What an HTTP answer means for a download that may be half done: pure rules, from status and headers to a verdict.

What is never trusted: that a range is the one asked for, that the file is still the one it was, that a redirect is
harmless. What cannot be put right by asking again is refused, with a remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from edged.core.errors import EdgedError

MAX_URL = 4096


class FetchError(EdgedError):
    """A file could not be fetched. `retryable` if asking again, later, may help."""


class NotFoundError(FetchError):
    """The server answers that it does not give the file."""


class NotBundleError(FetchError):
    """Another file came, as from a network that wants a log-in first: the bundle may come another time."""


class Asked(NamedTuple):
    """What was asked for: everything from `offset` on, of `total` bytes (None: unknown) of the edition `tag`."""

    offset: int
    total: int | None
    tag: str


class Body(NamedTuple):
    """The bytes from `start` on follow, of `total`; the edition is `tag`. A start of 0 is a start again."""

    start: int
    total: int | None
    tag: str


class Whole(NamedTuple):
    """There is nothing to come: all of it is here."""


class StartAgain(NamedTuple):
    """What is here does not fit what is there, and why."""

    reason: str


class TryAgain(NamedTuple):
    """It may work later: in `after` seconds, if the server says so."""

    reason: str
    after: float | None = None


class Redirect(NamedTuple):
    """Ask there instead."""

    location: str


Answer = Body | Whole | StartAgain | TryAgain | Redirect

_REMEDIES = {
    401: "check the token or the password; a token goes to servers named in the configuration only: see origins in "
    "[updates.fetch]",
    403: "the server does not give it to us: check the token, or whether the link has expired",
    404: "check the URL",
    407: "check the user and password of the proxy",
    410: "it was taken away: use another URL",
}
_PASSING = {408, 425, 429}


def understand(status: int, headers: Mapping[str, str], asked: Asked) -> Answer:
    """What to do about an answer; the names of `headers` are in lower case.

    Raises:
        FetchError: it is final.
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


def _whole(headers: Mapping[str, str], asked: Asked) -> Body | TryAgain:
    _refuse_encoded(headers)
    if asked.offset and headers.get("content-type", "").lower().startswith("text/html"):
        # Somebody on the way wants a log-in or has something to tell: what has come is not thrown away for that.
        return TryAgain("a web page comes instead of the rest")
    total = None if "transfer-encoding" in headers else _number(headers.get("content-length", ""))
    return Body(0, total, _tag(headers))


def is_page(content_type: str, start: bytes) -> bool:
    """Tell whether a file that begins like this is a web page, and no model that a server only takes for one."""
    if start[4:8] == b"TFL3" or any(magic.startswith(start[:4]) for magic in (b"edgm", b"edgd")):
        return False
    text = start[:100].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return content_type.lower().startswith("text/html") or text.startswith((b"<!doctype html", b"<html"))


_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)", re.ASCII)


def _range(headers: Mapping[str, str], asked: Asked) -> Body | StartAgain:
    _refuse_encoded(headers)
    said = headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(said)
    if found is None:
        return StartAgain(f"the server sends a part and does not say which: {said[:80]!r}")
    start, total = int(found[1]), None if found[3] == "*" else int(found[3])
    if start != asked.offset:
        return StartAgain(f"the server sends the part from {start} instead of {asked.offset}")
    if None not in (total, asked.total) and total != asked.total:
        return StartAgain(f"the file has changed: it has {total} bytes now, and had {asked.total}")
    tag = _tag(headers)
    if asked.tag and tag and tag != asked.tag:
        return StartAgain("the file has changed on the server")
    return Body(start, total if total is not None else asked.total, tag or asked.tag)


def _beyond_the_end(headers: Mapping[str, str], asked: Asked) -> Whole | StartAgain:
    said = _number(headers.get("content-range", "").removeprefix("bytes */"))
    total = asked.total if said is None else said
    if total == asked.offset and asked.total in (None, total):
        return Whole()
    return StartAgain(f"the server has no byte {asked.offset}: its file is not the one begun with")


def _refuse_encoded(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise FetchError(
            f"the server sends it encoded ({encoding[:40]}), which it was asked not to",
            hint="have the server, or the proxy between, send it as it is",
        )


def _tag(headers: Mapping[str, str]) -> str:
    """What identifies an edition of a file byte for byte, fit for If-Range; "" if nothing does.

    That is a strong ETag, or else a modification date that is older than the answer: a file may change twice in a
    second.
    """
    etag = headers.get("etag", "")
    if re.fullmatch(r'"[\x21\x23-\x7e]{0,200}"', etag):
        return etag
    modified, now = _date(headers.get("last-modified", "")), _date(headers.get("date", ""))
    if etag or modified is None or now is None or now - modified < 1:
        return ""
    return headers["last-modified"].strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; a date is held against the server's own clock, as ours may be anywhere."""
    said = headers.get("retry-after", "").strip()
    seconds = _number(said)
    if seconds is not None:
        return float(seconds)
    until, now = _date(said), _date(headers.get("date", ""))
    return None if until is None or now is None else max(until - now, 0.0)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if re.fullmatch(r"[ -~]{1,40}", text) else None
    except (ValueError, OverflowError):
        return None


# URLs


def parse_url(url: str) -> SplitResult:
    """The parts of an http or https URL. Raises FetchError if it is none."""
    try:
        parts = urlsplit(url)
        sound = is_host(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or parts.scheme not in ("http", "https"):
        raise FetchError(f"{mask(url)!r} is no http or https URL", hint="give one, as https://example.org/model.edgm")
    if len(url) > MAX_URL or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise FetchError(
            f"{mask(url)!r} is too long, or has blanks or other signs in it that URLs have not",
            hint=f"at most {MAX_URL} ASCII characters; write others as %XX",
        )
    return parts


def is_host(name: str | None) -> bool:
    """Whether a name can be looked up: a look-up itself raises ValueError for labels that are empty or too long."""
    try:
        return bool(name and name.encode("idna"))
    except ValueError:
        return False


def follow(source: SplitResult, location: str) -> SplitResult:
    """Where a redirect leads; `location` is Latin-1, as headers are read. User and password never come from a redirect.

    Blanks and other signs that URLs have not are written as a browser would have them.

    Raises:
        FetchError: it leads out of HTTP, or from https to http.
    """
    try:
        target = parse_url(_in_ascii(urljoin(source.geturl(), _decoded(location).strip())))
    except (FetchError, ValueError) as error:
        raise FetchError(
            f"the server sends us on to {mask(location)!r}, which is no http or https URL", hint="check the URL"
        ) from error
    if source.scheme == "https" and target.scheme == "http":
        raise FetchError(
            f"the server sends us on from https to {mask(target.geturl())}", hint="have it redirect to https only"
        )
    return target._replace(netloc=target.netloc.rpartition("@")[2], fragment="")


def _decoded(header: str) -> str:
    """Read a header, which was read as Latin-1, as UTF-8 where it is that."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _in_ascii(url: str) -> str:
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    host, colon, port = place.partition(":")
    if not place.isascii():
        host = host.encode("idna").decode()
    path, query = (quote(part, safe=_URL_SIGNS) for part in (parts.path, parts.query))
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}{colon}{port}", path=path, query=query, fragment=""))


_URL_SIGNS = "".join(chr(code) for code in range(0x21, 0x7F))


def origin(parts: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port: credentials are for one of these, and for no other."""
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def mask(url: str) -> str:
    """A URL to show: without user, password, query and fragment, which may be secrets."""
    url = url[:MAX_URL]
    found = re.match("([a-zA-Z0-9+.-]+:)?//", url)
    scheme = found[0] if found else ""
    rest = url.removeprefix(scheme)
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    port = place.rpartition("]")[2].partition(":")[2]
    if "@" not in place and (not scheme or not (port or "0").isdecimal()):
        place = rest  # no port, but half a password, in which a sign should have been written as %XX
    user, at, _ = place.rpartition("@")
    shown = f"***@{rest[len(user) + 1 :]}" if at else rest
    return f"{scheme}{re.split('[?#]', shown, maxsplit=1)[0]}{'?***' if '?' in shown else ''}"
