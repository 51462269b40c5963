"""What the kernel says of the network: that links, addresses or routes have changed, and whether a peer can be reached.

A board that gets its network back should not wait for a timer to notice, and a connection from an address that the
board has lost is dead, though no packet will ever say so.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from typing import Any

KNOCK_SECONDS = 0.6
"""How often a peer that does not answer is knocked at."""

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links; addresses and routes of IPv4 and of IPv6


class Network:
    """Hears of changes; where the kernel does not let us, there never seem to be any."""

    def __init__(self) -> None:
        try:
            flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket: socket.socket | None = socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket = None

    def fileno(self) -> int | None:
        """To be polled for reading, if there is anything to poll."""
        return None if self._socket is None else self._socket.fileno()

    def changed(self) -> bool:
        """Whether anything has changed since the last time."""
        changed = False
        while self._socket is not None:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:  # ENOBUFS: so much has changed that not all of it could be told
                if error.errno != errno.ENOBUFS:
                    break
            changed = True
        return changed


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """A connection, as by socket.create_connection, to a peer that may come to be within these seconds.

    The kernel repeats a lost packet after one second, then two, then four. Here somebody knocks all the time, so that a
    peer is not left waiting that can be reached again; the first knock that is answered is the connection.

    Raises:
        OSError: no address answers.
    """
    addresses = deque(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    deadline = time.monotonic() + seconds
    waiting: dict[int, tuple[socket.socket, Any]] = {}
    poll = select.poll()
    error: OSError = TimeoutError(errno.ETIMEDOUT, "timed out")
    next_knock = 0.0
    try:
        while addresses and (now := time.monotonic()) < deadline:
            if now >= next_knock:
                next_knock = now + KNOCK_SECONDS
                try:
                    sock = _knock(addresses[0])
                except OSError as refusal:
                    error, next_knock = refusal, 0.0
                    addresses.popleft()
                    continue
                waiting[sock.fileno()] = sock, addresses[0]
                poll.register(sock, select.POLLOUT)
                addresses.rotate()
            for descriptor, _ in poll.poll((min(next_knock, deadline) - now) * 1000):
                poll.unregister(descriptor)
                sock, address = waiting.pop(descriptor)
                if not (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    sock.settimeout(seconds)
                    return sock
                sock.close()
                error, next_knock = OSError(code, os.strerror(code)), 0.0
                if address in addresses:
                    addresses.remove(address)
        raise error
    finally:
        for sock, _ in waiting.values():
            sock.close()


def _knock(address: Any) -> socket.socket:
    """A socket that is being connected. Raises OSError if that cannot be tried."""
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    code = sock.connect_ex(where)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def reachable(address: Any, seconds: float) -> bool:
    """Whether somebody listens there, who answers within so many seconds."""
    try:
        connect(address[0], address[1], seconds).close()
    except OSError:
        return False
    return True


def is_ours(address: Any, family: int) -> bool:
    """Whether this machine still has an address."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address[0], 0, *address[2:]))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
