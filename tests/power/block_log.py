"""Power cuts on a real file system: a block device that logs all writes, and all states that a cut may leave.

    ext4 -> loop device -> a file in a FUSE file system of the tests -> image, and log

A disk has a cache. Flushed data survive a cut; of data written since, any part may survive, in any order, block by
block. `cuts` reads the log and yields the possible states at every place in the log.

Needs root, loop devices and FUSE: see `missing`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[2]
BLOCK = 4096
"""Unit of atomic writes of a disk, and the block size of the file system."""

IMAGE_BYTES = 16 << 20
OPTIONS = "noatime,noauto_da_alloc"
"""Mount options that turn off the kernel's own guesses at missing syncs."""

CLONE_NEWNS = 0x20000

_HEAD = struct.Struct("<cQI")
_KINDS = {b"W": "write", b"F": "flush", b"M": "mark"}

Kind = Literal["write", "flush", "mark"]


class Entry(NamedTuple):
    """Entry of the log: `data` written at an offset, a flush, or a mark with its text."""

    kind: Kind
    offset: int
    data: bytes


class Cut(NamedTuple):
    """Possible state after a cut: blocks on top of the image, and the `marks` set before."""

    marks: tuple[str, ...]
    blocks: dict[int, bytes]


def missing() -> str:
    """Return the requirements that this machine lacks, or ""."""
    if os.geteuid() != 0:
        return "this needs root"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"there is no {device} here"
    if ctypes.util.find_library("fuse3") is None and ctypes.util.find_library("fuse") is None:
        return "libfuse is not installed (the package fuse3 has it)"
    return ""


class LoggedDisk:
    """New ext4 on a device with a log, mounted at `mount` inside the `with` block.

    `image` is the state at the call of `begin`, and `log` holds the later entries.
    """

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "logged"
        self.image = folder / "image"
        self.log: list[Entry] = []
        self._live, self._file, self._fuse = folder / "live", folder / "log", folder / "fuse"
        self._stack = ExitStack()

    def __enter__(self) -> LoggedDisk:
        ext4(self._live, IMAGE_BYTES, "-b", BLOCK, "-J", "size=4")
        shutil.copy(self._live, self.image)
        with self._stack as stack:
            stack.enter_context(_served(self._fuse, self._live, self._file))
            stack.enter_context(mounted(self._fuse / "disk", self.mount))
            self._stack = stack.pop_all()
        return self

    def begin(self) -> None:
        """Take the present state as durable, and begin the log."""
        _run("sync", "-f", self.mount)
        self.mark("begin")

    def fail(self, on: bool = True) -> None:
        """Make the device refuse all writes, as a worn-out card does, or accept writes again."""
        self.mark("fail" if on else "heal")

    def mount_again(self) -> None:
        """Mount the file system again, as a restart of the board does.

        The mount uses another loop device, since a container started meanwhile may hold the first mount.
        """
        _run("umount", self.mount)
        device = _run("losetup", "--find", "--show", self._fuse / "disk").strip()
        _run("mount", "-t", "ext4", "-o", OPTIONS, device, self.mount)
        _run("losetup", "--detach", device)  # after the unmount

    def mark(self, text: str) -> None:
        """Log a promise, after all entries that have reached the disk."""
        (self._fuse / "mark").write_text(text)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        log = list(_entries(self._file.read_bytes()))
        began = next((at for at, entry in enumerate(log) if entry.data == b"begin"), 0)
        apply(self.image, dict(_blocks(log[:began])))
        self.log = log[began + 1 :]


def cuts(log: Sequence[Entry], chance: random.Random, subsets: int = 2) -> list[Cut]:
    """Return the possible states after cuts at all places of a log, without duplicates.

    Of the data written since the last flush, all, none, and `subsets` random parts may survive.
    """
    found: dict[int, Cut] = {}
    certain: dict[int, bytes] = {}
    pending: list[tuple[int, bytes]] = []
    marks: tuple[str, ...] = ()
    for entry in log:
        if entry.kind == "mark":
            marks += (entry.data.decode(),)
        elif entry.kind == "flush":
            certain |= dict(pending)
            pending.clear()
        else:
            pending += _blocks([entry])
        parts = [pending, [], *([each for each in pending if chance.random() < 0.5] for _ in range(subsets))]
        for part in parts:
            cut = Cut(marks, {**certain, **dict(part)})
            found.setdefault(hash((marks, frozenset(cut.blocks.items()))), cut)
    return list(found.values())


