"""Client of the control socket: connect, call, stream."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from edged.core import protocol
from edged.core.errors import ControlError
from edged.core.protocol import Args, Call, Request, Stream, T

SYSTEM_RUNTIME_DIR = "/run/edged"


class UnreachableError(ControlError):
    """Raised if no daemon answers."""


class ForbiddenError(UnreachableError):
    """Raised if the user may not open the socket of a daemon."""


class ControlClient:
    """A connection to the daemon, for a single request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def call(self, call: Call[T], *, timeout: float = 10.0, **args: object) -> T:
        """Return the answer to a call, within `timeout` seconds.

        Raises:
            EdgedError: the daemon answered with an error.
            UnreachableError: the daemon did not answer.
        """
        self._ask(call.verb, args, timeout)
        return protocol.check(self._reply().value, call.answer, call.verb)

    def stream(self, stream: Stream[T], **args: object) -> Iterator[T]:
        """Yield the events of a stream until the daemon ends the stream. Raises as `call` does."""
        self._ask(stream.verb, args, None)
        while (reply := self._reply()).kind == "event":
            yield protocol.check(reply.value, stream.event, stream.verb)

    def _ask(self, verb: str, args: Args, timeout: float | None) -> None:
        self._connection.settimeout(timeout)
        try:
            self._connection.sendall(protocol.encode_request(Request(1, verb, args)))
        except OSError as error:
            raise _silent(error) from error

    def _reply(self) -> protocol.Reply:
        try:
            line = self._lines.readline(protocol.MAX_REPLY)
        except OSError as error:
            raise _silent(error) from error
        if not line.endswith(b"\n"):
            happened = "broke off in its answer" if line else "closed the connection"
            raise UnreachableError(f"the daemon {happened}", hint="see why: journalctl -u edged -n 20")
        return protocol.decode_reply(line)


def connect(runtime_dir: str | None) -> ControlClient:
    """Connect to the daemon of a runtime directory; by default the user's daemon, otherwise the system's.

    Raises:
        UnreachableError: no daemon runs, or the user may not open the socket.
    """
    failures = {}
    for folder in _folders(runtime_dir):
        path = f"{folder}/{protocol.SOCKET}"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(10.0)
            connection.connect(path)
        except OSError as error:
            connection.close()
            failures[path] = error
        else:
            return ControlClient(connection)
    raise _unreachable(failures)


def _folders(runtime_dir: str | None) -> list[str]:
    if runtime_dir:
        return [runtime_dir]
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [*([f"{own}/edged"] if own else []), SYSTEM_RUNTIME_DIR]


def _unreachable(failures: dict[str, OSError]) -> UnreachableError:
    reasons = "; ".join(f"{path}: {error.strerror or error}" for path, error in failures.items())
    for path, error in failures.items():
        if isinstance(error, PermissionError):
            return ForbiddenError(f"the daemon's socket is not yours to open: {reasons}", hint=_way_in(path))
    return UnreachableError(
        f"no daemon answers: {reasons}",
        hint="start it: sudo systemctl start edged\nor say where it runs: edgectl --runtime-dir DIR",
    )


def _way_in(path: str) -> str:
    """Return the remedy for a socket with other owners."""
    import pwd  # imported only after an error
    from pathlib import Path

    try:
        group = Path(path).group()
        user = pwd.getpwuid(os.geteuid()).pw_name
    except (OSError, KeyError):
        return "use sudo"
    return f"use sudo, or join the group {group} and log in again: sudo usermod -aG {group} {user}"


def _silent(error: OSError) -> UnreachableError:
    return UnreachableError(
        f"the daemon does not answer: {error}", hint="see what it is doing: journalctl -u edged -n 20"
    )
