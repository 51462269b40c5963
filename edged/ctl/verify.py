"""Verify the digests and the signatures of a bundle, like a board.

The exit code is 0 for a valid bundle signed by enough of the allowed signers, and 1 otherwise, also for an unsigned
bundle. The digests are verified first, and reported in any case. The allowed signers are set in [updates] of the
configuration, or with --allowed-signers. The files of allowed signers and of revoked keys have
the formats of ssh-keygen(1); the namespace is `edged-bundle`:

    alice@example.com namespaces="edged-bundle",valid-before="20300101Z" ssh-ed25519 AAAA...
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from edged.api import BundleError, ConfigError, ControlError
from edged.config.load import ConfigErrors, load
from edged.control.clock import kernel_synchronised
from edged.core.container import Head
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.bundle_file import version_line
from edged.models.bundle import examine
from edged.models.signatures import Trust, not_signed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .edgm file, or a bundle's folder")
    parser.add_argument("--allowed-signers", type=Path, metavar="FILE", help="allowed signers (default: [updates])")
    parser.add_argument("--revoked", type=Path, metavar="FILE", help="revoked keys: a KRL, or public keys")
    parser.add_argument("--threshold", type=_count, metavar="K", help="signers needed")


def run(args: argparse.Namespace) -> int:
    """Print the signers, or the error."""
    try:
        head = examine(args.bundle)
    except BundleError as error:
        return _refused(args, error)
    try:
        signers = _signers(args, head)
    except BundleError as error:
        return _refused(args, error, head)
    if args.json:
        tables.show_json({"valid": True, "digest": head.digest, "signers": list(signers)})
    else:
        tables.show([f"{version_line(head)} is sound and signed by {tables.plain(', '.join(signers))}"])
    return exits.DONE


def _signers(args: argparse.Namespace, head: Head) -> tuple[str, ...]:
    """Return the trusted signers of a sound bundle.

    Raises:
        BundleError: too few trusted signers have signed, or nobody.
        ControlError: nothing names the trusted signers.
    """
    if not head.signatures:
        raise not_signed()
    now = time.time()
    try:
        return _trust(args).verify(head.data, head.signatures, now, now if kernel_synchronised() else None)
    except (ConfigError, ControlError) as error:
        raise ControlError(f"{_sound(head)}, but {error.message}", hint=error.hint) from error


def _sound(head: Head) -> str:
    return f"{version_line(head)}: every digest is right"


def _refused(args: argparse.Namespace, error: BundleError, head: Head | None = None) -> int:
    """Report a bundle that is damaged or, with a head, sound but not signed as required."""
    if args.json:
        known = {} if head is None else {"digest": head.digest}
        tables.show_json({"valid": False, **known, "problem": error.message, "hint": error.hint})
    else:
        sound = [] if head is None else [_sound(head)]
        tables.show([*map(tables.plain, [*sound, error.message]), *tables.advice(error.hint, "  ")])
    return exits.BAD


def _trust(args: argparse.Namespace) -> Trust:
    """Return the trusted signers: of the configuration or, with a file of signers, of the command line alone."""
    if args.allowed_signers:
        return Trust(args.allowed_signers, args.revoked, args.threshold or 1)
    try:
        options = load([Path(file) for file in args.config]).updates
    except ConfigErrors as error:
        raise ControlError(
            f"whose signatures count is not known: {error.message}", hint="name them: --allowed-signers FILE"
        ) from error
    return Trust(options.allowed_signers, args.revoked or options.revoked, args.threshold or options.threshold)


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 16:
        raise argparse.ArgumentTypeError("from 1 to 16")
    return number
