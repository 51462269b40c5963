"""The operator's socket: a Unix socket that serves the daemon's operations, speaking `edged.core.protocol`.

Whoever may open the socket may ask: its permissions are the access control, and they are set before anybody can
connect. Each connection is one task that takes one request at a time. Nothing a client does can grow without bound:
there are few connections, a request is at most 64 KiB, a silent client is let go after a minute, and one that does not
read its answer after ten seconds, with no more than that answer waiting for it.

Nor can clients keep an operator out: where all places are taken, the client that has been silent for longest makes
room, and streams of one verb, such as those that watch, never take all places.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import fcntl
import grp
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Coroutine
from pathlib import Path
from typing import Protocol

from edged.core import protocol
from edged.core.errors import ControlError, EdgedError
from edged.core.protocol import Args, Request

MAX_CONNECTIONS = 16

MAX_STREAMS = 12
"""So many clients at a time may have streams of the same verb."""

MAX_ALL_STREAMS = MAX_CONNECTIONS - 2
"""So many may have streams at all: there is always room for somebody who asks."""

ACCEPTED_AT_ONCE = 1
"""How many connections asyncio is to accept before it sees to those that there are.

With more, a client could have to make room before its request was read, and out of descriptors asyncio would try again
so many times for each time it tried, which soon is all it does.
"""

WAITING = 100
"""So many connections may wait to be accepted; the kernel refuses those that come then."""

_OVERFLOW_USER = 65534

log = logging.getLogger("edged.control")


class RequestHandler(Protocol):
    """What an operator can ask. Values are what JSON can hold; a verb is in `calls` or in `streams`."""

    @property
    def calls(self) -> Collection[str]:
        """Verbs answered once."""

    @property
    def streams(self) -> Collection[str]:
        """Verbs answered again and again, until the client leaves."""

    @property
    def changes(self) -> Collection[str]:
        """Those that change something: the log says who asked."""

    async def call(self, verb: str, args: Args) -> object:
        """Do it. Of `changes`, `args` say who has "asked_by". Raises EdgedError, which the client is told."""

    def stream(self, verb: str, args: Args) -> AsyncGenerator[object, None]:
        """Yield what happens. Raises EdgedError, which the client is told; closed when the client leaves."""


class Server:
    """Listens on `path` from `start` to `stop`.

    `idle` is how many seconds a client may keep silent between requests, `timeout` how many it may leave an answer
    unread. `group` names a group that owns the socket.
    """

    def __init__(
        self,
        path: Path,
        operations: RequestHandler,
        *,
        mode: int = 0o660,
        group: str | None = None,
        idle: float = 60.0,
        timeout: float = 10.0,
    ) -> None:
        self.path = path
        self._operations = operations
        self._mode = mode
        self._group = group
        self._idle = idle
        self._timeout = timeout
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._streaming: Counter[str] = Counter()
        self._open = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Listen.

        Raises:
            ControlError: another daemon has the socket, or it cannot be made.
        """
        async with contextlib.AsyncExitStack() as opened:
            listener = _claim(self.path, self._mode, self._group, opened)
            server = await asyncio.start_unix_server(
                self._accept, sock=listener, limit=protocol.MAX_REQUEST, backlog=ACCEPTED_AT_ONCE
            )
            listener.listen(WAITING)  # which asyncio takes for the same number
            opened.callback(server.close)
            self._made = self.path.stat()
            self._open = opened.pop_all()

    async def stop(self) -> None:
        """Let every client go and remove the socket. May be called twice."""
        await self._open.aclose()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def keep_listening(self) -> None:
        """Listen anew where the socket's file was deleted or replaced. Clients that are connected stay so.

        Raises:
            ControlError: as `start`.
        """
        if self._is_in_place():
            return
        log.warning("%s was deleted or replaced; it is made anew", self.path)
        await self._open.aclose()
        await self.start()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), self._made)
        except OSError:
            return False

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
        """Let go of the client that has been silent for longest; False if all have a request that is being answered."""
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
        except ControlError as error:  # it does not speak the protocol, and where its next request begins is unknown
            await client.last_words(error)
        except (OSError, TimeoutError) as error:
            log.debug("let go of a client of the control socket: %r", error)
        except Exception:
            log.exception("serving a client of the control socket failed")
        finally:
            client.close()

    async def _answer(self, client: _Connection, request: Request) -> bool:
        """Answer, and say whether the connection goes on."""
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
        close = difflib.get_close_matches(verb, verbs, n=1)
        known = "it knows " + ", ".join(verbs)
        return ControlError(
            f"the daemon knows no verb {verb!r}", hint=f"did you mean {close[0]!r}? {known}" if close else known
        )


