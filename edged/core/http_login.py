"""Answers to a web server's request for a user and a password: the schemes Digest (RFC 7616) and Basic (RFC 7617)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import NamedTuple

_TOKEN = re.compile(r'([!#$%&\'*+.^`|~\w-]+)(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s,"]+))?')
_ALGORITHMS = {"sha-256": "sha256", "md5": "md5"}


class Login(NamedTuple):
    """User and password."""

    user: str
    password: str


class Challenge(NamedTuple):
    """Scheme that a server offers, in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """Return the challenges in a header WWW-Authenticate."""
    found: list[Challenge] = []
    for name, value in _TOKEN.findall(header):
        if not value:
            found.append(Challenge(name.lower(), {}))
        elif found:
            text = re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value
            found[-1].parameters.setdefault(name.lower(), text)
    return found


def authorization(header: str, login: Login, method: str, target: str, nonce: str) -> str:
    """Return the value of Authorization for a request, "" if the server offers no known scheme.

    Digest is preferred, since it hides the password, and SHA-256 in it. `nonce` is a random text of the client.
    """
    offered = challenges(header)
    for algorithm in _ALGORITHMS:
        for scheme, parameters in offered:
            stated = parameters.get("algorithm", "MD5").lower()
            qops = re.split(r"[\s,]+", parameters.get("qop", ""))
            known = scheme == "digest" and stated.removesuffix("-sess") == algorithm and {"", "auth"} & {*qops}
            if known and "nonce" in parameters:
                return _digest(parameters, login, method, target, nonce, with_qop="auth" in qops)
    if any(scheme == "basic" for scheme, _ in offered):
        return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
    return ""


def _digest(
    parameters: dict[str, str], login: Login, method: str, target: str, nonce: str, *, with_qop: bool
) -> str:  # fmt: skip
    stated = parameters.get("algorithm", "MD5")
    hashed = _hash(_ALGORITHMS[stated.lower().removesuffix("-sess")])
    realm, server_nonce = parameters.get("realm", ""), parameters["nonce"]
    secret = hashed(f"{login.user}:{realm}:{login.password}")
    if stated.lower().endswith("-sess"):
        secret = hashed(f"{secret}:{server_nonce}:{nonce}")
    request = hashed(f"{method}:{target}")
    fields = {"username": login.user, "realm": realm, "nonce": server_nonce, "uri": target}
    if with_qop:
        response = hashed(f"{secret}:{server_nonce}:00000001:{nonce}:auth:{request}")
    else:
        response = hashed(f"{secret}:{server_nonce}:{request}")
    fields["response"] = response
    if "opaque" in parameters:
        fields["opaque"] = parameters["opaque"]
    if with_qop or stated.lower().endswith("-sess"):
        fields["cnonce"] = nonce
    listed = [f'{name}="{_quoted(value)}"' for name, value in fields.items()]
    if "algorithm" in parameters:
        listed.append(f"algorithm={stated}")
    if with_qop:
        listed += ["qop=auth", "nc=00000001"]
    return "Digest " + ", ".join(listed)


def _hash(name: str) -> Callable[[str], str]:
    import hashlib  # few cameras ask for it

    def hashed(text: str) -> str:
        return hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()

    return hashed


def _quoted(text: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", text)
