"""Faults between the board and the broker: every failure is turned into a reason and a hint.

A `LinkError` is retried later; a `VersionError` at once, with the older protocol.
"""

from __future__ import annotations

import socket

from paho.mqtt.reasoncodes import ReasonCode

from edged.core.errors import EdgedError
from edged.outbox.options import MqttOptions
from edged.outbox.websocket import HandshakeError
from edged.system.later import ssl


class LinkError(EdgedError):
    """The connection failed or was lost.

    `dropped`: the broker closed the connection, perhaps because of a message of this client. `unreachable`: no program
    answered at the address. `over`: the obstacle is gone, and the next connection will work. `unwelcome`: an immediate
    reconnection would make matters worse.
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


class MessageError(EdgedError):
    """The message cannot be sent over any connection, or not over this one."""


class VersionError(LinkError):
    """The broker does not know this version of MQTT.

    `certain`: the broker has said so. Many brokers just close the connection or stay silent, as do servers of other
    protocols.
    """

    def __init__(self, message: str, *, hint: str = "", certain: bool) -> None:
        super().__init__(message, hint=hint)
        self.certain = certain


class CapabilityError(LinkError):
    """The broker lacks a requested feature; `code` is its reason code."""

    def __init__(self, message: str, *, hint: str, code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code


UNSUPPORTED_VERSION = 0x84
QUOTA_EXCEEDED = 0x97
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B

# Reason codes of a DISCONNECT not caused by any message of this client.
_BLAMELESS = {0x00, 0x88, 0x89, 0x8B, 0x8D, 0x8E, 0x96, 0x97, 0x98, 0x9C, 0x9D, 0x9F, 0xA0}

# Reason codes after which to pause: client id taken over, too many messages, too many connections.
_UNWELCOME = {0x89, 0x8E, 0x96, 0x97, 0x9F}

_REMEDIES = {
    0x84: 'set protocol = "3.1.1"',
    0x85: "set client_id to a value allowed by the broker",
    0x86: "check username and password_file",
    0x87: "check username and password_file, and what the broker lets this client do",
    0x88: "read the broker's log: the broker is up but not ready",
    0x89: "reduce the load of the broker",
    0x8A: "ask the broker's operator to lift the ban of this client",
    0x8B: "wait for the broker to restart",
    0x8C: "allow username and password at the broker; edged has no other authentication method",
    0x8E: "give each device a name of its own: another client uses the same client_id",
    0x90: "set prefix to a value allowed by the broker",
    0x95: "raise the packet size limit of the broker",
    0x97: "raise the broker's quota for this client",
    0x9A: "allow retained messages at the broker: states need them",
    0x9B: "allow QoS 1 at the broker: states need it",
    0x9C: "set host to the broker's new place",
    0x9D: "set host to the broker's new place",
    0x9F: "raise the broker's limit on connections per client",
}

_CERTIFICATE_REMEDIES = {
    9: "set this board's clock, or wait: the certificate is not valid yet",
    10: "renew the broker's expired certificate, or set this board's clock",
    18: "set ca_file to the self-signed certificate, or to the authority that signed it",
    19: "set ca_file to the certificate of its authority, so far not trusted",
    20: "set ca_file to the certificate of its authority, so far not trusted",
    62: "set host, or server_name, to the name in the certificate",
    64: "set host to a name or address in the certificate, or server_name to that name",
}


def refused(reason: ReasonCode, options: MqttOptions) -> LinkError:
    """Return the error for a refused CONNECT."""
    message = f"the broker at {options.broker} refused the connection: {reason}"
    if reason.value == UNSUPPORTED_VERSION:
        return VersionError(message, hint=remedy(reason), certain=True)
    if reason.value in (RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED):
        return CapabilityError(message, hint=remedy(reason), code=reason.value)
    return LinkError(message, hint=remedy(reason))


def dismissed(reason: ReasonCode, options: MqttOptions) -> LinkError:
    """Return the error for a DISCONNECT by the broker."""
    message = f"the broker at {options.broker} disconnected this client: {reason}"
    dropped, unwelcome = reason.value not in _BLAMELESS, reason.value in _UNWELCOME
    return LinkError(message, hint=remedy(reason), dropped=dropped, unwelcome=unwelcome)


def over_quota(reason: ReasonCode, options: MqttOptions) -> LinkError:
    """Return the error for an exhausted quota."""
    message = f"the broker at {options.broker} takes no messages: {reason}"
    return LinkError(message, hint=remedy(reason), unwelcome=True)


def remedy(reason: ReasonCode) -> str:
    """Return the hint for a reason code."""
    return _REMEDIES.get(reason.value, "read the broker's log")


def unreachable(error: Exception, options: MqttOptions) -> LinkError:
    """Return the error for a failed connection attempt: name, network, TCP or TLS."""
    refusal = _unreachable(error, options)
    refusal.unreachable = isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, HandshakeError))
    return refusal


def _unreachable(error: Exception, options: MqttOptions) -> LinkError:
    where = options.broker
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = _CERTIFICATE_REMEDIES.get(error.verify_code, "check the broker's certificate and ca_file")
        return LinkError(f"the certificate of {where} is not good: {error.verify_message}", hint=hint)
    if isinstance(error, ssl.SSLError):
        return LinkError(f"TLS with {where} failed: {_tls_reason(error)}", hint=_tls_remedy(error))
    match error:
        case socket.gaierror():
            hint = "check the spelling of host, and this board's resolver (getent hosts NAME)"
            return LinkError(f"the name of {where} cannot be resolved: {error.strerror}", hint=hint)
        case TimeoutError():
            hint = "check the address, the network and firewalls on the way; with tls, that the port speaks TLS"
            return LinkError(f"{where} did not answer within {options.connect_timeout:g} s", hint=hint)
        case HandshakeError():
            hint = 'check path and port, or set transport = "tcp" for a broker without web server'
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
    """Return the error for a connection closed without a DISCONNECT."""
    where = options.broker
    if isinstance(error, ssl.SSLError):
        message = f"TLS with {where} failed: {_tls_reason(error)}"
        return LinkError(message, hint=_tls_remedy(error), dropped=True)
    why = f": {error.strerror or error}" if error else ""
    wants = "a client certificate (cert_file, key_file)" if options.tls else "TLS"
    hint = f"read the broker's log: the broker may require {wants}, or another client may use the same client_id"
    return LinkError(f"{where} closed the connection{why}", hint=hint, dropped=True)


def silent(options: MqttOptions) -> LinkError:
    """Return the error for a connection without a sign of life."""
    return LinkError(f"{options.broker} no longer answers", hint="check the network on the way to the broker")


def interrupted(options: MqttOptions) -> LinkError:
    """Return the error for a stalled connection to a broker reachable again."""
    where = options.broker
    return LinkError(
        f"{where} could not be reached for a while", hint="check the network on the way to the broker", over=True
    )


def moved(options: MqttOptions) -> LinkError:
    """Return the error for a connection from an address lost by this board."""
    return LinkError(
        f"this board has lost the address used for the connection to {options.broker}", hint="check: ip address"
    )


def stalled(seconds: float, options: MqttOptions) -> LinkError:
    """Return the error for a live connection without acknowledgements."""
    message = f"{options.broker} has acknowledged nothing for {seconds:g} s"
    return LinkError(message, hint="check the broker's log and load")


def not_mqtt(options: MqttOptions) -> LinkError:
    """Return the error for bytes other than MQTT."""
    message = f"{options.broker} sent bytes that are not MQTT"
    return LinkError(message, hint="check that the port is an MQTT broker's")


def _tls_reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _tls_remedy(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if "WRONG_VERSION" in reason or "UNKNOWN_PROTOCOL" in reason or "RECORD_LAYER" in reason:
        return "the port does not speak TLS: use the broker's TLS port, or tls = false"
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return "check cert_file and key_file: the broker does not accept this board's certificate"
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return "read the broker's log: the broker may require a client certificate (cert_file, key_file)"
    return "read the broker's log"
