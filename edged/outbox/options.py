"""The [mqtt] table: which broker, how to prove who we are, and how much may wait for it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.core.errors import ConfigError

Drop = Literal["oldest", "newest"]

LEVELS = "topic levels of letters, digits, -, _ and ., with / between them, at most 200 characters"
Levels = Annotated[str, Meta(pattern=r"^(?!.{201})[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*\Z", description=LEVELS)]
Text = Annotated[str, Meta(max_length=1000)]


class MqttOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[mqtt]: the broker at `host`; without one nothing is sent anywhere.

    `port` is 1883, or 8883 with `tls`. The broker's certificate is always verified, against `ca_file` or else the
    system's authorities; `cert_file` and `key_file` are our own. The password is the first line of `password_file`,
    read anew for each connection. A relative file name is looked for among the service's credentials
    ($CREDENTIALS_DIRECTORY). `client_id` is edged-<device> unless given.

    `protocol` "auto" is MQTT 5, and 3.1.1 with a broker that does not speak it. `keepalive` and `connect_timeout` are
    seconds; a connection that died without a word is noticed within twice `keepalive`. At most `in_flight` messages
    await their acknowledgement.

    At most `spool_messages`, `spool_bytes` and, unless 0, `spool_seconds` of messages wait for the broker. What does
    not fit is taken from the pipeline that holds most: its oldest messages or its newest, as `spool_drop` says, or
    `spool_drops` for single pipelines.

    `home_assistant` makes the device known to Home Assistant, under its `discovery_prefix`.
    """

    host: Annotated[str, Meta(max_length=253)] = ""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    tls: bool = False
    ca_file: Text = ""
    cert_file: Text = ""
    key_file: Text = ""
    username: Text = ""
    password_file: Text = ""
    client_id: Annotated[str, Meta(max_length=200)] = ""
    prefix: Levels = "edged"
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    keepalive: Annotated[int, Meta(ge=2, le=3600)] = 30
    connect_timeout: Annotated[float, Meta(gt=0, le=60)] = 5.0
    in_flight: Annotated[int, Meta(ge=1, le=1000)] = 20
    spool_messages: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    spool_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 16 << 20
    spool_seconds: Annotated[int, Meta(ge=0)] = 0
    spool_drop: Drop = "oldest"
    spool_drops: dict[str, Drop] = {}
    home_assistant: bool = False
    discovery_prefix: Levels = "homeassistant"

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigError("cert_file and key_file go together", hint="give both or neither")
        if not self.tls and (self.ca_file or self.cert_file):
            raise ConfigError("ca_file, cert_file and key_file mean nothing without TLS", hint="set tls = true")
        if self.password_file and not self.username:
            raise ConfigError("password_file needs a username", hint="set username as well")

    @property
    def broker(self) -> str:
        """Where the broker is, as host:port; empty without one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.real_port}" if self.host else ""

    @property
    def real_port(self) -> int:
        """The port, given or by default."""
        return self.port or (8883 if self.tls else 1883)