class _Connection:
    """One client's end: lines in and out, with a limit on every wait."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        self._reader = reader
        self._writer = writer
        self._timeout = timeout
        self.silent_since: float | None = time.monotonic()  # None while a request is being answered
        # Sending waits until the kernel has everything, so that one answer at most is kept for a client.
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
        """Send a line as far as the client reads it at once."""
        self._writer.write(line)

    async def send(self, line: bytes) -> None:
        """Send a line. Raises TimeoutError if the client does not read it."""
        self._writer.write(line)
        async with asyncio.timeout(self._timeout):
            await self._writer.drain()

    async def last_words(self, error: ControlError) -> None:
        """Say why the connection is about to be closed, if the client still listens."""
        with contextlib.suppress(OSError, TimeoutError):
            await self.send(protocol.encode_error(None, error))

    async def while_there(self, stream: Coroutine[None, None, None]) -> None:
        """Run a coroutine to its end, or until the client says anything or leaves."""
        streaming = asyncio.ensure_future(stream)
        leaving = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            streaming.cancel()
            leaving.cancel()
            await asyncio.gather(streaming, leaving, return_exceptions=True)

    def peer(self) -> str:
        """Who is at the other end, as the kernel says."""
        credentials = self._writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("iII", credentials)
        # A sandbox with users of its own (PrivateUsers=) has one number for all it does not know.
        return f"{'somebody' if uid == _OVERFLOW_USER else f'user {uid}'}, process {pid}"

    def close(self) -> None:
        """Let go at once: everything the client is owed has been handed to the kernel, or is given up."""
        self._writer.transport.abort()


_TOO_MANY = ControlError(
    f"{MAX_CONNECTIONS} clients are connected, which is the limit",
    hint="close a few, or try again in a minute",
    retryable=True,
)


_MADE_ROOM = ControlError(
    f"{MAX_CONNECTIONS} clients were connected, and this one was silent for longest",
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


def _claim(path: Path, mode: int, group: str | None, opened: contextlib.AsyncExitStack) -> socket.socket:
    """A socket bound to `path`, ready to listen; `opened` undoes it.

    The lock beside it says whether a socket file that is in the way is a running daemon's or was left by one that was
    killed. Nobody can connect before it listens, so there is no moment at which the permissions are not yet right.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = opened.enter_context(path.with_name(path.name + ".lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and not path.is_socket():
            raise ControlError(f"{path} is in the way and not a socket", hint="move it, or set another path")
        path.unlink(missing_ok=True)
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        opened.callback(path.unlink, missing_ok=True)
        if group is not None and (number := grp.getgrnam(group).gr_gid) != path.stat().st_gid:
            os.chown(path, -1, number)  # which a sandbox may forbid, and the group that we run in does not need
        path.chmod(mode)
    except BlockingIOError:
        raise ControlError(
            f"another edged is running: it holds {path}", hint="stop it, or give this one its own runtime directory"
        ) from None
    except LookupError:
        raise ControlError(
            f"there is no group {group!r} to own the control socket", hint=f"create it: groupadd --system {group}"
        ) from None
    except OSError as error:
        raise ControlError(f"the control socket {path} cannot be made: {error}", hint=_remedy(error)) from error
    return listener


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "run as a user who may write there and belongs to the group, or choose another runtime directory"
    return "choose another runtime directory, with a path of less than 100 bytes on a disk that can be written"


def _as_ours(error: Exception, request: Request) -> EdgedError:
    if isinstance(error, EdgedError):
        return error
    log.error("the verb %r failed", request.verb, exc_info=error)
    return ControlError(f"the daemon failed to answer: {error!r}", hint="this is a fault of edged; its log says more")
