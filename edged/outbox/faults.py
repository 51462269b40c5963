"""What can go wrong between us and a broker, in words: every failure becomes a reason and a remedy.

A `LinkError` is retried later; a `VersionError` first, and at once, with the older protocol.
"""

from __future__ import annotations

import socket
import ssl

from paho.mqtt.reasoncodes import ReasonCode

from edged.core.errors import EdgedError
from edged.outbox.options import MqttOptions
from edged.outbox.websocket import HandshakeError


class LinkError(EdgedError):
    """There is no connection.

    `dropped` means that the broker ended it, perhaps for something that we sent; `unreachable` that there was nobody;
    `over` that what was in the way is gone, and the next connection will be better; `unwelcome` that coming back at
    once would make things worse.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        dropped: bool = False,
        unreachable: bool = False,
        over: bool = False,
        unwelcome: bool = False,
    ) -> None:
        super().__init__(message, hint=hint, retryable=True)
        self.dropped = dropped
        self.unreachable = unreachable
        self.over = over
        self.unwelcome = unwelcome


class VersionError(LinkError):
    """The broker does not know this version of MQTT.

    That is `certain` when it says so; many just close, or stay silent, and so do things that are no broker at all.
    """

    def __init__(self, message: str, *, hint: str = "", certain: bool) -> None:
        super().__init__(message, hint=hint)
        self.certain = certain


class CapabilityError(LinkError):
    """The broker does not do something that was asked of it; `code` says what."""

    def __init__(self, message: str, *, hint: str, code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code


UNSUPPORTED_VERSION = 0x84
QUOTA_EXCEEDED = 0x97
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B

# Reason codes of a DISCONNECT that no message of ours can have brought about.
_BLAMELESS = {0x00, 0x88, 0x89, 0x8B, 0x8D, 0x8E, 0x96, 0x97, 0x98, 0x9C, 0x9D, 0x9F, 0xA0}

# Those after which it is for us to stay away for a while: taken over by a namesake, too much, too often.
_UNWELCOME = {0x89, 0x8E, 0x96, 0x97, 0x9F}

_REMEDIES = {
    0x84: 'set protocol = "3.1.1"',
    0x85: "set client_id to one that the broker allows",
    0x86: "check username and password_file",
    0x87: "check username and password_file, and what the broker lets this client do",
    0x88: "the broker is up but not ready; look at its log",
    0x89: "the broker is overloaded",
    0x8A: "the broker has banned this client; ask whoever runs it",
    0x8B: "the broker is shutting down",
    0x8C: "the broker wants an authentication method that edged does not speak",
    0x8E: "another client uses the same client_id: give each device a name of its own",
    0x90: "the broker does not allow our topics: set prefix to one it allows",
    0x95: "the broker takes only smaller packets: raise its limit",
    0x97: "the broker's quota for this client is used up: raise it",
    0x9A: "the broker keeps no retained messages, but states need them: allow them there",
    0x9B: "the broker does not support QoS 1, but states need it: allow it there",
    0x9C: "set host to the broker's new place",
    0x9D: "set host to the broker's new place",
    0x9F: "the broker limits how often clients may connect",
}

_CERTIFICATE_REMEDIES = {
    9: "it is not valid yet: is this board's clock right?",
    10: "it has expired: renew the broker's certificate, or is this board's clock wrong?",
    18: "it is self-signed: name it, or the authority that signed it, in ca_file",
    19: "its authority is not trusted here: name that in ca_file",
    20: "its authority is not trusted here: name that in ca_file",
    62: "it is for another name: set host to the name in the certificate, or server_name to it",
    64: "it is for another address: set host to a name or address in the certificate, or server_name to that name",
}


def refused(reason: ReasonCode, options: MqttOptions) -> LinkError:
    """The broker said no to our CONNECT."""
    message = f"the broker at {options.broker} refused the connection: {reason}"
    if reason.value == UNSUPPORTED_VERSION:
        return VersionError(message, hint=remedy(reason), certain=True)
    if reason.value in (RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED):
        return CapabilityError(message, hint=remedy(reason), code=reason.value)
    return LinkError(message, hint=remedy(reason))


def dismissed(reason: ReasonCode, options: MqttOptions) -> LinkError:
    """The broker said good-bye."""
    message = f"the broker at {options.broker} disconnected us: {reason}"
    dropped, unwelcome = reason.value not in _BLAMELESS, reason.value in _UNWELCOME
    return LinkError(message, hint=remedy(reason), dropped=dropped, unwelcome=unwelcome)


def over_quota(reason: ReasonCode, options: MqttOptions) -> LinkError:
    """The broker does not take any more for now."""
    message = f"the broker at {options.broker} takes no messages: {reason}"
    return LinkError(message, hint=remedy(reason), unwelcome=True)


def remedy(reason: ReasonCode) -> str:
    """What to do about a reason code."""
    return _REMEDIES.get(reason.value, "look at the broker's log")


def unreachable(error: Exception, options: MqttOptions) -> LinkError:
    """No connection came about: name, network, TCP or TLS."""
    refusal = _unreachable(error, options)
    refusal.unreachable = isinstance(error, OSError) and not isinstance(error, ssl.SSLError | HandshakeError)
    return refusal


def _unreachable(error: Exception, options: MqttOptions) -> LinkError:
    where = options.broker
    match error:
        case ssl.SSLCertVerificationError():
            hint = _CERTIFICATE_REMEDIES.get(error.verify_code, "check the broker's certificate and ca_file")
            return LinkError(f"the certificate of {where} is not good: {error.verify_message}", hint=hint)
        case ssl.SSLError():
            return LinkError(f"TLS with {where} failed: {_tls_reason(error)}", hint=_tls_remedy(error))
        case socket.gaierror():
            hint = "check the host's spelling, and that this board can resolve names (getent hosts NAME)"
            return LinkError(f"the name of {where} cannot be resolved: {error.strerror}", hint=hint)
        case TimeoutError():
            hint = "check the address, the network and firewalls on the way; with tls, that the port speaks TLS"
            return LinkError(f"{where} did not answer within {options.connect_timeout:g} s", hint=hint)
        case HandshakeError():
            hint = 'check path and port; with transport = "tcp" the broker itself is spoken to'
            return LinkError(f"{where} offers no MQTT over WebSockets at {options.path}: {error}", hint=hint)
        case ConnectionRefusedError():
            return LinkError(f"nothing listens at {where}", hint="check that the broker runs, and the port")
        case ConnectionError() if options.tls:
            hint = "check that the port speaks TLS"
            return LinkError(f"{where} closed the connection during the TLS handshake", hint=hint)
        case OSError():
            hint = "check the network (ip route)"
            return LinkError(f"{where} cannot be reached: {error.strerror or error}", hint=hint)
        case _:
            return LinkError(f"{where} cannot be reached: {error}", hint="check host and port")


def lost(error: OSError | None, options: MqttOptions) -> LinkError:
    """An established connection ended without a word."""
    where = options.broker
    if isinstance(error, ssl.SSLError):
        message = f"TLS with {where} failed: {_tls_reason(error)}"
        return LinkError(message, hint=_tls_remedy(error), dropped=True)
    why = f": {error.strerror or error}" if error else ""
    wants = "a client certificate (cert_file, key_file)" if options.tls else "TLS"
    hint = f"look at the broker's log: it may want {wants}, or another client may use the same client_id"
    return LinkError(f"{where} closed the connection{why}", hint=hint, dropped=True)


def silent(options: MqttOptions) -> LinkError:
    """The connection died without a word."""
    return LinkError(f"{options.broker} no longer answers", hint="check the network on the way to it")


def interrupted(options: MqttOptions) -> LinkError:
    """Nothing went through for a while, and the connection has not noticed that it could again."""
    where = options.broker
    return LinkError(f"{where} could not be reached for a while", hint="check the network on the way to it", over=True)


def moved(options: MqttOptions) -> LinkError:
    """Our own end of the connection is gone."""
    return LinkError(
        f"this board has lost the address from which it spoke to {options.broker}", hint="check: ip address"
    )


def stalled(seconds: float, options: MqttOptions) -> LinkError:
    """The connection lives, but the broker does not do its work."""
    message = f"{options.broker} has acknowledged nothing for {seconds:g} s"
    return LinkError(message, hint="look at the broker's log, and at its load")


def nonsense(options: MqttOptions) -> LinkError:
    """What came is not MQTT."""
    message = f"{options.broker} sent something that is not MQTT"
    return LinkError(message, hint="check that the port is an MQTT broker's")


def _tls_reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _tls_remedy(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if "WRONG_VERSION" in reason or "UNKNOWN_PROTOCOL" in reason or "RECORD_LAYER" in reason:
        return "the port does not speak TLS: use the broker's TLS port, or tls = false"
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return "the broker does not accept our certificate: check cert_file and key_file"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "look at the broker's log: it may want a client certificate (cert_file, key_file)"
    return "look at the broker's log"
