"""Real OpenSSH keys and signatures, made by ssh-keygen as an operator would."""

import shutil
import subprocess
from pathlib import Path

import pytest


def needs_ssh_keygen() -> None:
    """Skip the test where OpenSSH is not installed."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")


def make_key(folder: Path, name: str) -> Path:
    """A new key without a passphrase; its public half lies beside it as `<name>.pub`."""
    needs_ssh_keygen()
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True, timeout=30)
    return path


def public(key: Path) -> str:
    """Type and public half of a key, without its comment."""
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


def sign(message: bytes, key: Path, namespace: str = "edged-bundle") -> bytes:
    """A signature over a message."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace]
    return subprocess.run(command, input=message, capture_output=True, check=True, timeout=30).stdout
