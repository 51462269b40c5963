"""Credentials of the board and of the broker's authorities: read again for each connection, to pick up renewed
files.
"""

from __future__ import annotations

from edged.outbox.faults import LinkError
from edged.outbox.options import MqttOptions
from edged.system.credentials import find
from edged.system.later import ssl

MAX_SECRET = 4096


def tls_context(options: MqttOptions) -> ssl.SSLContext:
    """Return a context that always verifies the broker's certificate and name. Raises LinkError for an unusable
    file.
    """
    try:
        context = ssl.create_default_context(cafile=find(options.ca_file) if options.ca_file else None)
    except OSError as error:
        raise _unusable("ca_file", options.ca_file, error) from error
    # Python 3.13 turns this on: it refuses home-made authorities that lack an extension, and so good brokers, the day
    # a board is upgraded. Chain, name and dates are verified all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if options.cert_file:
        try:
            # With an empty passphrase a protected key is an error; otherwise OpenSSL would ask on the terminal.
            context.load_cert_chain(find(options.cert_file), find(options.key_file), password="")
        except OSError as error:
            raise _unusable("cert_file or key_file", f"{options.cert_file}, {options.key_file}", error) from error
    return context


def read_secret(name: str) -> str:
    """Return the first line of a file. Raises LinkError."""
    try:
        with find(name).open("rb") as file:
            line = file.readline(MAX_SECRET + 1).rstrip(b"\r\n")
        if len(line) > MAX_SECRET:
            raise OSError(f"the first line is longer than {MAX_SECRET} bytes")
        return line.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable("password_file", name, error) from error


def _unusable(option: str, name: str, error: Exception) -> LinkError:
    reason = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
    hint = "name a file readable by the service, or a credential of the service (LoadCredential=)"
    return LinkError(f"{option} {name!r} cannot be used: {reason}", hint=hint)
