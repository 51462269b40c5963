"""A board with a real systemd as the first process: a Debian root file system, booted by systemd-nspawn.

Root file systems are built once, by mmdebstrap, and kept below build/roots; each container works on a copy-on-write
layer above a root, and therefore starts pristine and may be broken. A container has a network of its own, without any
other host.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

ROOTS = Path(__file__).parents[1] / "build" / "roots"
BOOT_SECONDS = 120
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "procps", "sudo", "openssh-client", "mosquitto", "mosquitto-clients"),
    *("python3", "python3-numpy", "python3-serial", "python3-systemd", "python3-paho-mqtt"),
)
"""Packages present before the package under test: a broker and the dependencies, since the container has no network."""


def why_not():
    """Return the reason why no container can be booted here, or ""."""
    if os.geteuid() != 0:
        return "only root may boot a container"
    missing = [tool for tool in ("systemd-nspawn", "mmdebstrap") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


def root_of(suite, packages=PACKAGES, *options):
    """Return a root file system of a Debian suite, built on first use for each set of packages and options.

    The options are mmdebstrap's. The root must not be written to: put a layer above.

    Raises:
        RuntimeError: mmdebstrap has failed, for want of a mirror or of rights.
    """
    mark = hashlib.sha256(" ".join((suite, *packages, *options)).encode()).hexdigest()[:12]
    root = ROOTS / f"{suite}-{mark}"
    ROOTS.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be building the root
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
        raise RuntimeError(f"the root file system of {suite} cannot be built: {done.stderr[-2000:].strip()}")
    building.rename(root)


class Layer:
    """Copy-on-write `layer` in `folder`, above others, the topmost first: `root` is the union of all."""

    def __init__(self, folder, *below):
        self.root = folder / "root"
        self.layer = folder / "layer"
        for each in (self.root, self.layer, folder / "work"):
            each.mkdir(parents=True)
        options = f"lowerdir={':'.join(map(str, below))},upperdir={self.layer},workdir={folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)

    def write(self, path, text):
        """Write a file with an absolute path."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def close(self):
        """Unmount the union; the layer stays."""
        subprocess.run(["umount", self.root], check=True)


class Container(Layer):
    """Container on a layer of its own: `boot`, `run` commands inside, `power_off` or `cut_power`."""

    def __init__(self, folder, *below):
        super().__init__(folder, *below)
        self.name = folder.name
        self._log = folder / "console.log"
        self._process = None
        self._leader = None

    def boot(self, *options):
        """Start the container, and wait until systemd has started all units."""
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
        """Run a command in the container and return the output; with `check`, failure fails the test."""
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
        """Shut down, and wait for the end."""
        os.kill(self._leader, signal.SIGRTMIN + 4)  # documented in systemd(1): start poweroff.target
        self._process.wait(BOOT_SECONDS)

    def cut_power(self):
        """End all processes at once; written data survive, since the kernel is the test machine's."""
        os.kill(self._leader, signal.SIGKILL)
        self._process.wait(BOOT_SECONDS)

    def close(self):
        """End the container and remove the layer."""
        if self._process is not None and self._process.poll() is None:
            self.cut_power()
        super().close()
