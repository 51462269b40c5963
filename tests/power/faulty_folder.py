"""A folder on a disk that fails on command: a FUSE file system that passes on all operations until a fault is ordered.

    with FaultyFolder(tmp_path) as disk:
        disk.fault = "EIO on fsync"
        ...
        disk.fault = ""

Needs FUSE and root: see `block_log.missing`.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from functools import wraps
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHANGES = frozenset({"write", "create", "truncate", "unlink", "rename", "mkdir"})

FAULTS = {
    "ENOSPC": (CHANGES - {"unlink"}, errno.ENOSPC),
    "EROFS": (CHANGES, errno.EROFS),
    "EIO on write": (frozenset({"write"}), errno.EIO),
    "EIO on fsync": (frozenset({"fsync"}), errno.EIO),
    "hangs": (frozenset({"write", "fsync"}), 0),
}
"""Failing operations and their errors; without an error, the operation hangs until the fault ends."""


class FaultyFolder:
    """An empty folder, `mount`, while in the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "faulty"
        self._real, self._order = folder / "real", folder / "fault"

    @property
    def fault(self) -> str:
        """Return the current fault, one of FAULTS or ""."""
        return self._order.read_text()

    @fault.setter
    def fault(self, name: str) -> None:
        aside = self._order.with_suffix(".new")
        aside.write_text(name)
        aside.rename(self._order)

    def __enter__(self) -> FaultyFolder:
        self.mount.mkdir()
        self._real.mkdir()
        self.fault = ""
        command = [sys.executable, "-m", "tests.power.faulty_folder", self.mount, self._real, self._order]
        self._server = subprocess.Popen(command, cwd=ROOT)
        until = time.monotonic() + 120
        while not self.mount.is_mount():
            assert self._server.poll() is None, "the FUSE file system does not start"
            assert time.monotonic() < until, "the FUSE file system hangs"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.fault = ""
        subprocess.run(["umount", "--lazy", self.mount], check=True)
        self._server.kill()
        self._server.wait()


def main(mount: str, real: str, order: str) -> None:
    """Serve the folder `real` at `mount`, with the fault named in the file `order`."""
    from mfusepy import FUSE, FuseOSError, Operations

    def strikes(operation: str) -> int | None:
        """Return the error of an operation, 0 for a hang, or None for no fault."""
        operations, number = FAULTS.get(Path(order).read_text(), (frozenset(), 0))
        return number if operation in operations else None

    def passed_on(operation):
        """Perform an operation in the real folder, unless a fault is ordered."""

        @wraps(operation)
        def call(self, path, *args):
            while (number := strikes(operation.__name__)) == 0:
                time.sleep(0.01)
            if number:
                raise FuseOSError(number)
            return operation(self, real + path, *args)

        return call

    class Folder(Operations):  # type: ignore[misc]
        use_ns = True

        @passed_on
        def getattr(self, path, fh=None):
            found = os.lstat(path)
            plain = {key: getattr(found, key) for key in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")}
            return {**plain, **{f"st_{key}time": getattr(found, f"st_{key}time_ns") for key in "amc"}}

        @passed_on
        def readdir(self, path, fh):
            return [".", "..", *os.listdir(path)]  # noqa: PTH208

        @passed_on
        def open(self, path, flags):
            if flags & (os.O_WRONLY | os.O_RDWR) and strikes("write") == errno.EROFS:
                raise FuseOSError(errno.EROFS)
            return os.open(path, flags)

        @passed_on
        def create(self, path, mode):
            return os.open(path, os.O_RDWR | os.O_CREAT, mode)

        @passed_on
        def read(self, path, size, offset, fh):
            return os.pread(fh, size, offset)

        @passed_on
        def write(self, path, data, offset, fh):
            return os.pwrite(fh, data, offset)

        @passed_on
        def truncate(self, path, length, fh=None):
            os.truncate(path, length)

        @passed_on
        def fsync(self, path, datasync, fh):
            os.fsync(fh)

        def flush(self, path, fh):
            return 0

        def release(self, path, fh):
            os.close(fh)

        @passed_on
        def unlink(self, path):
            os.unlink(path)  # noqa: PTH108

        @passed_on
        def rename(self, path, new):
            os.rename(path, real + new)  # noqa: PTH104

        @passed_on
        def mkdir(self, path, mode):
            os.mkdir(path, mode)  # noqa: PTH102

    FUSE(Folder(), mount, foreground=True, nothreads=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
