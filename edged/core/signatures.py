"""What OpenSSH signatures say of themselves: who is supposed to have signed, and for what. Nothing is verified here.

A signature is text between two marker lines, as `ssh-keygen -Y sign` writes it, and several stand one after another.
Inside is the format SSHSIG: the public key, a namespace that keeps a signature on one kind of thing from being passed
off as one on another, and the signature proper.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from typing import Final, NamedTuple

from edged.core.errors import BundleError

NAMESPACE: Final = "edged-bundle"
MAX_SIGNATURES = 16


class SshSignature(NamedTuple):
    """One signature: its text and its key, both as ssh-keygen has them ("SHA256:..."), and its namespace."""

    text: bytes
    namespace: str
    key: str


def parse(data: bytes) -> tuple[SshSignature, ...]:
    """The signatures in a manifest.json.sig, or between a container's manifest and its files; none in no bytes.

    Raises:
        BundleError: there is something else, or there are more than MAX_SIGNATURES.
    """
    if not _ALL.fullmatch(data):
        raise BundleError("the signatures are not as OpenSSH writes them", hint=_AGAIN)
    found = tuple(_parse(match) for match in _ONE.finditer(data))
    if len(found) > MAX_SIGNATURES:
        raise BundleError(f"there are {len(found)} signatures", hint=f"at most {MAX_SIGNATURES} are allowed")
    return found


def merge(signatures: bytes, new: bytes) -> bytes:
    """The signatures with a new one among them, in place of an earlier one by the same key. Raises BundleError."""
    [added] = parse(new)
    kept = [each.text for each in parse(signatures) if (each.key, each.namespace) != (added.key, added.namespace)]
    merged = b"".join([*kept, added.text])
    parse(merged)  # one too many would have all of them refused
    return merged


_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----\n", b"-----END SSH SIGNATURE-----\n"
_ONE = re.compile(_BEGIN + rb"((?:[A-Za-z0-9+/=]{1,76}\n){1,200})" + _END)
_ALL = re.compile(rb"(?:%s)*" % _ONE.pattern)
_AGAIN = "fetch the bundle again, or sign it again: edgectl sign"


def _parse(match: re.Match[bytes]) -> SshSignature:
    try:
        blob = base64.b64decode(match[1], validate=False)
        magic, version = struct.unpack_from(">6sI", blob)
        key, at = _string(blob, 10)
        namespace, _ = _string(blob, at)
    except (binascii.Error, struct.error):
        raise BundleError("a signature is damaged", hint=_AGAIN) from None
    if (magic, version) != (b"SSHSIG", 1):
        raise BundleError("a signature is not in version 1 of the format SSHSIG", hint=_AGAIN)
    name = base64.b64encode(hashlib.sha256(key).digest()).rstrip(b"=").decode()
    return SshSignature(match[0], namespace.decode("utf-8", "replace"), f"SHA256:{name}")


def _string(blob: bytes, at: int) -> tuple[bytes, int]:
    """A string with its length before it, and where the next one begins."""
    (length,) = struct.unpack_from(">I", blob, at)
    begin = at + 4
    if len(blob) < begin + length:
        raise struct.error
    return blob[begin : begin + length], begin + length
