"""A real mosquitto on a free loopback port, certificates, a subscriber, and misbehaving servers."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import NamedTuple

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.patience import PATIENCE


class Certificates(NamedTuple):
    """PEM files: an authority, certificates signed by the authority, and a foreign authority."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger: Path


def make_certificates(folder: Path, host: str = "localhost") -> Certificates:
    """Certificates for a broker at `host`, good for a day."""
    for name in ("ca", "stranger"):
        _openssl(folder, name, "-subj", f"/CN={name}")
    signed = ("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"))
    _openssl(folder, "server", *signed, "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
    _openssl(folder, "client", *signed, "-subj", "/CN=board")
    names = ("ca.crt", "server.crt", "server.key", "client.crt", "client.key", "stranger.crt")
    return Certificates(*(folder / name for name in names))


def _openssl(folder: Path, name: str, *arguments: str) -> None:
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    files = ("-keyout", f"{folder / name}.key", "-out", f"{folder / name}.crt")
    usage = ("-addext", "keyUsage=critical,digitalSignature,keyCertSign")  # Python 3.13 wants to be told
    subprocess.run(["openssl", "req", "-x509", *new_key, *files, *usage, *arguments], check=True, capture_output=True)


def free_port() -> int:
    """Return an unused loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """Mosquitto with files in `folder`, on the same port after each start.

    `passwords` are by user and exclude anonymous clients, `acl` is the text of an access control file, `lines` are
    further lines of configuration; `within` is a command that runs mosquitto. With `certificates` the broker speaks
    TLS, and requires client certificates if `client_certificates`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        passwords: Mapping[str, str] | None = None,
        acl: str = "",
        certificates: Certificates | None = None,
        client_certificates: bool = False,
        lines: Sequence[str] = (),
        within: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self._within = within
        self.log: list[str] = []
        self._config = folder / "mosquitto.conf"
        config = [f"listener {self.port} 127.0.0.1", "user root", "persistence false", "log_dest stderr"]
        config.append("max_queued_messages 100000")  # a subscriber on a loaded machine is slow
        config.append(f"allow_anonymous {'false' if passwords else 'true'}")
        if passwords:
            config.append(f"password_file {_password_file(folder, passwords)}")
        if acl:
            (folder / "acl").write_text(acl)
            config.append(f"acl_file {folder / 'acl'}")
        if certificates:
            config += [f"cafile {certificates.ca}", f"certfile {certificates.server}"]
            config += [f"keyfile {certificates.server_key}"]
            config += [f"require_certificate {'true' if client_certificates else 'false'}"]
        self._config.write_text("\n".join([*config, *lines]) + "\n")

    def start(self) -> None:
        """Start mosquitto, and wait until the port is open."""
        command = [*self._within, "mosquitto", "-c", self._config]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line)
            if line.rstrip().endswith("running"):
                return
        raise RuntimeError("mosquitto does not start:\n" + "".join(self.log))

    def stop(self, *, kill: bool = False) -> None:
        """Stop mosquitto; with `kill`, as a power cut would."""
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        self.log.append(self._process.communicate()[1])

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self.stop()


def _password_file(folder: Path, passwords: Mapping[str, str]) -> Path:
    file = folder / "passwords"
    file.touch(mode=0o600)
    for user, password in passwords.items():
        subprocess.run(["mosquitto_passwd", "-b", file, user, password], check=True, capture_output=True)
    return file


class Subscriber:
    """A subscriber; messages arrive in `next`."""

    def __init__(
        self,
        port: int,
        *topics: str,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        user: str = "",
        password: str = "",
    ) -> None:
        self._messages: Queue[mqtt.MQTTMessage] = Queue()
        self._granted = Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=version)
        if user:
            self.client.username_pw_set(user, password)
        self.client.on_message = lambda _client, _data, message: self._messages.put(message)
        self.client.on_subscribe = lambda *_: self._granted.set()
        self.client.on_connect = lambda *_: self.client.subscribe([(topic, 1) for topic in topics])
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._granted.wait(PATIENCE), "the broker did not grant the subscription"

    def next(self, accept: Callable[[mqtt.MQTTMessage], bool] = lambda _: True) -> mqtt.MQTTMessage:
        """Return the next acceptable message."""
        while True:
            message = self._messages.get(timeout=PATIENCE)
            if accept(message):
                return message

    def wait_for(self, topic: str, payload: bytes | None = None) -> mqtt.MQTTMessage:
        """Return the next message on a topic, with this payload if given."""
        return self.next(lambda message: message.topic == topic and payload in (None, message.payload))

    def nothing_more(self) -> bool:
        """Return whether no arrived message is left."""
        try:
            self._messages.get_nowait()
        except Empty:
            return True
        return False

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


Script = Callable[[socket.socket], None]
"""Function that serves a connection, which is closed on return."""


@contextmanager
def server(script: Script) -> Iterator[int]:
    """Run a server that follows the script on each connection in turn; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # the listener is closed: the test is over
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        script(connection)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


def old_broker(refuse: Script) -> Script:
    """Return a script of an MQTT 3.1.1 broker, which follows `refuse` for a CONNECT of version 5."""

    def script(connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while head := stream.read(2):  # packets in these tests are shorter than 128 bytes
                body = stream.read(head[1])
                if head[0] == 0x10 and body[6] == 5:
                    refuse(connection)
                    return
                if head[0] == 0x10:
                    connection.sendall(b"\x20\x02\x00\x00")
                if head[0] & 0xF6 == 0x32:  # a PUBLISH of QoS 1: the packet id stands after the topic
                    topic_end = 2 + int.from_bytes(body[:2], "big")
                    connection.sendall(b"\x40\x02" + body[topic_end : topic_end + 2])

    return script
