"""SHA-256 of small data by the interpreter's own code, and of large data by OpenSSL.

OpenSSL is faster, severalfold on processors with instructions for SHA-256, and takes 4 MB of memory. The files of a
small model are checked at each start, and need no OpenSSL.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

try:
    from _sha2 import sha256 as _small  # type: ignore[import-not-found]  # Python 3.12
except ImportError:
    try:
        from _sha256 import sha256 as _small  # type: ignore[import-not-found]
    except ImportError:  # an interpreter built without own code
        from hashlib import sha256 as _small

LARGE = 1 << 20
"""Number of bytes from which OpenSSL is worth the memory."""


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of data, in hexadecimal."""
    return str((_small if len(data) < LARGE else openssl_sha256)(data).hexdigest())


def openssl_sha256(data: bytes | memoryview = b"") -> _Hash:
    """Return a running SHA-256 by OpenSSL, begun with data."""
    import hashlib

    return hashlib.sha256(data)


def file_sha256(file: IO[bytes]) -> str:
    """Return the SHA-256 of the rest of a file, in hexadecimal."""
    start = file.read(LARGE)
    if len(start) < LARGE:
        return sha256(start)
    whole = openssl_sha256(start)
    while data := file.read(LARGE):
        whole.update(data)
    return whole.hexdigest()
