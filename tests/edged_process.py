"""The real daemon as a child process, with a configuration for each test."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE
from tests.plain_client import connect


class Edged:
    """`python -m edged` in `folder`, with `config` as edged.toml. `log` grows with the output.

    `within` is a command that runs the daemon.
    """

    def __init__(self, folder: Path, config: str, *, within: Sequence[str] = (), **environ: str) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.folder = folder
        self.config = folder / "edged.toml"
        self.runtime_dir = folder / "run"
        self.state_dir = folder / "state"
        self.log: list[str] = []
        self._environ = environ
        self._within = within
        self._heard = threading.Condition()
        self.configure(config)

    def configure(self, config: str) -> None:
        """Write another configuration, read at the next SIGHUP."""
        self.config.write_text(config)

    def start(self, *arguments: str) -> None:
        """Start the daemon, and return at once; wait for progress by `wait_for_log` or a subscriber."""
        command = [*self._within, sys.executable, "-m", "edged", "--config", str(self.config)]
        command += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)]
        self.process = subprocess.Popen(
            [*command, *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, **self._environ}
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end of the daemon, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def reload(self) -> None:
        """Make the daemon read the configuration again."""
        self.process.send_signal(signal.SIGHUP)

    def call(self, verb: str, **args: Any) -> Any:
        """Call a verb over the daemon's socket."""
        return connect(str(self.runtime_dir)).call(verb, timeout=PATIENCE, **args)

    def wait_for_log(self, text: str, times: int = 1) -> str:
        """Wait until `times` lines with this text have been logged, and return the last."""

        def found() -> list[str]:
            return [line for line in self.log if text in line]

        with self._heard:
            assert self._heard.wait_for(lambda: len(found()) >= times, PATIENCE), "".join(self.log)
        return found()[times - 1]

    def __enter__(self) -> Edged:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:  # a test may be skipped before the start
            self.process.kill()
            self.process.wait()
        print("".join(self.log))  # pytest shows the log of a failed test

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.log.append(line)
                self._heard.notify_all()


class SerialPort:
    """Pseudo-terminal as a sensor; `link` is the stable name, removed by `unplug` and restored by `plug`."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.plug()

    def plug(self) -> None:
        """Put a new device behind the name."""
        self._ours, self._device = pty.openpty()
        tty.setraw(self._device)
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(os.ttyname(self._device))

    def write(self, data: bytes) -> None:
        """Send bytes."""
        while data:
            data = data[os.write(self._ours, data) :]

    def offer(self, data: bytes) -> None:
        """Say something, or nothing if the port is full, as nobody reads it."""
        room = select.poll()
        room.register(self._ours, select.POLLOUT)
        if room.poll(0):
            self.write(data)

    def wait_until_full(self) -> None:
        """Wait until the port accepts no more bytes, since no process reads."""
        room = select.poll()
        room.register(self._ours, select.POLLOUT)
        while room.poll(0):
            time.sleep(0.01)

    def unplug(self) -> None:
        """Remove the device, as by pulling the cable."""
        self.link.unlink()
        os.close(self._ours)
        os.close(self._device)
