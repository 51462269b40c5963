"""Serve `edgectl --host ... update-model` on the device, run by sshd, also as the forced command of a key.

    command="edgectl receive --stdio",restrict ssh-ed25519 AAAA... alice@example.com

The owner of such a key can send bundles and follow the updates, but run no other command. An older version than the
current version is only accepted if the line in authorized_keys has `receive --stdio --allow-downgrade`. Signatures are
checked as always.

The protocol is the control protocol, limited to these verbs for the daemon:

    receive-open    followed by the bare bytes from the offset in the answer to the size in the request, if any; an
                    event with the offset follows after each `piece` of bytes, once saved
    receive-done    install the bundle
    job-watch       the steps of the job

The first line is a greeting, to tell the answer from the output of a login shell.
"""

from __future__ import annotations

import argparse
import base64
import os
import select
import shlex
from collections.abc import Iterator

from edged import __version__
from edged.core import protocol
from edged.core.errors import ControlError, EdgedError
from edged.core.protocol import Call, Request, T
from edged.core.update_answers import JOB_WATCH, RECEIVE_CHUNK, RECEIVE_DONE, RECEIVE_OPEN
from edged.ctl import exit_codes as exits
from edged.ctl.client import UnreachableError, connect

CHUNK = 32 << 10
MAX_PIECE = 1 << 20
SILENCE_SECONDS = 120.0
"""Seconds of silence until a sender counts as gone."""

DAEMON_SECONDS = 120.0
"""Seconds for the daemon to read a file back, verify signatures and wait for a slow card."""

