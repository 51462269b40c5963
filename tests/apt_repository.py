"""Makes apt repositories as `make repo` does, signed by throw-away keys."""

import subprocess
import sys
from contextlib import contextmanager

from tests.debian_package import REPOSITORY


@contextmanager
def throw_away_key(folder):
    """Yield the environment of a gpg whose only secret key, release@example.org, was made just now."""
    folder.mkdir(mode=0o700, exist_ok=True)
    environment = {"GNUPGHOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    make = ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "release@example.org", "ed25519"]
    try:
        subprocess.run([*make, "sign", "never"], env=environment, check=True)
        yield environment
    finally:
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=environment, check=True)


def make_repository(folder, environment, *packages, key="release@example.org"):
    """Run packaging/repo; the finished process."""
    command = [sys.executable, REPOSITORY / "packaging/repo", f"--key={key}", f"--output={folder}", *packages]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
