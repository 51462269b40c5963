"""A whole virtual machine with kernel, page cache and disk, for real power cuts.

The machine is emulated, by default to the last instruction, which works everywhere; EDGED_VM_ACCEL=kvm is faster where
available. The disk has a volatile cache of unlimited size: a cut loses all data not yet written by the guest, and all
data written since the last flush. To this end the machine runs on a copy of `image`, QEMU logs every write and flush,
and after a cut the log is replayed on `image` up to the last flush.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
from threading import Condition, Thread

from tests.container import Layer, root_of

PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "e2fsprogs", "initramfs-tools", "linux-image-cloud-amd64"),
    *("python3", "python3-numpy", "python3-serial", "python3-systemd", "openssh-client"),
)
ACCEL = os.environ.get("EDGED_VM_ACCEL", "tcg")
IMAGE_BYTES = 1 << 30
NEVER = 1 << 60
"""Number of writes after which the log counts writes without a flush: never."""
DISCARDED = 4
"""Flag, in the log format of the kernel's device mapper, of blocks with undefined content from then on."""
HOST = "10.0.2.2"
"""Address, for the guest, of the host's loopback."""

NETWORK = "[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\n"
# Text written to an end of a virtual serial port arrives at the other end.
SHELL = """
[Service]
Type=exec
ExecStart=/bin/sh -c 'exec <>/dev/virtio-ports/shell >&0 2>&1; echo here; exec /bin/sh'
[Unit]
BindsTo=dev-virtio\\x2dports-shell.device
After=dev-virtio\\x2dports-shell.device
[Install]
WantedBy=multi-user.target
"""
WATCH = """
[Service]
ExecStart=/bin/sh -c 'exec edgectl --json watch >/dev/virtio-ports/watch'
Restart=always
[Unit]
After=edged.service
StartLimitIntervalSec=0
[Install]
WantedBy=multi-user.target
"""
UNITS = {"test-shell.service": SHELL, "test-watch.service": WATCH}


def why_not():
    """Return the reason why no machine can be made here, or ""."""
    if os.geteuid() != 0:
        return "only root may make the file system of a machine"
    missing = [tool for tool in ("qemu-system-x86_64", "mmdebstrap", "mkfs.ext4") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


class Machine:
    """Machine with an installed package and further files, by path.

    `boot`, `run` commands inside, `cut_power`. `watched` is the output of `edgectl watch` in the machine.
    """

    def __init__(self, folder, package, suite, files):
        self.image = folder / "disk.img"
        self.watched = []
        self._folder = folder
        self._disk, self._log = folder / "running.img", folder / "writes.log"
        self._more = Condition()
        self._root = root_of(suite, PACKAGES)
        layer = Layer(folder / "files", self._root)
        try:
            _install(layer, package, files)
            with self.image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            subprocess.run(["mkfs.ext4", "-q", "-d", layer.root, self.image], check=True)
        finally:
            layer.close()

    def boot(self):
        """Switch the machine on, and wait for a shell."""
        (kernel,), (initrd,) = self._root.glob("boot/vmlinuz-*"), self._root.glob("boot/initrd.img-*")
        disk, log = self._disk, self._log
        subprocess.run(["cp", "--sparse=always", self.image, disk], check=True)
        log.write_bytes(b"")
        command = [
            *("qemu-system-x86_64", "-M", "q35", "-accel", ACCEL, "-cpu", "max", "-smp", "2", "-m", "768"),
            *("-display", "none", "-no-reboot", "-serial", f"file:{self._folder / 'console.log'}"),
            *("-kernel", kernel, "-initrd", initrd, "-append", "root=/dev/vda rw console=ttyS0 panic=-1"),
            *("-blockdev", f"driver=file,node-name=disk,filename={disk}"),
            *("-blockdev", f"driver=file,node-name=log,filename={log}"),
            *("-blockdev", f"driver=blklogwrites,node-name=logged,file=disk,log=log,log-super-update-interval={NEVER}"),
            *("-device", "virtio-blk-pci,drive=logged"),
            *("-nic", "user,model=virtio-net-pci", "-device", "virtio-serial"),
        ]
        ends = {name: self._folder / name for name in ("shell", "watch")}
        with _port(ends["shell"]) as shell, _port(ends["watch"]) as watch:
            for name, path in ends.items():
                command += ["-chardev", f"socket,id={name},path={path}"]
                command += ["-device", f"virtserialport,chardev={name},name={name}"]
            self._process = subprocess.Popen(command)
            self._shell = shell.accept()[0].makefile("rw")
            self._listener = Thread(target=self._listen, args=[watch.accept()[0].makefile()])
        self._listener.start()
        assert self._shell.readline() == "here\n", (self._folder / "console.log").read_text(errors="replace")

    def run(self, command):
        """Run a command that succeeds in the machine, and return the output. Error output goes to the console."""
        self._shell.write(f"{{ {command}; }} 2>/dev/console </dev/null; code=$?; echo; echo done $code\n")
        self._shell.flush()
        said = []
        while not (line := self._shell.readline()).startswith("done "):
            assert line, "the machine is no more"
            said.append(line)
        text = "".join(said)[:-1]
        assert line == "done 0\n", f"{command}: {line}{text}"
        return text

    def await_watched(self, enough, patience=120):
        """Wait until `enough` accepts the watched output."""
        with self._more:
            assert self._more.wait_for(lambda: enough(self.watched), patience), f"{len(self.watched)} results"

    def cut_power(self):
        """Cut the power of machine and disk."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        _replay(self._log, self.image)

    def close(self):
        """Cut the power, and remove the large disk."""
        self._process.kill()
        self._process.wait()
        for file in (self.image, self._disk, self._log):
            file.unlink()

    def _listen(self, port):
        for line in port:
            if line.endswith("}\n"):  # a cut tears the last line
                with self._more:
                    self.watched.append(json.loads(line))
                    self._more.notify_all()


def _install(layer, package, files):
    shutil.copy(package, layer.root / "root" / package.name)
    install = ["chroot", layer.root, "dpkg", "--install", f"/root/{package.name}"]
    subprocess.run(install, check=True, capture_output=True)
    (layer.root / "root" / package.name).unlink()
    units = {f"/etc/systemd/system/{name}": text for name, text in UNITS.items()}
    for path, text in {"/etc/systemd/network/80-ether.network": NETWORK, **units, **files}.items():
        layer.write(path, text)
    enable = ["systemctl", f"--root={layer.root}", "enable", "systemd-networkd", *UNITS]
    subprocess.run(enable, check=True, capture_output=True)


def _replay(log, image):
    """Write flushed data to the image: QEMU counts an entry once a later flush has been logged."""
    with log.open("rb") as entries, image.open("r+b") as disk:
        _magic, _version, count, unit = struct.unpack("<QQQL", entries.read(28))
        assert count, "the machine has flushed nothing"
        place = unit
        for _ in range(count):
            entries.seek(place)
            sector, sectors, flags, _ = struct.unpack("<4Q", entries.read(32))
            place += unit
            if sectors and not flags & DISCARDED:
                entries.seek(place)
                disk.seek(sector * unit)
                disk.write(entries.read(sectors * unit))
                place += sectors * unit


def _port(path):
    """Return the address for a serial port of the machine."""
    path.unlink(missing_ok=True)
    port = socket.socket(socket.AF_UNIX)
    port.bind(str(path))
    port.listen()
    port.settimeout(120)
    return port