_ASKED = {
    "receive-open": {"id", "size", "digest", "base", "name", "number", "model", "version", "allow_downgrade", "piece"},
    "receive-done": {"id", "allow_downgrade", "confirm_within"},
    "job-watch": {"id", "after", "digest"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument(
        "--stdio", action="store_true", required=True, help="serve the sender on standard input and output"
    )
    parser.add_argument(
        "--allow-downgrade",
        action="store_true",
        help="let the sender install an older version than the current",
    )


def run(args: argparse.Namespace) -> int:
    """Serve a sender until the end. Raises ControlError if sshd was asked to run another command."""
    _refuse_another_command(_asked_for())
    sender = PushingClient(0, 1)
    try:
        _serve(sender, args.runtime_dir, allow_downgrade=args.allow_downgrade)
    except UnreachableError as error:  # the daemon may be about to start
        sender.send(protocol.encode_error(1, ControlError(error.message, hint=error.hint, retryable=True)))
        return exits.UNREACHABLE
    except EdgedError as error:
        sender.send(protocol.encode_error(1, error))
        return exits.FAILED
    except SenderGone:
        return exits.FAILED
    return exits.DONE


class SenderGone(Exception):  # noqa: N818 not an EdgedError
    """Raised if the sender is gone."""


class PushingClient:
    """The sender of a bundle: reads lines and bare bytes from a descriptor, and writes lines to another."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._held = b""

    def next_request(self) -> Request | None:
        """Return the next request, None at the end. Raises ControlError for breaches of the protocol."""
        while b"\n" not in self._held and len(self._held) <= protocol.MAX_REQUEST:
            data = self._more()
            if not data:
                return None
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return protocol.decode_request(line)

    def read(self, count: int) -> bytes:
        """Return some of the next `count` bytes, as soon as possible. Raises SenderGone."""
        data = self._held[:count] or self._more(min(count, CHUNK))
        self._held = self._held[len(data) :]
        if not data:
            raise SenderGone
        return data[:count]

    def send(self, line: bytes) -> None:
        """Send a line. Raises SenderGone."""
        try:
            while line:
                line = line[os.write(self._sink, line) :]
        except OSError as error:
            raise SenderGone from error

    def _more(self, count: int = CHUNK) -> bytes:
        if not select.select([self._source], [], [], SILENCE_SECONDS)[0]:
            raise SenderGone
        try:
            return os.read(self._source, count)
        except OSError as error:
            raise SenderGone from error


def _refuse_another_command(words: list[str]) -> None:
    """Refuse any other command for sshd than `receive`. Raises ControlError."""
    if words and words[1:2] != ["receive"]:
        raise ControlError(
            "this key may only bring bundles, with update-model; nothing else was done",
            hint="use another key, or have the command taken from its line in authorized_keys on the device",
        )


def _refuse_another_daemon(words: list[str], runtime_dir: str | None) -> None:
    """Refuse another daemon than the daemon of the forced command. Raises ControlError."""
    named = words[words.index("--runtime-dir") + 1 :][:1] if "--runtime-dir" in words else []
    if named not in ([], [runtime_dir]):
        raise ControlError(
            "this key has a daemon of its own, and not that of --runtime-dir",
            hint="leave --runtime-dir out, or have it written in the key's line of authorized_keys on the device",
        )


def _asked_for() -> list[str]:
    """Return the original command line for sshd; empty without a forced command."""
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    try:
        return shlex.split(asked)
    except ValueError:
        return [asked]


def _serve(sender: PushingClient, runtime_dir: str | None, *, allow_downgrade: bool) -> None:
    sender.send(protocol.encode_ok(0, {"edged": __version__}))
    _refuse_another_daemon(_asked_for(), runtime_dir)
    while request := sender.next_request():
        known = _ASKED.get(request.verb, set())
        if not known or not request.args.keys() <= known:
            raise ControlError(f"{request.verb!r} cannot be asked here", hint="only bundles can be brought here")
        if request.args.get("allow_downgrade") and not allow_downgrade:
            raise ControlError(
                "this key may not bring an older version with --allow-downgrade",
                hint="allow it in the key's line of authorized_keys on the device:\n"
                'command="edgectl receive --stdio --allow-downgrade"',
            )
        match request.verb:
            case "receive-open":
                _receive(sender, request, runtime_dir)
            case "receive-done":
                sender.send(protocol.encode_ok(request.id, _call(RECEIVE_DONE, runtime_dir, request, origin=_origin())))
            case _:
                for item in connect(runtime_dir).stream(JOB_WATCH, **request.args):
                    sender.send(protocol.encode_event(request.id, item))
                sender.send(protocol.encode_end(request.id))


def _receive(sender: PushingClient, request: Request, runtime_dir: str | None) -> None:
    piece = request.args.pop("piece", CHUNK)
    if not isinstance(piece, int) or not 1 <= piece <= MAX_PIECE:
        raise ControlError(f"a piece of {piece!r} bytes is impossible", hint=f"from 1 to {MAX_PIECE}")
    answer = _call(RECEIVE_OPEN, runtime_dir, request)
    sender.send(protocol.encode_ok(request.id, answer))
    if "offset" not in answer:
        return
    name, size = request.args.get("id"), request.args.get("size")
    if not isinstance(name, str) or not isinstance(size, int):
        raise ControlError("receive-open is asked without an id or a size", hint="is edgectl of this version?")
    for offset in _pass_on(sender, name, answer["offset"], size, piece, runtime_dir):
        sender.send(protocol.encode_event(request.id, {"offset": offset}))


def _pass_on(
    sender: PushingClient, name: str, offset: int, size: int, piece: int, runtime_dir: str | None
) -> Iterator[int]:
    """Pass received bytes on to the daemon, and yield the end of each piece once saved."""
    while offset < size:
        end = min(offset + piece, size)
        while offset < end:
            data = sender.read(end - offset)
            give(runtime_dir, name, offset, data, durable=offset + len(data) == end)
            offset += len(data)
        yield offset


def give(runtime_dir: str | None, name: str, offset: int, data: bytes, *, durable: bool = False) -> int:
    """Send a chunk of a transfer to the daemon, saved before the answer if `durable`. Return the bytes received so far.

    Raises EdgedError.
    """
    text = base64.b64encode(data).decode()
    call = connect(runtime_dir).call
    answer = call(RECEIVE_CHUNK, timeout=DAEMON_SECONDS, id=name, offset=offset, data=text, durable=durable)
    return answer["offset"]


def _call(call: Call[T], runtime_dir: str | None, request: Request, **more: object) -> T:
    return connect(runtime_dir).call(call, timeout=DAEMON_SECONDS, **request.args, **more)


def _origin() -> str:
    """Return the user and the address of the sender, as given by sshd."""
    user = os.environ.get("USER") or str(os.getuid())
    address = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    return f"{user}, over SSH from {address}" if address else user
