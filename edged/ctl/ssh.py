"""Connect to a device with the `ssh` of the system, and so with the user's configuration, agent, keys and jump hosts.

Each connection is a process. Dead connections end from both sides: ssh gives up within a minute, and edgectl gives up a
far end after a longer silence.
"""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from edged.core import protocol
from edged.core.errors import ControlError
from edged.core.protocol import Call, Reply, Request, Stream, T
from edged.core.update_answers import RECEIVE_CHUNK
from edged.ctl.client import UnreachableError

RECEIVE = ("edgectl", "receive", "--stdio")
GIVE_UP = ("-oConnectTimeout=30", "-oServerAliveInterval=15", "-oServerAliveCountMax=4")
"""Make ssh give up a dead far end within a minute."""

OPTIONS = ("-T", "-a", "-x", "-oClearAllForwardings=yes", *GIVE_UP)

QUIET_SECONDS = 20.0
"""Seconds of silence until the user is warned, and warned again after twice the time.

More than the interval between signs of life of a watched job.
"""

SSH_FAILED = 255
"""Exit code of failures of ssh; other codes are from the remote command."""

_PIECE = 16 << 10
_SILENCE_SECONDS = 90.0
_LOGIN_SECONDS = 300.0
_MAX_NOISE = 64 << 10
_MAX_COMPLAINT = 4096
_GREETING = b'{"id":0,"ok":{"edged":'

_FINAL = {
    "Permission denied": "load a key it accepts into your agent: ssh-add",
    "Too many authentication failures": "name the key in ~/.ssh/config: IdentityFile, IdentitiesOnly",
    "Host key verification failed": "compare its key, then connect once by hand: ssh HOST",
    "Could not resolve hostname": "check the name, or give it an address in ~/.ssh/config",
    "Connection refused": "check its port in ~/.ssh/config, and that sshd runs there",
    "Bad configuration option": "see ~/.ssh/config",
    "command not found": "install edged there, or have its edgectl on the PATH of that user",
}
"""Complaints of ssh or the far end, with remedies, for errors without hope of recovery."""

_AT_FIRST = ("Could not resolve hostname", "Connection refused")
"""Complaints with hope of recovery for a host with an earlier answer, perhaps in a restart."""


class LineError(ControlError):
    """The line broke, or never came to be; another may hold."""


