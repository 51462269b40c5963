"""The file of the control socket, with a lock beside the file: a second daemon cannot use the same runtime folder.

The lock tells the socket of a running daemon from the remains of a killed daemon. An open socket listens: clients of a
starting daemon wait in the kernel until the daemon accepts connections. Clients cannot connect before the socket
listens, so the permissions are always correct.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
from pathlib import Path

from edged.core.errors import ControlError

WAITING = 100
"""Number of connections waiting in the kernel until the daemon accepts; the kernel refuses more."""


class ControlSocket:
    """A listening Unix socket at `path`, from `open` to `close`, or as a context manager.

    `group` names the owning group of the socket.
    """

    def __init__(self, path: Path, *, mode: int = 0o660, group: str | None = None) -> None:
        self.path = path
        self._mode = mode
        self._group = group
        self._open = contextlib.ExitStack()
        self._listener: socket.socket | None = None

    @property
    def listener(self) -> socket.socket:
        """Return the listening socket."""
        assert self._listener is not None  # else `open` has raised
        return self._listener

    def open(self) -> None:
        """Make the file, and listen, unless the socket is open.

        Raises:
            ControlError: another daemon has the socket, or the socket cannot be made.
        """
        if self._listener is not None:
            return
        with contextlib.ExitStack() as opened:
            listener = self._claim(opened)
            listener.listen(WAITING)
            self._made = self.path.stat()
            self._listener = listener
            self._open = opened.pop_all()

    def close(self) -> None:
        """Remove the file, and let go of the lock. May be called twice."""
        self._open.close()
        self._listener = None

    def is_in_place(self) -> bool:
        """Return False after the file was deleted or replaced."""
        try:
            return os.path.samestat(self.path.stat(), self._made)
        except OSError:
            return False

    def _claim(self, opened: contextlib.ExitStack) -> socket.socket:
        """Return a bound socket; `opened` undoes the binding."""
        path, group = self.path, self._group
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
                os.chown(path, -1, number)  # a sandbox may forbid the call, which the daemon's own group does not need
            path.chmod(self._mode)
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

    def __enter__(self) -> ControlSocket:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "run as a user who may write there and belongs to the group, or choose another runtime directory"
    return "choose another runtime directory, with a path of less than 100 bytes on a disk that can be written"
