"""What the kernel says of the network: that links, addresses or routes have changed, and whether a peer can be reached.

A board that gets its network back should not wait for a timer to notice, and a connection from an address that the
board has lost is dead, though no packet will ever say so.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

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


def reachable(address: Any, seconds: float) -> bool:
    """Whether somebody listens there, who answers within so many seconds."""
    try:
        socket.create_connection(address[:2], timeout=seconds).close()
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
