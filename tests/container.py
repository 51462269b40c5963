"""A board with a real systemd as its first process: a Debian root file system, booted by systemd-nspawn.

Root file systems are built once, by mmdebstrap, and kept below build/roots; each container works on a copy-on-write
layer above one, so that it starts pristine and may be broken. Its network is its own, with nothing in it but itself.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

ROOTS = Path(__file__).parents[1] / "build" / "roots"
BOOT_SECONDS = 120
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "procps", "sudo", "openssh-client", "mosquitto", "mosquitto-clients"),
    *("python3", "python3-numpy", "python3-serial", "python3-systemd", "python3-paho-mqtt"),
)
"""What is there before the package under test is: a broker, and what the package depends on, as there is no network."""


def why_not():
    """Why no container can be booted here, "" if one can."""
    if os.geteuid() != 0:
        return "only root may boot a container"
    missing = [tool for tool in ("systemd-nspawn", "mmdebstrap") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


def root_of(suite, packages=PACKAGES, *options):
    """A root file system of a Debian suite, built unless it is there already; other packages or options are another.

    The options are mmdebstrap's. Nothing may be written to it: lay something above it.
    """
    mark = hashlib.sha256(" ".join((suite, *packages, *options)).encode()).hexdigest()[:12]
    root = ROOTS / f"{suite}-{mark}"
    ROOTS.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be at it
        if not root.is_dir():
            _build(root, suite, packages, options)
    return root


def _build(root, suite, packages, options):
    building = root.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    include = f"--include={','.join(packages)}"
    command = ["mmdebstrap", "--quiet", "--variant=apt", include, *options, suite, str(building)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        shutil.rmtree(building, ignore_errors=True)
        pytest.fail(f"the root file system of {suite} could not be built: {done.stderr[-2000:]}")
    building.rename(root)


class Layer:
    """A copy-on-write `layer` in `folder`, above others, the topmost first: all of them together are its `root`."""

    def __init__(self, folder, *below):
        self.root = folder / "root"
        self.layer = folder / "layer"
        for each in (self.root, self.layer, folder / "work"):
            each.mkdir(parents=True)
        options = f"lowerdir={':'.join(map(str, below))},upperdir={self.layer},workdir={folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)

    def write(self, path, text):
        """A file in it, of an absolute path."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def close(self):
        """Take it from where all of them are together; the layer stays."""
        subprocess.run(["umount", self.root], check=True)


class Container(Layer):
    """A container on a layer of its own: `boot` it, `run` things in it, `power_off` or `cut_power`."""

    def __init__(self, folder, *below):
        super().__init__(folder, *below)
        self.name = folder.name
        self._log = folder / "console.log"
        self._process = None
        self._leader = None

    def boot(self, *options):
        """Start it, and wait until its systemd says that all is up."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self._log.open("ab") as log:
            address = f"\0edged-test-{os.getpid()}-{self.name}"
            told.bind(address)
            told.settimeout(BOOT_SECONDS)
            self._process = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--notify-ready=yes"),
                    *(f"--directory={self.root}", f"--machine={self.name}", "--private-network", "--console=pipe"),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": f"@{address[1:]}"},
                start_new_session=True,
            )
            said = {}
            while said.get("READY") != "1":
                said |= dict(line.split("=", 1) for line in told.recv(4096).decode().splitlines())
            self._leader = int(said["X_NSPAWN_LEADER_PID"])
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def run(self, *command, check=True, text=None, timeout=120):
        """Run something in it; what it said. `check` has anything but success fail the test."""
        inside = [
            "nsenter",
            f"--target={self._leader}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "--",
        ]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        done = subprocess.run(
            [*inside, *command], input=text, capture_output=True, text=True, timeout=timeout, env=environment
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def power_off(self):
        """Shut it down, and wait for it."""
        os.kill(self._leader, signal.SIGRTMIN + 4)  # as systemd(1) has it: start poweroff.target
        self._process.wait(BOOT_SECONDS)

    def cut_power(self):
        """End all of it at once; what it had not written to its files is still there: the kernel is ours."""
        os.kill(self._leader, signal.SIGKILL)
        self._process.wait(BOOT_SECONDS)

    def close(self):
        """End it and take its layer away."""
        if self._process is not None and self._process.poll() is None:
            self.cut_power()
        super().close()
