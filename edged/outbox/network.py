"""State of the network, as known to the kernel: changes of links, addresses and routes, and reachable peers.

A board should not wait for a timer after the network is back; and a connection from an address the board has lost is
dead, although no packet will say so.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from typing import Any

ATTEMPT_SECONDS = 0.6
"""Time between two connection attempts to a silent peer."""

PROBE_SECONDS = 0.5
"""Time between two probes of a silent broker while messages wait."""

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links; addresses and routes of IPv4 and of IPv6


class Network:
    """Reports changes of the network; none if the kernel does not permit a netlink socket."""

    def __init__(self) -> None:
        try:
            flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket: socket.socket | None = socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket = None

    def fileno(self) -> int | None:
        """Return a descriptor to poll for reading, or None."""
        return None if self._socket is None else self._socket.fileno()

    def changed(self) -> bool:
        """Return True if the network has changed since the last call."""
        changed = False
        while self._socket is not None:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:  # ENOBUFS: too many changes to report each
                if error.errno != errno.ENOBUFS:
                    break
            changed = True
        return changed


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """Connect like socket.create_connection, to a peer perhaps available only later within these seconds.

    The kernel repeats a lost packet after one second, then two, then four. `connect` makes a new attempt every
    ATTEMPT_SECONDS, so that a returning peer is found quickly; the first attempt answered is the connection.

    Raises:
        OSError: no address answers.
    """
    name = host.encode() if host.isascii() else host  # str would import the tables of Unicode, 1 MB
    addresses = deque(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
    deadline = time.monotonic() + seconds
    waiting: dict[int, tuple[socket.socket, Any]] = {}
    poll = select.poll()
    error: OSError = TimeoutError(errno.ETIMEDOUT, "timed out")
    next_attempt = 0.0
    try:
        while addresses and (now := time.monotonic()) < deadline:
            if now >= next_attempt:
                next_attempt = now + ATTEMPT_SECONDS
                try:
                    sock = _attempt(addresses[0])
                except OSError as refusal:
                    error, next_attempt = refusal, 0.0
                    addresses.popleft()
                    continue
                waiting[sock.fileno()] = sock, addresses[0]
                poll.register(sock, select.POLLOUT)
                addresses.rotate()
            for descriptor, _ in poll.poll((min(next_attempt, deadline) - now) * 1000):
                poll.unregister(descriptor)
                sock, address = waiting.pop(descriptor)
                if not (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    sock.settimeout(seconds)
                    return sock
                sock.close()
                error, next_attempt = OSError(code, os.strerror(code)), 0.0
                if address in addresses:
                    addresses.remove(address)
        raise error
    finally:
        for sock, _ in waiting.values():
            sock.close()


def _attempt(address: Any) -> socket.socket:
    """Return a connecting socket. Raises OSError if the attempt cannot be made."""
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    code = sock.connect_ex(where)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def reachable(address: Any, seconds: float) -> bool:
    """Return True if a server accepts a connection within so many seconds."""
    try:
        connect(address[0], address[1], seconds).close()
    except OSError:
        return False
    return True


def is_own_address(address: Any, family: int) -> bool:
    """Return True if this machine still has an address."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address[0], 0, *address[2:]))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
