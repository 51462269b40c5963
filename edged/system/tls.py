"""TLS to web servers: certificates are always verified."""

from __future__ import annotations

import time

from edged.system.credentials import find, unusable
from edged.system.later import ssl
from edged.system.urls import FetchError

# Numbers of OpenSSL's X509_V_ERR_CERT_*
_NOT_YET_VALID = 9
_HAS_EXPIRED = 10
_REFUSALS = (
    "CERTIFICATE_REQUIRED",
    "HANDSHAKE_FAILURE",
    "BAD_CERTIFICATE",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REVOKED",
    "UNKNOWN_CA",
    "ACCESS_DENIED",
)


def trusting(ca_file: str) -> ssl.SSLContext:
    """Return a context for the authorities in `ca_file`, or else of the system. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=find(ca_file) if ca_file else None)
    except OSError as error:
        raise unusable("ca_file", ca_file, error) from error


def tls_refusal(error: ssl.SSLError, place: str, now: float) -> FetchError | None:
    """Return the error for a lasting failure of TLS, None for any other failure. `now` is the board's clock."""
    today = time.strftime("%Y-%m-%d", time.gmtime(now))
    if isinstance(error, ssl.SSLCertVerificationError):
        message = f"the certificate of {place} cannot be trusted: {error.verify_message}"
        if error.verify_code == _NOT_YET_VALID:
            hint = f"set this board's clock, which says {today}, and fetch again"
        elif error.verify_code == _HAS_EXPIRED:
            hint = f"renew the certificate, or set this board's clock if today is not {today}"
        else:
            hint = "check the host; if it is right, name its certificate authority in ca_file"
        return FetchError(message, hint=hint, retryable=error.verify_code in (_NOT_YET_VALID, _HAS_EXPIRED))
    reason = error.reason or ""
    if reason.endswith(_REFUSALS):
        return FetchError(
            f"{place} refuses the board's certificate, or requires one: {reason}", hint="check cert_file and key_file"
        )
    if reason == "WRONG_VERSION_NUMBER":
        return FetchError(
            f"{place} does not speak TLS", hint="check the port, and for a proxy or portal that answers in its place"
        )
    return None
