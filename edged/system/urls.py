"""URLs of web servers: their parts, redirects, and the form in which messages show them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from edged.core.errors import ConfigError, EdgedError
from edged.core.types import MAX_URL

Origin = tuple[str, str, int]
"""Scheme, host and port."""


class FetchError(EdgedError):
    """A file could not be fetched. A `retryable` error may pass with time."""


def parse_url(url: str, schemes: Sequence[str] = ("http", "https")) -> SplitResult:
    """Return the parts of a URL of one of the schemes. Raises FetchError for any other."""
    try:
        parts = urlsplit(url)
        sound = is_host(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or parts.scheme not in schemes:
        raise FetchError(
            f"{mask(url)!r} is no {' or '.join(schemes)} URL", hint=f"write it as {schemes[-1]}://example.org/file"
        )
    if len(url) > MAX_URL or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise FetchError(
            f"{mask(url)!r} is too long, or contains blanks or other characters not allowed in a URL",
            hint=f"use at most {MAX_URL} ASCII characters; write others as %XX",
        )
    return parts


def is_host(name: str | None) -> bool:
    """Return whether a name can be looked up. A look-up raises ValueError for empty or overlong labels."""
    try:
        return bool(name and name.encode("idna"))
    except ValueError:
        return False


def follow(source: SplitResult, location: str) -> SplitResult:
    """Return the target of a redirect, without user and password. `location` is Latin-1, as headers are read.

    Characters not allowed in a URL are percent-encoded as a browser would.

    Raises:
        FetchError: the target is not HTTP, or the redirect leads from https to http.
    """
    try:
        target = parse_url(_in_ascii(urljoin(source.geturl(), _decoded(location).strip())))
    except (FetchError, ValueError) as error:
        raise FetchError(
            f"the server redirects to {mask(location)!r}, and that is no http or https URL", hint="check the URL"
        ) from error
    if source.scheme == "https" and target.scheme == "http":
        raise FetchError(
            f"the server redirects from https to {mask(target.geturl())}", hint="have the server redirect to https"
        )
    return target._replace(netloc=target.netloc.rpartition("@")[2], fragment="")


def _decoded(header: str) -> str:
    """Return a header, read as Latin-1, as UTF-8 if its bytes are UTF-8."""
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


def origin(parts: SplitResult) -> Origin:
    """Return scheme, host and port. Credentials are for one such origin, and for no other."""
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def parse_origin(text: str) -> Origin:
    """Return the origin in a text, as https://files.example.org:8443. Raises ConfigError."""
    try:
        parts = urlsplit(text)
        bare = parts.path in ("", "/") and not (parts.query or parts.fragment) and parts.username is None
        host = "" if "*" in text else parts.hostname
        if bare and parts.scheme in ("http", "https") and is_host(host) and parts.port != 0:
            return origin(parts)
    except ValueError:
        pass
    raise ConfigError(
        f"{mask(text)!r} is no origin", hint="write scheme, host and port alone, as https://files.example.org:8443"
    )


def place(parts: SplitResult) -> str:
    """Return host and port as the URL has them."""
    return parts.netloc.rpartition("@")[2]


def mask(url: str) -> str:
    """Return a URL without user, password, query and fragment, any of which may be secret."""
    url = url[:MAX_URL]
    found = re.match("([a-zA-Z0-9+.-]+:)?//", url)
    scheme = found[0] if found else ""
    rest = url.removeprefix(scheme)
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    port = place.rpartition("]")[2].partition(":")[2]
    if "@" not in place and (not scheme or not (port or "0").isdecimal()):
        place = rest  # not a port but part of a password with a character that lacks its %XX
    user, at, _ = place.rpartition("@")
    shown = f"***@{rest[len(user) + 1 :]}" if at else rest
    return f"{scheme}{re.split('[?#]', shown, maxsplit=1)[0]}{'?***' if '?' in shown else ''}"
