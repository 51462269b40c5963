"""Verify a bundle as a board does: every digest, and who signed it.

It exits with 0 if the bundle is sound and signed by enough of the allowed signers, and with 1 if not. The file of
allowed signers, and that of revoked keys, are those of ssh-keygen(1); the namespace is `edged-bundle`:

    alice@example.com namespaces="edged-bundle",valid-before="20300101Z" ssh-ed25519 AAAA...
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from edged.api import BundleError
from edged.control.clock import kernel_synchronised
from edged.ctl import exits, tables
from edged.ctl.bundles import version_line
from edged.models.bundle import examine
from edged.models.trust import Trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to verify, and whom to trust."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .edgm file, or a bundle's folder")
    parser.add_argument("--allowed-signers", type=Path, required=True, metavar="FILE", help="whose keys count")
    parser.add_argument("--revoked", type=Path, metavar="FILE", help="keys that count no more: a KRL, or public keys")
    parser.add_argument("--threshold", type=_count, default=1, metavar="K", help="signers needed (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Say who signed it, or what is wrong."""
    trust = Trust(args.allowed_signers, args.revoked, args.threshold)
    try:
        head = examine(args.bundle)
        now = time.time()
        signers = trust.verify(head.data, head.signatures, now, now if kernel_synchronised() else None)
    except BundleError as error:
        if args.json:
            tables.show_json({"valid": False, "problem": error.message, "hint": error.hint})
        else:
            tables.show(
                [tables.plain(error.message), *(f"  -> {tables.plain(line)}" for line in error.hint.splitlines())]
            )
        return exits.BAD
    if args.json:
        tables.show_json({"valid": True, "digest": head.digest, "signers": list(signers)})
    else:
        tables.show([f"{version_line(head)} is sound and signed by {tables.plain(', '.join(signers))}"])
    return exits.DONE


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 16:
        raise argparse.ArgumentTypeError("from 1 to 16")
    return number
