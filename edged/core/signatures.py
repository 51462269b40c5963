"""Parser of OpenSSH signatures: claimed signer and purpose. Signatures are not verified here.

A signature is text between two marker lines, as written by `ssh-keygen -Y sign`; signatures are concatenated. The
content is in the format SSHSIG: the public key, a namespace that prevents the use of a signature for another purpose,
and the signature proper.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Final, NamedTuple

from edged.core.digest import sha256
from edged.core.errors import BundleError

NAMESPACE: Final = "edged-bundle"
MAX_SIGNATURES = 16


class SshSignature(NamedTuple):
    """A signature: text, namespace, and fingerprint of the key as printed by ssh-keygen ("SHA256:...")."""

    text: bytes
    namespace: str
    key: str


def parse(data: bytes) -> tuple[SshSignature, ...]:
    """Return the signatures in a manifest.json.sig, or between a container's manifest and files.

    Raises:
        BundleError: `data` holds other content, or more than MAX_SIGNATURES signatures.
    """
    if not _ALL.fullmatch(data):
        raise BundleError("the signatures are not in the format of OpenSSH", hint=_AGAIN)
    found = tuple(_parse(match) for match in _ONE.finditer(data))
    if len(found) > MAX_SIGNATURES:
        raise BundleError(f"there are {len(found)} signatures", hint=f"at most {MAX_SIGNATURES} are allowed")
    return found


def merge(signatures: bytes, new: bytes) -> bytes:
    """Add a signature, in place of an earlier signature by the same key. Raises BundleError."""
    [added] = parse(new)
    kept = [each.text for each in parse(signatures) if (each.key, each.namespace) != (added.key, added.namespace)]
    merged = b"".join([*kept, added.text])
    parse(merged)  # too many signatures would make the whole file invalid
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
    name = base64.b64encode(bytes.fromhex(sha256(key))).rstrip(b"=").decode()
    return SshSignature(match[0], namespace.decode("utf-8", "replace"), f"SHA256:{name}")


def _string(blob: bytes, at: int) -> tuple[bytes, int]:
    """Return a length-prefixed string, and the position after the string."""
    (length,) = struct.unpack_from(">I", blob, at)
    begin = at + 4
    if len(blob) < begin + length:
        raise struct.error
    return blob[begin : begin + length], begin + length
