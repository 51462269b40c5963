"""Signers of a bundle: OpenSSH signatures over the manifest, verified by `ssh-keygen` and a file of allowed signers.

`ssh-keygen` decides and this module explains. A signature counts if the key is allowed for the namespace `edged-bundle`
at that time and not revoked; `threshold` principals, each counted once for all their keys, must have signed. A fault of
this device's configuration is a ConfigError, so that no bundle is blamed for it.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edged.core import manifest as manifests
from edged.core import signatures as formats
from edged.core.errors import BundleError, ConfigError
from edged.core.signatures import NAMESPACE, SshSignature

log = logging.getLogger("edged.models")

_SECONDS = 30.0
_MAX_WORDS = 300
_LATEST = 253_402_300_799  # the last second of the year 9999

AHEAD_SECONDS = 86400
"""Maximum time, in seconds, by which a manifest may be ahead of a correct clock."""


class Trust(msgspec.Struct, frozen=True):
    """Trusted signers of this device.

    `allowed_signers` is a file as in ssh-keygen(1), `revoked` a key revocation list or a file of public keys, and
    `threshold` the number of principals that must have signed. If a signature is not `required`, unsigned and badly
    signed bundles pass too, and the signers are only reported.
    """

    allowed_signers: Path
    revoked: Path | None = None
    threshold: int = 1
    required: bool = True

    def verify(self, manifest: bytes, signatures: bytes, now: float, today: float | None = None) -> tuple[str, ...]:
        """Return the principals that signed this manifest, in the order of the signatures.

        `now` is in Unix seconds: the clock, or the newest `created` of a trusted manifest if later, since a board may
        have no clock. The manifest's own `created` counts in the same way. `today` is the time of a synchronised clock,
        if any: a manifest cannot be made later.

        Raises:
            BundleError: too few principals have signed, with the reason for each invalid signature; `retryable` if a
                key is not valid yet. Or the manifest was made on a future day.
            ConfigError: the configuration does not permit verification; `retryable` if a resource is short.
        """
        found = formats.parse(signatures)
        created = manifests.decode(manifest).created
        if today is not None and created > today + AHEAD_SECONDS:
            raise BundleError(
                f"the manifest says that it was made on {_day(created)}, and today is {_day(today)}",
                hint="correct the clock of the computer that packs it, then pack and sign it again",
            )
        if not self.required and not (found and self.allowed_signers.exists()):
            return ()
        if not found:
            raise not_signed()
        moment = max(now, created)
        principals: dict[str, None] = {}
        refusals: list[BundleError] = []
        try:
            self._check_files()
            for signature in found:
                try:
                    principals[self._verify(manifest, signature, moment)] = None
                except BundleError as error:
                    refusals.append(error)
        except ConfigError as error:
            if self.required:
                raise
            log.warning("the signers cannot be determined: %s", error)
        if self.required and len(principals) < self.threshold:
            raise self._too_few(len(principals), refusals)
        return tuple(principals)

    def admit_bare(self) -> None:
        """Raise BundleError if signatures are required, which a bare model file cannot have."""
        if self.required:
            raise BundleError(
                "a bare model file cannot be signed, and only signed versions may come in here",
                hint="pack it, with the manifest.json of the version before as --manifest: edgectl pack\n"
                "then sign the bundle: edgectl sign BUNDLE --key ~/.ssh/id_ed25519",
            )

    def _check_files(self) -> None:
        for path, purpose in ((self.allowed_signers, "allowed signers"), (self.revoked, "revoked keys")):
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(
                    f"the file of {purpose} cannot be read: {path}",
                    hint="create the file, readable by edged; ssh-keygen(1) describes the format",
                )

    def _verify(self, manifest: bytes, signature: SshSignature, moment: float) -> str:
        """Return the principal of a signature. Raises BundleError for an invalid signature."""
        if signature.namespace != NAMESPACE:
            raise BundleError(
                f"{signature.key} signed for the namespace {signature.namespace[:100]!r}, not {NAMESPACE!r}",
                hint="sign with edgectl sign, or with ssh-keygen -Y sign -n edged-bundle",
            )
        principal = self._principal(signature, moment)
        good, words = self._ssh_keygen(
            "verify", signature, moment, "-I", principal, "-n", NAMESPACE, *self._revoked(), message=manifest
        )
        if good:
            return principal
        raise self._explain(manifest, signature, moment, principal, words)

    def _principal(self, signature: SshSignature, moment: float) -> str:
        """Return the principal of a key; the first of several names, so that no principal counts twice."""
        good, words = self._ssh_keygen("find-principals", signature, moment)
        if good and words:
            return words.splitlines()[0]
        day = _day(moment)
        if "key has expired" in words:
            raise BundleError(
                f"{signature.key} is no longer valid on {day}",
                hint=f"sign it with a key that is, or correct the clock, or valid-before in {self.allowed_signers}\n"
                "the latest date of a signed version counts too, where the clock is behind it: see edgectl inspect",
            )
        if "key is not yet valid" in words:
            raise BundleError(
                f"{signature.key} is not yet valid on {day}",
                hint=f"correct the clock, or valid-after in {self.allowed_signers}",
                retryable=True,
            )
        if "no valid principals" in words:
            raise BundleError(
                f"{signature.key} is a certificate that is not valid on {day}, or has no principal that is allowed",
                hint=f"see ssh-keygen -L; correct the clock or {self.allowed_signers}, or sign with another key",
            )
        broken = "; ".join(line for line in words.splitlines() if not line.startswith("No principal matched"))
        raise BundleError(
            f"{signature.key} is not among the allowed signers" + (f" ({broken[:_MAX_WORDS]})" if broken else ""),
            hint=f"add the public key to {self.allowed_signers} if it should be",
        )

    def _explain(
        self, manifest: bytes, signature: SshSignature, moment: float, principal: str, words: str
    ) -> BundleError:
        """Return the reason why a signature by a known key is invalid. For a revoked key ssh-keygen gives no reason."""
        who = f"{signature.key} ({principal})"
        if "incorrect signature" in words:
            return BundleError(f"the signature of {who} is not one of this manifest", hint="fetch or sign it again")
        if "namespace" in words:
            return BundleError(
                f"{who} may not sign for {NAMESPACE!r}",
                hint=f"see its namespaces in {self.allowed_signers}, where the first line with a key says whose it is",
            )
        good, _ = self._ssh_keygen("verify", signature, moment, "-I", principal, "-n", NAMESPACE, message=manifest)
        if good:
            return BundleError(
                f"{who} is revoked, or {self.revoked} is no revocation list",
                hint="sign with another key; if this key is good, make the list again: ssh-keygen -k",
            )
        return BundleError(f"the signature of {who} is refused: {words}", hint="sign again: edgectl sign")

    def _too_few(self, counted: int, refusals: Sequence[BundleError]) -> BundleError:
        reasons = "; ".join(error.message for error in refusals)
        hints = "\n".join(dict.fromkeys(error.hint for error in refusals))
        wanted = f"{counted} of the {self.threshold} signatures needed" if self.threshold > 1 else "no signature counts"
        return BundleError(
            f"{wanted}: {reasons}" if reasons else wanted,
            hint=hints or "get signatures of more allowed signers: edgectl sign",
            retryable=any(error.retryable for error in refusals),
        )

    def _revoked(self) -> list[str]:
        return [] if self.revoked is None else ["-r", str(self.revoked)]

    def _ssh_keygen(
        self, action: str, signature: SshSignature, moment: float, *options: str, message: bytes = b""
    ) -> tuple[bool, str]:
        """Run ssh-keygen, and return success with the output, or failure with the error output."""
        stamp = f"{datetime.fromtimestamp(_seconds(moment), UTC):%Y%m%d%H%M%S}Z"
        options = ("-f", str(self.allowed_signers), "-O", f"verify-time={stamp}", *options)
        try:
            result = _run(action, signature.text, options, message)
            if result.returncode < 0:  # killed, for example for lack of memory: no verdict on the bundle
                result.check_returncode()
        except FileNotFoundError as error:
            raise ConfigError(
                f"ssh-keygen cannot be run: {error}", hint="install it: apt install openssh-client"
            ) from error
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigError(
                f"ssh-keygen gave no answer: {error}", hint="free some memory, and try again", retryable=True
            ) from error
        good = result.returncode == 0
        return good, (result.stdout if good else result.stderr).decode("utf-8", "replace").strip()


def not_signed() -> BundleError:
    """Return the error for a bundle without any signature."""
    hint = "sign the bundle: edgectl sign BUNDLE --key ~/.ssh/id_ed25519"
    return BundleError("the bundle is not signed", hint=hint)


def _run(action: str, signature: bytes, options: Sequence[str], message: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run ssh-keygen, which needs the signature as a file; a file in memory needs no disk, which may be full or
    read-only.
    """
    with os.fdopen(os.memfd_create("signature"), "wb") as file:
        file.write(signature)
        file.flush()
        command = ["ssh-keygen", "-Y", action, "-s", f"/proc/self/fd/{file.fileno()}", *options]
        return subprocess.run(command, input=message, capture_output=True, timeout=_SECONDS, pass_fds=[file.fileno()])


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(_seconds(moment), UTC):%Y-%m-%d}"


def _seconds(moment: float) -> float:
    """Return a time within the limits of ssh-keygen, which rejects second 0 and year 10000."""
    return min(max(moment, 1.0), _LATEST)
