"""Control socket: a Unix socket that serves the daemon's operations, in the protocol of `edged.core.protocol`.

Access is controlled by the permissions of the socket, which are set before any client can connect. Each connection is a
task that serves one request at a time. All client resources are bounded: the number of connections is small, a request
has at most 64 KiB, a silent client is disconnected after a minute, and a client that does not read its answer after ten
seconds, with no more than this answer pending.

Clients cannot lock an operator out: if all places are taken, the client with the longest silence is disconnected, and
streams of one verb, such as watches, never take all places.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Coroutine
from pathlib import Path
from typing import Protocol

from edged.control.control_socket import WAITING, ControlSocket
from edged.core import protocol
from edged.core.errors import ControlError, EdgedError, closest
from edged.core.protocol import Args, Request

MAX_CONNECTIONS = 16

MAX_STREAMS = 12
"""So many clients at a time may have streams of the same verb."""

MAX_ALL_STREAMS = MAX_CONNECTIONS - 2
"""Maximum number of clients with streams: a place for a request always remains."""

ACCEPTED_AT_ONCE = 1
"""Number of connections that asyncio accepts before serving present ones.

With a larger number, a client could be disconnected before its request was read, and without descriptors asyncio would
spend all its time on repeated attempts.
"""

_OVERFLOW_USER = 65534

log = logging.getLogger("edged.control")


class RequestHandler(Protocol):
    """Operations for an operator. Values are JSON values; a verb is in `calls` or in `streams`."""

    @property
    def calls(self) -> Collection[str]:
        """Verbs answered once."""

    @property
    def streams(self) -> Collection[str]:
        """Verbs answered again and again, until the client leaves."""

    @property
    def changes(self) -> Collection[str]:
        """Return the verbs that change the daemon; the log names their callers."""

    async def call(self, verb: str, args: Args) -> object:
        """Perform an operation. For `changes`, `args` has the caller in "asked_by". Raises
        EdgedError for the client.
        """

    def stream(self, verb: str, args: Args) -> AsyncGenerator[object, None]:
        """Yield events. Raises EdgedError for the client; closed when the client leaves."""


class Server:
    """Server on a socket from `start` to `stop`.

    `idle` is the permitted silence of a client between requests in seconds, `timeout` the time to read an answer.
    """

    def __init__(
        self, socket: ControlSocket, operations: RequestHandler, *, idle: float = 60.0, timeout: float = 10.0
    ) -> None:
        self._socket = socket
        self._operations = operations
        self._idle = idle
        self._timeout = timeout
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._streaming: Counter[str] = Counter()
        self._accepting: asyncio.Server | None = None

    @property
    def path(self) -> Path:
        """Return the path of the socket."""
        return self._socket.path

    async def start(self) -> None:
        """Serve the clients, also clients that wait already. Opens the socket if necessary.

        Raises:
            ControlError: another daemon has the socket, or the socket cannot be made.
        """
        self._socket.open()
        listener = self._socket.listener
        self._accepting = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=protocol.MAX_REQUEST, backlog=ACCEPTED_AT_ONCE
        )
        listener.listen(WAITING)  # asyncio gets the same number

    async def stop(self) -> None:
        """Let every client go and remove the socket. May be called twice."""
        self._close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def keep_listening(self) -> None:
        """Listen again after the socket's file was deleted or replaced. Connected clients stay connected.

        Raises:
            ControlError: as in `start`.
        """
        if self._accepting is not None and self._socket.is_in_place():
            return
        log.warning("%s was deleted or replaced, and is made again", self.path)
        self._close()
        await self.start()

    def _close(self) -> None:
        if self._accepting is not None:
            self._accepting.close()
            self._accepting = None
        self._socket.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
            writer.write(protocol.encode_error(None, _TOO_MANY))
            writer.close()
            return
        client = _Connection(reader, writer, self._timeout)
        connection = asyncio.create_task(self._serve(client))
        self._connections[connection] = client
        connection.add_done_callback(lambda done: self._connections.pop(done, None))

    def _make_room(self) -> bool:
        """Disconnect the client with the longest silence; return False if every client has a request in progress."""
        silent = [(client.silent_since, task) for task, client in self._connections.items() if client.silent_since]
        if not silent:
            return False
        _, longest = min(silent, key=lambda each: each[0])
        self._connections.pop(longest).send_now(protocol.encode_error(None, _MADE_ROOM))
        longest.cancel()
        return True

    async def _serve(self, client: _Connection) -> None:
        try:
            while request := await client.next(self._idle):
                if not await self._answer(client, request):
                    break
        except ControlError as error:  # not in the protocol, so the position of the next request is unknown
            await client.send_reason(error)
        except (OSError, TimeoutError) as error:
            log.debug("let go of a client of the control socket: %r", error)
        except Exception:
            log.exception("serving a client of the control socket failed")
        finally:
            client.close()

    async def _answer(self, client: _Connection, request: Request) -> bool:
        """Answer a request, and return whether the connection continues."""
        if request.verb in self._operations.changes:
            terms = " with allow_downgrade" if request.args.get("allow_downgrade") is True else ""
            log.info("%s%s, asked for by %s", request.verb, terms, client.peer())
            request.args["asked_by"] = client.peer()
        if request.verb in self._operations.streams and self._has_room_for(request.verb):
            self._streaming[request.verb] += 1
            try:
                await client.while_there(self._stream(client, request))
            finally:
                self._streaming[request.verb] -= 1
            return False
        try:
            if request.verb in self._operations.streams:
                raise _too_many_streams(request.verb, self._streaming[request.verb])
            if request.verb not in self._operations.calls:
                raise self._unknown(request.verb)
            line = protocol.encode_ok(request.id, await self._operations.call(request.verb, request.args))
        except Exception as error:
            line = protocol.encode_error(request.id, _as_ours(error, request))
        await client.send(line)
        return True

    async def _stream(self, client: _Connection, request: Request) -> None:
        try:
            async with contextlib.aclosing(self._operations.stream(request.verb, request.args)) as events:
                async for event in events:
                    await client.send(protocol.encode_event(request.id, event))
            line = protocol.encode_end(request.id)
        except (OSError, TimeoutError):
            return  # the client went, or does not read
        except Exception as error:
            line = protocol.encode_error(request.id, _as_ours(error, request))
        await client.send(line)

    def _has_room_for(self, stream: str) -> bool:
        return self._streaming[stream] < MAX_STREAMS and self._streaming.total() < MAX_ALL_STREAMS

    def _unknown(self, verb: str) -> ControlError:
        verbs = sorted({*self._operations.calls, *self._operations.streams})
        close = closest(verb, verbs)
        known = "choose one of: " + ", ".join(verbs)
        return ControlError(
            f"the daemon knows no verb {verb!r}", hint=f"did you mean {close!r}? {known}" if close else known
        )


class _Connection:
    """Connection of a client: lines in and out, with a limit on every wait."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        self._reader = reader
        self._writer = writer
        self._timeout = timeout
        self.silent_since: float | None = time.monotonic()  # None while a request is being answered
        # Sending waits until the kernel has the whole line, so that at most one answer is kept for a client.
        writer.transport.set_write_buffer_limits(high=0)

    async def next(self, idle: float) -> Request | None:
        """The next request; None if the client has left, even in the middle of a line."""
        self.silent_since = time.monotonic()
        try:
            async with asyncio.timeout(idle):
                line = await self._reader.readuntil(b"\n")
            self.silent_since = None
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            raise ControlError(
                f"the request is longer than {protocol.MAX_REQUEST} bytes", hint="end every request with a newline"
            ) from None
        return protocol.decode_request(line)

    def send_now(self, line: bytes) -> None:
        """Send as much of a line as the client reads at once."""
        self._writer.write(line)

    async def send(self, line: bytes) -> None:
        """Send a line. Raises TimeoutError if the client does not read."""
        self._writer.write(line)
        async with asyncio.timeout(self._timeout):
            await self._writer.drain()

    async def send_reason(self, error: ControlError) -> None:
        """Send the reason of the coming disconnection, if the client still reads."""
        with contextlib.suppress(OSError, TimeoutError):
            await self.send(protocol.encode_error(None, error))

    async def while_there(self, stream: Coroutine[None, None, None]) -> None:
        """Run a coroutine to the end, or until the client sends a line or leaves."""
        streaming = asyncio.ensure_future(stream)
        leaving = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            streaming.cancel()
            leaving.cancel()
            await asyncio.gather(streaming, leaving, return_exceptions=True)

    def peer(self) -> str:
        """Return a description of the peer, as known to the kernel."""
        credentials = self._writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("iII", credentials)
        # In a sandbox with its own users (PrivateUsers=), all unknown users have one number.
        return f"{'somebody' if uid == _OVERFLOW_USER else f'user {uid}'}, process {pid}"

    def close(self) -> None:
        """Close at once: pending data have been handed to the kernel, or are given up."""
        self._writer.transport.abort()


_TOO_MANY = ControlError(
    f"{MAX_CONNECTIONS} clients are connected, which is the limit",
    hint="close a few, or try again in a minute",
    retryable=True,
)


_MADE_ROOM = ControlError(
    f"{MAX_CONNECTIONS} clients were connected, and this client was silent for longest",
    hint="ask again",
    retryable=True,
)


def _too_many_streams(verb: str, number: int) -> ControlError:
    what = f"{MAX_STREAMS} clients have a stream of {verb!r}"
    return ControlError(
        f"{what if number >= MAX_STREAMS else f'{MAX_ALL_STREAMS} clients have streams'}, which is the limit",
        hint="close one of them, or try again in a minute",
        retryable=True,
    )


def _as_ours(error: Exception, request: Request) -> EdgedError:
    if isinstance(error, EdgedError):
        return error
    log.error("the verb %r failed", request.verb, exc_info=error)
    return ControlError(f"the daemon failed to answer: {error!r}", hint="this is a fault of edged; its log says more")
