"""The [mqtt] and [spool] tables: the broker, the credentials, and the bounds of the spool."""

from __future__ import annotations

import re
import socket
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.core.errors import ConfigError

Drop = Literal["oldest", "newest", "thin"]
Durability = Literal["memory", "spill", "always"]

LEVELS = "topic levels of letters, digits, -, _ and ., with / between them, at most 200 characters"
Levels = Annotated[str, Meta(pattern=r"^(?!.{201})[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*\Z", description=LEVELS)]
_Text = Annotated[str, Meta(max_length=1000)]


_SECURED, _WEB = "tls = true", 'transport = "websockets"'
_SCHEMES = {
    **dict.fromkeys(("mqtts", "ssl", "tls"), (_SECURED,)),
    **dict.fromkeys(("ws", "http"), (_WEB,)),
    **dict.fromkeys(("wss", "https"), (_WEB, _SECURED)),
}
"""Equivalents of a URL's scheme in this table."""

_HOST = re.compile(
    r"""\s*(?:(?P<scheme>[A-Za-z]+)://)?           # mqtt://
    (?:(?P<user>[^@/\s]*)@)?                      # user:password@
    (?:\[(?P<bracketed>[^\]\s]+)\]|(?P<plain>[^:/\s\[\]]+|[0-9A-Fa-f:.]+(?:%\w+)?))
    (?::(?P<port>\d{1,5}))?                      # :1883
    (?P<path>/\S*)?\s*""",
    re.VERBOSE,
)


def check_host(key: str, host: str) -> None:
    """Raise ConfigError for a host other than a bare name or address, with the right spelling in the hint."""
    found = _HOST.fullmatch(host)
    name = (found["bracketed"] or found["plain"]) if found else ""
    if not host or (host == name and "$" not in host and _is_sound(name)):
        return
    if host == name and "$" not in host:
        hint = "separate the parts of a name by single dots, and the four numbers of an address, each up to 255"
    elif "$" in host:
        hint = "write the name or the address: variables are not replaced here"
    elif found is None:
        hint = "write the name or the address of the host alone, without blanks"
    else:
        spelled = [f'{key} = "{name}"']
        if found["port"]:
            spelled.append(f"port = {found['port']}")
        if found["user"]:
            spelled.append(f'username = "{found["user"].partition(":")[0]}"')
        scheme = (found["scheme"] or "").lower()
        spelled += _SCHEMES.get(scheme, ())
        if found["path"] and _SCHEMES.get(scheme, ("",))[0].startswith("transport"):
            spelled.append(f'path = "{found["path"]}"')
        hint = f"write {', '.join(spelled)}"
    shown = re.sub(r"(?<=:)[^:/@]+(?=@)", "***", host)  # a password
    raise ConfigError(f"{key} is {shown!r}, neither a name nor an address", hint=hint)


def _is_sound(name: str) -> bool:
    """Return whether a host is an address, or a name whose parts are neither empty nor too long."""
    if ":" in name or re.fullmatch(r"[\d.]+", name):
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in name else socket.AF_INET, name.partition("%")[0])
        except OSError:
            return False
        return True
    return all(0 < len(part) <= _MAX_PART for part in name.removesuffix(".").split("."))


_MAX_PART = 63


class MqttOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of [mqtt]: the connection to the broker.

    The broker's certificate is always verified. A relative file name is looked up among the service's credentials
    ($CREDENTIALS_DIRECTORY).

    Keys:
        host: Name or address of the broker. Without one nothing is published.
        transport: Protocol below MQTT: "tcp", or "websockets" for a broker behind a web server.
        path: Path on the web server, with transport = "websockets".
        server_name: Name asked for in the broker's certificate and from the web server, if `host` is an address.
        port: TCP port of the broker. Default: 1883, with `tls` 8883; with "websockets" 80, with `tls` 443.
        tls: Encrypt the connection.
        ca_file: Certificates of trusted authorities. Default: the system's.
        cert_file: Certificate of this board, for brokers asking for it.
        key_file: Private key of `cert_file`.
        username: User name at the broker.
        password_file: File with the password in its first line, read again for each connection.
        client_id: MQTT client identifier. Default: `edged-<device>-` and six digits of this board alone.
        prefix: First levels of every topic.
        protocol: Version of MQTT. "auto" speaks MQTT 5, and 3.1.1 if the broker refuses 5.
        keepalive (s): Time between two signs of life. A dead connection is noticed within twice this time.
        connect_timeout (s): Time in which the broker must accept a connection.
        in_flight (messages): Most messages sent and not yet acknowledged.
        home_assistant: Announce the device and its pipelines to Home Assistant.
        discovery_prefix: First levels of Home Assistant's topic for announcements.
    """

    host: Annotated[str, Meta(max_length=253)] = ""
    transport: Literal["tcp", "websockets"] = "tcp"
    path: Annotated[str, Meta(max_length=1000)] = "/mqtt"
    server_name: Annotated[str, Meta(max_length=253)] = ""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    tls: bool = False
    ca_file: _Text = ""
    cert_file: _Text = ""
    key_file: _Text = ""
    username: _Text = ""
    password_file: _Text = ""
    client_id: Annotated[str, Meta(max_length=200)] = ""
    prefix: Levels = "edged"
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    keepalive: Annotated[int, Meta(ge=2, le=3600)] = 30
    connect_timeout: Annotated[float, Meta(gt=0, le=60)] = 5.0
    in_flight: Annotated[int, Meta(ge=1, le=1000)] = 20
    home_assistant: bool = False
    discovery_prefix: Levels = "homeassistant"

    def __post_init__(self) -> None:
        check_host("host", self.host)
        check_host("server_name", self.server_name)
        for key in ("client_id", "username", "password_file", "ca_file", "cert_file", "key_file"):
            if "${" in (value := getattr(self, key)):
                raise ConfigError(
                    f"{key} is {value!r}", hint=f"write the value of {key}: variables are not replaced here"
                )
        if not re.fullmatch(r"/[!-~]*", self.path):
            raise ConfigError(f"path is {self.path!r}", hint='begin the path with "/", and write %20 for a blank')
        if self.server_name and not self.tls and self.transport == "tcp":
            raise ConfigError("server_name has no effect without TLS", hint="set tls = true")
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigError("cert_file and key_file go together", hint="give both or neither")
        if not self.tls and (self.ca_file or self.cert_file):
            raise ConfigError("ca_file, cert_file and key_file have no effect without TLS", hint="set tls = true")
        if self.password_file and not self.username:
            raise ConfigError("password_file needs a username", hint="set username as well")

    @property
    def broker(self) -> str:
        """Address of the broker as host:port; empty without a broker."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.real_port}" if self.host else ""

    @property
    def real_port(self) -> int:
        """The port, given or by default."""
        plain, secured = (80, 443) if self.transport == "websockets" else (1883, 8883)
        return self.port or (secured if self.tls else plain)


class SpoolOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of [spool]: the results that wait for the broker, in memory and on disk.

    A full spool drops results of the lowest priority first, and among these of the pipeline with most results.

    Keys:
        messages (messages): Most waiting messages.
        bytes (bytes): Most disk space of waiting messages.
        memory_bytes (bytes): Most memory of waiting messages.
        seconds (s): Time after which a waiting message is dropped; 0 keeps messages.
        commit_seconds (s): Time between two commits to disk. A power cut costs at most the results of this time and
            of `spill_seconds` together. Results of durability "always" are committed at once.
        spill_seconds (s): Time after which a message waiting in memory goes to disk even while the broker is
            connected.
        daily_bytes (bytes): Most bytes written to disk within 24 hours, to spare an SD card; 0 for any number. Beyond
            them results wait in memory; a stop saves them all the same.
        drain: Order in which a backlog is sent: "oldest" or "newest" first. With "newest", new results go at once.
        replay_rate (messages/s): Waiting messages sent a second, beside new results, sent at once. With 0 the
            backlog goes first, as fast as the broker allows.
    """

    messages: Annotated[int, Meta(ge=1, le=10_000_000)] = 1_000_000
    bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 256 << 20
    memory_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 16 << 20
    seconds: Annotated[int, Meta(ge=0)] = 0
    commit_seconds: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    spill_seconds: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    daily_bytes: Annotated[int, Meta(ge=0)] = 0
    drain: Literal["oldest", "newest"] = "oldest"
    replay_rate: Annotated[int, Meta(ge=0, le=100_000)] = 0

    @property
    def overtaking(self) -> bool:
        """True if new results go before old results of the same pipeline."""
        return self.replay_rate > 0 or self.drain == "newest"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Durability, order and rank of one pipeline's messages.

    `drop` selects the messages dropped for lack of room: the "oldest", the "newest", or, with "thin", all but every
    `keep_every`th. Messages of a higher `priority` are sent first and dropped last.
    """

    durability: Durability = "spill"
    drop: Drop = "oldest"
    keep_every: int = 2
    priority: int = 0
