"""A bad link: a TCP proxy on loopback that cuts, throttles, stalls and swallows, and counts the traffic.

    with FlakyProxy(server.port, cut_after=repeat(70_000)) as link:
        fetch(f"http://127.0.0.1:{link.port}/")
        assert link.down < 1.02 * size

All attributes may be changed at run time, and apply to new connections.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Iterable, Iterator

_PIECE = 16 << 10


class FlakyProxy:
    """Proxy for connections to `target`, a loopback port.

    The n-th connection is cut (reset) after the n-th number of `cut_after` bytes sent down, and lives on once the
    numbers are used up; `cut_up_after` does the same for bytes sent up. `rate` is in bytes per second, 0 for unlimited,
    and `latency` in seconds. `up` and `down` are the bytes carried, `cuts` the connections cut.
    """

    def __init__(
        self,
        target: int,
        *,
        cut_after: Iterable[int] = (),
        cut_up_after: Iterable[int] = (),
        rate: float = 0.0,
        latency: float = 0.0,
    ) -> None:
        self.rate = rate
        self.latency = latency
        self.up = self.down = self.cuts = self.connections = 0
        self.reached = threading.Event()
        """Set when a connection has been made."""
        self._target = target
        self._cut_after: dict[str, Iterator[int]] = {"down": iter(cut_after), "up": iter(cut_up_after)}
        self._refusing = False
        self._links: set[_Link] = set()

    def blackhole(self, on: bool = True) -> None:
        """Swallow all bytes from now on, both ways and silently, or carry them."""
        self._call(self._flow.clear if on else self._flow.set)

    def refuse(self, on: bool = True) -> None:
        """Reset all present and future connections."""

        def switch() -> None:
            self._refusing = on
            if on:
                self._drop()

        self._call(switch)

    def drop(self) -> None:
        """Reset all present connections."""
        self._call(self._drop)

    def listen(self, on: bool) -> None:
        """Close the port and reset all present connections, or open the port again."""

        async def switch() -> None:
            if on and not self._server.is_serving():
                self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            if not on:
                self._server.close()
                self._drop()

        asyncio.run_coroutine_threadsafe(switch(), self._loop).result(120)

    def __enter__(self) -> FlakyProxy:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(120), "the proxy does not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._over.set)
        self._thread.join(120)

    def _call(self, do: object) -> None:
        """Call a function on the proxy's own thread, and wait for the result."""
        done = threading.Event()

        def step() -> None:
            do()  # type: ignore[operator]
            done.set()

        self._loop.call_soon_threadsafe(step)
        assert done.wait(120), "the proxy hangs"

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._flow, self._over = asyncio.Event(), asyncio.Event()
        self._flow.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        ready.set()
        await self._over.wait()
        self._server.close()
        self._drop()

    def _drop(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            _reset(writer)
            return
        limits = {way: next(counts, None) for way, counts in self._cut_after.items()}
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        link = _Link(writer, far_writer)
        self._links.add(link)
        self.reached.set()
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, "up", limits["up"], link),
                self._pump(far_reader, writer, "down", limits["down"], link),
            )
        except OSError:
            pass  # an end has closed the connection
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str, limit: int | None, link: _Link
    ) -> None:
        carried = 0
        while data := await reader.read(_PIECE):
            await self._hold_up(len(data))
            data = data if limit is None else data[: limit - carried]
            writer.write(data)
            await writer.drain()
            carried += len(data)
            self._count(way, len(data))
            if carried == limit:
                self.cuts += 1
                await _delivered(writer)
                link.reset()
                return
        writer.write_eof()

    async def _hold_up(self, count: int) -> None:
        await self._flow.wait()
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.rate:
            await asyncio.sleep(count / self.rate)

    def _count(self, way: str, count: int) -> None:
        if way == "up":
            self.up += count
        else:
            self.down += count


class _Link:
    """Both halves of a connection."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection by a reset, as a dead link does; bytes in transit are lost."""
    sock = writer.get_extra_info("socket")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # closed already
    writer.transport.abort()


async def _delivered(writer: asyncio.StreamWriter) -> None:
    """Wait for a limited time until written bytes have reached the peer's kernel: tests state the place of a cut."""
    descriptor = writer.get_extra_info("socket").fileno()
    for _ in range(1000):
        if not writer.transport.get_write_buffer_size() and not _unacknowledged(descriptor):
            return
        await asyncio.sleep(0.001)


def _unacknowledged(descriptor: int) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
    return count
