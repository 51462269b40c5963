"""OpenSSH keys and signatures: real ones, made by ssh-keygen, and imitations."""

import base64
import shutil
import struct
import subprocess
from pathlib import Path

import pytest


def needs_ssh_keygen() -> None:
    """Skip the test where OpenSSH is not installed."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")


def make_key(folder: Path, name: str) -> Path:
    """Make a key without a passphrase; the public half lies beside the key as `<name>.pub`."""
    needs_ssh_keygen()
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True, timeout=120)
    return path


def public(key: Path) -> str:
    """Return type and public half of a key, without the comment."""
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


def sign(message: bytes, key: Path, namespace: str = "edged-bundle") -> bytes:
    """A signature over a message."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace]
    return subprocess.run(command, input=message, capture_output=True, check=True, timeout=120).stdout


# By hand


def string(data: bytes) -> bytes:
    """Return bytes with a length prefix."""
    return struct.pack(">I", len(data)) + data


def armor(blob: bytes) -> bytes:
    """Bytes as text between the two marker lines."""
    text = base64.b64encode(blob)
    lines = [text[start : start + 70] for start in range(0, len(text), 70)]
    return b"\n".join([b"-----BEGIN SSH SIGNATURE-----", *lines, b"-----END SSH SIGNATURE-----", b""])


def signature(key: bytes, namespace: bytes = b"edged-bundle", proof: bytes = b"proof") -> bytes:
    """Return a signature in the format of ssh-keygen that proves nothing."""
    body = string(key) + string(namespace) + string(b"") + string(b"sha512") + string(proof)
    return armor(b"SSHSIG" + struct.pack(">I", 1) + body)
