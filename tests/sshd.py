"""A real OpenSSH server on a loopback port, with keys of its own, and the `ssh` command to connect."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.signing import make_key, public

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Sshd:
    """Server that logs in the user who runs the tests by `key`, and allows only a forced command for other keys.

    `forced_key` may install bundles, `downgrading_key` older versions too, and `greeting_key` only gets a greeting.
    """

    def __init__(self, folder: Path, runtime_dir: Path) -> None:
        if SSHD is None or shutil.which("ssh") is None:
            pytest.skip("OpenSSH is not installed")
        if os.getuid() == 0:  # made at boot on a real system
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.user = getpass.getuser()
        self.key, self.forced_key, self._host_key = (make_key(folder, name) for name in ("key", "forced", "host"))
        self.downgrading_key, self.greeting_key = (make_key(folder, name) for name in ("downgrading", "greeting"))
        self._commands = folder / "bin"
        self._install_edgectl(runtime_dir)
        self._write_files()

    @property
    def command(self) -> str:
        """Return the forced command of a device."""
        return f"{self._commands}/edgectl receive --stdio"

    def ssh(self, port: int, *, key: Path | None = None) -> str:
        """Return the `--ssh` option for this server behind a port."""
        options = {
            "Port": port,
            "IdentityFile": key or self.key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": "board",
        }
        words = ["ssh", "-F", "none", *(f"-o{name}={value}" for name, value in options.items())]
        return shlex.join(words)

    @property
    def host(self) -> str:
        return f"{self.user}@127.0.0.1"

    def __enter__(self) -> Sshd:
        self.port = _free_port()
        assert SSHD is not None
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config"), "-p", str(self.port)]
        self._process = subprocess.Popen(command, stderr=(self.folder / "log").open("w"))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            assert self._process.poll() is None, self.log()
            time.sleep(0.05)
        raise AssertionError(f"sshd does not start: {self.log()}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(120)
        print(self.log())  # pytest shows the log of a failed test

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def _install_edgectl(self, runtime_dir: Path) -> None:
        """Put an `edgectl` for this daemon on the PATH of users who log in."""
        self._commands.mkdir()
        script = self._commands / "edgectl"
        code = "import sys; from edged.ctl.main import main; sys.exit(main())"
        environ = f"EDGED_RUNTIME_DIR={shlex.quote(str(runtime_dir))} PYTHONPATH={shlex.quote(os.getcwd())}"  # noqa: PTH109
        script.write_text(f'#!/bin/sh\n{environ} exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
        script.chmod(0o755)

    def _write_files(self) -> None:
        forced = {
            self.forced_key: self.command,
            self.downgrading_key: f"{self.command} --allow-downgrade",
            self.greeting_key: "echo Welcome to board!",
        }
        allowed = [public(self.key), *(f'command="{does}",restrict {public(key)}' for key, does in forced.items())]
        (self.folder / "authorized_keys").write_text("\n".join([*allowed, ""]))
        (self.folder / "known_hosts").write_text(f"board {public(self._host_key)}\n")
        settings = {
            "ListenAddress": "127.0.0.1",
            "HostKey": self._host_key,
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PidFile": "none",
            "MaxStartups": "100",
            "SetEnv": f"PATH={self._commands}:/usr/local/bin:/usr/bin:/bin",
        }
        (self.folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
