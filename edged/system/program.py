"""A foreign program as a child process: output, the last lines of error output, and a certain end.

A single thread uses a program. No call waits for a hanging program longer than stated.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from edged.core.errors import DeviceError
from edged.system.child import printable, start

TERM_SECONDS = 1.0
"""Time between SIGTERM and SIGKILL."""

_KILL_SECONDS = 5.0
_PIPE = 1 << 20
_PIECE = 256 << 10
_MOST_PIECES = 64
_TAIL = 2048
_SHOWN_LINES = 3
_SHOWN = 300
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
"""Address in memory, as in messages of ffmpeg: a reason must not change from run to run."""


class Program:
    """A running program. `words` are path or name, and arguments; `given` is the standard input.

    `secrets` are never shown.

    Raises:
        DeviceError: the program cannot be started; `remedy` is for a missing program.
    """

    def __init__(self, words: Sequence[str], *, remedy: str, given: bytes = b"", secrets: Sequence[str] = ()) -> None:
        self.name = Path(words[0]).name
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._tail = b""
        self._closed = False
        self._end: DeviceError | None = None
        try:
            self._child = start(words, given)
        except FileNotFoundError as error:
            raise DeviceError(f"the program {words[0]} is not installed", hint=remedy, retryable=True) from error
        except OSError as error:
            raise DeviceError(
                f"the program {words[0]} cannot be started: {error.strerror}",
                hint="check the program's permissions, and the memory of the board",
                retryable=True,
            ) from error
        self._arrival = select.poll()
        for pipe in (self._child.stdout, self._child.stderr):
            os.set_blocking(pipe, False)
            self._arrival.register(pipe, select.POLLIN)
        with suppress(OSError):  # more than the user may have
            fcntl.fcntl(self._child.stdout, fcntl.F_SETPIPE_SZ, _PIPE)

    def output(self, pause: float) -> Iterator[bytes]:
        """Yield the output arrived, or arriving within `pause` seconds, up to a limit.

        Raises:
            DeviceError: the program has ended, or has closed the output; again with each further call.
        """
        if self._end is not None:
            raise self._end
        ready = {pipe for pipe, _ in self._arrival.poll(pause * 1000)}
        if self._child.stderr in ready:
            self._take_errors()
        if self._child.stdout in ready:
            for _ in range(_MOST_PIECES):
                try:
                    piece = os.read(self._child.stdout, _PIECE)
                except BlockingIOError:
                    return
                if not piece:
                    self._end = self._ended()
                    raise self._end
                yield piece

    def failure(self, what: str) -> DeviceError:
        """Return an error about the program, with the last lines of error output."""
        said = self._said()
        return DeviceError(
            f"{self.name} {what}{': ' if said else ''}{said}",
            hint="check the options of the source; run the program by hand to see all messages",
            retryable=True,
        )

    def close(self) -> None:
        """End the program and all descendants: ask, and then kill."""
        if self._closed:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGTERM)
        self._wait(TERM_SECONDS)
        self._finish()

    def _ended(self) -> DeviceError:
        if not self._wait(TERM_SECONDS):
            return self.failure("has closed its output")
        with suppress(OSError):
            self._take_errors()
        status = self._finish()
        if status is None or status >= 0:
            return self.failure(f"has ended with status {status}")
        return self.failure(f"was ended by {signal.Signals(-status).name}")

    def _finish(self) -> int | None:
        """Kill all that is left, and return the exit status."""
        self._closed = True
        self._child.kill()
        self._wait(_KILL_SECONDS)
        return self._child.close()

    def _wait(self, seconds: float) -> bool:
        """Wait for the end of the program, and return True if ended."""
        return bool(select.select([self._child.ended], [], [], seconds)[0])

    def _take_errors(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._child.stderr, _PIECE)
            if not data:
                with suppress(KeyError):  # read to the end before
                    self._arrival.unregister(self._child.stderr)
            self._tail = (self._tail + data)[-_TAIL:]

    def _said(self) -> str:
        text = _ADDRESS.sub("", printable(self._tail))
        for secret in self._secrets:
            text = text.replace(secret, "***")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "; ".join(lines[-_SHOWN_LINES:])[-_SHOWN:]
