"""Sign a bundle with an SSH key: a key in a file, in an agent (name its .pub file) or on a hardware token.

The signature covers the manifest, and so the digests of all files. `ssh-keygen` makes the signature, and asks for a
passphrase or a touch as usual. Signatures by other keys are kept; an older signature by the same key is replaced.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path

from edged.api import ControlError, StoreError
from edged.core import container
from edged.core.container import Head
from edged.core.signatures import NAMESPACE, merge, parse
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.bundle_file import save, version_line
from edged.models.bundle import SIGNATURES, examine

_BLOCK = 256 << 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .edgm file, or a bundle's folder")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="for instance ~/.ssh/id_ed25519")


def run(args: argparse.Namespace) -> int:
    """Sign the bundle in place."""
    head = examine(args.bundle)
    signatures = merge(head.signatures, _signature(args.key.expanduser(), head.data))
    if args.bundle.is_dir():
        save(args.bundle / SIGNATURES, [signatures])
    else:
        save(args.bundle, container.write(head.data, signatures, _body(args.bundle, head)))
    keys = [each.key for each in parse(signatures)]
    if args.json:
        tables.show_json({"digest": head.digest, "keys": keys})
    else:
        tables.show([f"{version_line(head)} is signed by {', '.join(keys)}"])
    return exits.DONE


def _signature(key: Path, message: bytes) -> bytes:
    """ssh-keygen asks on the terminal, and complains on standard error."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE]
    try:
        result = subprocess.run(command, input=message, stdout=subprocess.PIPE)
    except OSError as error:
        raise ControlError(
            f"ssh-keygen cannot be run: {error.strerror}", hint="install it: apt install openssh-client"
        ) from error
    if result.returncode:
        raise ControlError(
            f"ssh-keygen did not sign with {key}",
            hint="see the reason above; for a key in an agent, name the public half: --key ~/.ssh/id_ed25519.pub",
        )
    return result.stdout


def _body(file: Path, head: Head) -> Iterator[bytes]:
    """Yield the unchanged files of a container."""
    try:
        with file.open("rb") as opened:
            opened.seek(head.length)
            while block := opened.read(_BLOCK):
                yield block
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}", hint="try again") from error