def apply(image: Path, blocks: dict[int, bytes]) -> None:
    """Write blocks to an image."""
    with image.open("r+b") as file:
        for offset, data in blocks.items():
            file.seek(offset)
            file.write(data)


def ext4(image: Path, size: int, *options: object) -> Path:
    """Make an image with a new ext4 of `size` bytes."""
    image.touch()
    os.truncate(image, size)
    _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", *options, image)
    return image


@contextmanager
def mounted(image: Path, folder: Path, options: str = OPTIONS) -> Iterator[Path]:
    """The ext4 in an image, seen by this thread and the later children of it alone."""
    _leave_shared_mounts()
    folder.mkdir(exist_ok=True)
    _mount(image, folder, options)
    try:
        yield folder
    finally:
        _run("umount", folder)


@cache
def _leave_shared_mounts() -> None:
    """Take a mount namespace of our own. A container started meanwhile would copy our mounts otherwise, and keep the
    file system mounted after the unmount.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _run("mount", "--make-rprivate", "/")


def _mount(image: Path, folder: Path, options: str) -> None:
    _run("mount", "-t", "ext4", "-o", f"loop,{options}", image, folder)


def check(image: Path) -> None:
    """Check an unmounted ext4. Raises CalledProcessError for any fault."""
    _run("e2fsck", "-fn", image)


def _run(*command: object) -> str:
    """Run a command and return the output. Raises RuntimeError."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def _entries(data: bytes) -> Iterator[Entry]:
    place = 0
    while place < len(data):
        kind, offset, length = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        yield Entry(_KINDS[kind], offset, data[place : place + length])
        place += length


def _blocks(log: Sequence[Entry]) -> Iterator[tuple[int, bytes]]:
    for entry in log:
        if entry.kind == "write":
            for start in range(0, len(entry.data), BLOCK):
                yield entry.offset + start, entry.data[start : start + BLOCK]


# The device is a process of its own, since no process can serve a file system while waiting for it


@contextmanager
def _served(folder: Path, image: Path, log: Path) -> Iterator[None]:
    _leave_shared_mounts()
    folder.mkdir()
    server = subprocess.Popen([sys.executable, "-m", "tests.power.block_log", folder, image, log], cwd=ROOT)
    until = time.monotonic() + 120
    try:
        while not (folder / "disk").exists():
            assert server.poll() is None, "the FUSE file system does not start"
            assert time.monotonic() < until, "the FUSE file system hangs"
            time.sleep(0.01)
        yield
    finally:
        while server.poll() is None and time.monotonic() < until + 20:
            with suppress(RuntimeError):  # a loop device may be released a moment later
                _run("umount", folder)
            time.sleep(0.01)
        server.kill()
        server.wait()


def main(folder: str, image: str, log: str) -> None:
    """Serve the files `disk` and `mark` in a folder until the unmount."""
    from mfusepy import FUSE, FuseOSError, Operations

    class Device(Operations):  # type: ignore[misc]
        use_ns = True

        def __init__(self) -> None:
            self.image = os.open(image, os.O_RDWR)
            self.log = Path(log).open("wb", buffering=0)  # noqa: SIM115
            self.failing = False

        def note(self, kind: bytes, offset: int = 0, data: bytes = b"") -> None:
            self.log.write(_HEAD.pack(kind, offset, len(data)) + data)

        def refuse_if_failing(self) -> None:
            if self.failing:
                raise FuseOSError(errno.EIO)

        def getattr(self, path, fh=None):
            match path:
                case "/":
                    return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
                case "/disk":
                    size = os.fstat(self.image).st_size
                    return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}
                case "/mark":
                    return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": 0}
            raise FuseOSError(errno.ENOENT)

        def readdir(self, path, fh):
            return [".", "..", "disk", "mark"]

        def open(self, path, flags):
            return 0

        def truncate(self, path, length, fh=None):
            return 0

        def read(self, path, size, offset, fh):
            return os.pread(self.image, size, offset)

        def write(self, path, data, offset, fh):
            if path == "/mark":
                self.note(b"M", 0, bytes(data))
                self.failing = {b"fail": True, b"heal": False}.get(bytes(data), self.failing)
                return len(data)
            self.refuse_if_failing()
            self.note(b"W", offset, bytes(data))
            return os.pwrite(self.image, data, offset)

        def fsync(self, path, datasync, fh):
            self.refuse_if_failing()
            self.note(b"F")
            return 0

        def flush(self, path, fh):
            return 0

        def fallocate(self, path, mode, offset, length, fh):
            raise FuseOSError(errno.EOPNOTSUPP)

    FUSE(Device(), folder, foreground=True, nothreads=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