def command(ssh: str, host: str, words: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """Return the command line to run `words` on a host; `ssh` is a command, perhaps with options."""
    return [*shlex.split(ssh), *options, "--", host, shlex.join(words)]


def not_run(ssh: str, error: OSError) -> UnreachableError:
    """Return the error for a missing `ssh` command."""
    return UnreachableError(f"{ssh} cannot be run: {error.strerror}", hint="install OpenSSH's client")


class SshSession:
    """A connection to `edgectl receive` on a host, for a `with` statement. All methods raise EdgedError.

    `words` are more arguments of `edgectl receive`. `first` marks a host without an earlier answer: ssh may ask for a
    password, and an unknown name is an error of the user rather than of the link. `report` is called when the far end
    falls silent, and when the far end answers again.
    """

    def __init__(
        self, ssh: str, host: str, words: Sequence[str], *, may_ask: bool, first: bool, report: Callable[[str], None]
    ) -> None:
        options = OPTIONS if may_ask else (*OPTIONS, "-oBatchMode=yes")
        self._host = host
        self._report = report
        self._first = first
        self._heard = b""
        self._greeted = False
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__
        try:
            self._process = subprocess.Popen(
                command(ssh, host, (*RECEIVE, *words), options),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
            )
        except OSError as error:
            self._complaints.close()
            raise not_run(ssh, error) from error
        assert self._process.stdin
        assert self._process.stdout
        self._to = self._process.stdin.fileno()
        self._from = self._process.stdout.fileno()
        os.set_blocking(self._to, False)

    def __enter__(self) -> SshSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def wait_for_greeting(self) -> None:
        """Wait for the greeting of the far end, after any output of the login; the first time allows for a password."""
        noise = 0
        while noise < _MAX_NOISE:
            line = self._next_line(_LOGIN_SECONDS if self._first else _SILENCE_SECONDS)
            if line.startswith(_GREETING):
                self._greeted = True
                return
            noise += len(line) + 1
        raise UnreachableError(
            f"{self._host} sends text, but not the greeting of edged", hint=f"look: ssh {self._host}"
        )

    def call(self, call: Call[T], **args: object) -> T:
        """Return the answer to a call."""
        self._send(protocol.encode_request(Request(1, call.verb, args)))
        while (reply := self._reply()).kind == "event":
            pass  # for bytes sent before another client completed the transfer
        return protocol.check(reply.value, call.answer, call.verb)

    def stream(self, stream: Stream[T], **args: object) -> Iterator[T]:
        """Yield the events of a stream."""
        self._send(protocol.encode_request(Request(1, stream.verb, args)))
        while (reply := self._reply()).kind == "event":
            yield protocol.check(reply.value, stream.event, stream.verb)

    def send(self, read: Callable[[int, int], bytes], offset: int, size: int, piece: int) -> Iterator[int]:
        """Send bare bytes from `offset` to `size`, and yield each offset that the far end has saved.

        At most two pieces are under way: the far end writes the first and receives the second.
        """
        taken = sent = offset
        while sent < size or taken < size:
            room = min(size, taken + 2 * piece) - sent
            if self._wait(write=room > 0):
                taken = max(taken, self._received())
                yield taken
            elif room > 0:
                sent += self._write(read(sent, min(room, _PIECE)))

    def _send(self, data: bytes) -> None:
        while data:
            self._wait(write=True, read=False)
            data = data[self._write(data) :]

    def _received(self) -> int:
        """Return the offset in the next event of the far end, saved durably."""
        return protocol.check(self._reply().value, RECEIVE_CHUNK.answer, RECEIVE_CHUNK.verb)["offset"]

    def _reply(self) -> Reply:
        return protocol.decode_reply(self._next_line(_SILENCE_SECONDS))

    def _next_line(self, patience: float) -> bytes:
        while b"\n" not in self._heard and len(self._heard) <= protocol.MAX_REPLY:
            if not any(self._select(patience, read=True, write=False)):
                raise LineError(f"{self._host} has fallen silent")
            data = os.read(self._from, _PIECE)
            if not data:
                raise self._broken()
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _wait(self, *, write: bool, read: bool = True) -> bool:
        """Wait until the connection is readable or writable, and return the former."""
        if read and b"\n" in self._heard:
            return True
        readable, writable = self._select(_SILENCE_SECONDS, read=read, write=write)
        if not readable and not writable:
            raise LineError(f"{self._host} has stopped reading")
        return readable

    def _select(self, patience: float, *, read: bool, write: bool) -> tuple[bool, bool]:
        """Return whether the connection is readable, and whether writable; neither after `patience` seconds."""
        began, quiet = time.monotonic(), QUIET_SECONDS
        while True:
            wait = min(quiet, patience) - (time.monotonic() - began)
            sources, sinks = [self._from] if read else [], [self._to] if write else []
            readable, writable, _ = select.select(sources, sinks, [], max(0.0, wait))
            waited = time.monotonic() - began
            if readable or writable or waited >= patience:
                break
            if waited >= quiet:
                self._report(f"no answer from {self._host} for {waited:.0f} s; still waiting")
                quiet *= 2
        if readable and quiet > QUIET_SECONDS:
            self._report(f"{self._host} answers again, after {waited:.0f} s")
        return bool(readable), bool(writable)

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._to, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise self._broken() from None

    def _broken(self) -> ControlError:
        """Return the reason for the end of the connection, by the exit code and the last complaint of ssh."""
        try:
            code = self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            code = SSH_FAILED
        said = self._last_complaint()
        for words, hint in _FINAL.items():
            lasting = words not in _AT_FIRST or self._first
            if words in said and lasting:
                return UnreachableError(f"{self._host}: {said}", hint=hint)
        if code != SSH_FAILED and not self._greeted:
            return UnreachableError(
                f"{self._host}: {said or f'what ran there ended ({code}) and said nothing'}",
                hint=f"look: ssh {self._host} {shlex.join(RECEIVE)}",
            )
        return LineError(f"{self._host}: {said or f'the connection ended ({code})'}")

    def _last_complaint(self) -> str:
        end = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, end - _MAX_COMPLAINT))
        lines = self._complaints.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
