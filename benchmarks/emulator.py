"""Python programs on an emulated 64-bit ARM processor, with their instructions and system calls counted.

qemu-user runs each program above the unpacked Debian packages of a board, and a plug-in (counting.c) counts. The kernel
is the host's, and its work is not counted. Only the first run may need rights: mmdebstrap needs root or a user
namespace.
"""

from __future__ import annotations

import contextlib
import mmap
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import PATIENCE, ROOT, installed
from tests.arm_boards import PROCESSORS, root_for
from tests.debian_package import build

SUITE = "bookworm"
PROCESSOR = PROCESSORS["arm64"]
TOOLS = ("mmdebstrap", "dpkg-deb", "cc", PROCESSOR.emulator)

REST_SECONDS = 0.005


def why_not() -> str:
    """Return the reason why no program can be counted here, or ""."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    options = subprocess.run([PROCESSOR.emulator, "-help"], capture_output=True, text=True).stdout
    return "" if "-plugin" in options else f"this {PROCESSOR.emulator} takes no plug-ins; that of Debian 12 does"


def describe() -> dict[str, str]:
    """Return the version of the emulator, the processor, and the packages of the board."""
    found = shutil.which(PROCESSOR.emulator)
    said = subprocess.run([found, "-version"], capture_output=True, text=True).stdout if found else "not installed"
    return {
        "emulator": said.partition("\n")[0],
        "processor": PROCESSOR.cpu,
        "packages": f"Debian {SUITE}, {PROCESSOR.runtime}",
    }


class Counts(NamedTuple):
    """Instructions and system calls of all threads."""

    instructions: int
    calls: int


class Counter:
    """Counts of a program; the program maps the same file."""

    SIZE = 256 * 16  # as in counting.c

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(self.SIZE))
        with file.open("r+b") as opened:
            self._counts = memoryview(mmap.mmap(opened.fileno(), self.SIZE)).cast("Q")

    def read(self) -> Counts:
        """Return the counts until now."""
        return Counts(sum(self._counts[0::2]), sum(self._counts[1::2]))


class Counted(NamedTuple):
    """Running program, with pipes for standard input and output."""

    process: subprocess.Popen[str]
    counter: Counter

    def await_rest(self) -> None:
        """Wait until the threads have executed nothing for REST_SECONDS, and sleep."""
        before = None
        while before != (now := self.counter.read()) or not self._sleeps():
            before = now
            time.sleep(REST_SECONDS)

    def _sleeps(self) -> bool:
        states = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(state.read_text().rpartition(")")[2].split()[0] == "S" for state in states)


class Board:
    """Emulated board with files in a folder; its Python imports from a checkout, then from the Debian packages."""

    def __init__(self, folder: Path) -> None:
        """Unpack and compile. Raises RuntimeError if the packages of the board cannot be unpacked."""
        self.folder = folder
        self.log = folder / "log"
        package = build("arm64", SUITE)  # for the wheels inside
        subprocess.run(["dpkg-deb", "--extract", package, folder / "package"], check=True)
        self._plugin = folder / "counting.so"
        source = Path(__file__).with_name("counting.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", self._plugin, source], check=True)
        debian = root_for(package, SUITE)
        self._home = debian / "usr"
        self._interpreter = str((self._home / "bin/python3").resolve())
        self._emulator = [PROCESSOR.emulator, "-L", str(_described(debian, folder / "root")), "-cpu", PROCESSOR.cpu]
        self._python = folder / "python"  # sys.executable: children are emulated, but not counted
        self._python.write_text(f'#!/bin/sh\nexec {shlex.join(self._emulator)} -0 "$0" {self._interpreter} "$@"\n')
        self._python.chmod(0o755)

    @contextlib.contextmanager
    def python(self, *words: str, checkout: Path = ROOT) -> Iterator[Counted]:
        """Run Python with the arguments, its errors in `log`; the end of the block stops the process."""
        counts = self.folder / "counts"
        counter = Counter(counts)
        plugin = f"{self._plugin},counts={counts}"
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self._emulator, "-plugin", plugin, "-0", str(self._python), self._interpreter, *words],
                cwd=self.folder,
                env=self._environment(checkout),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            yield Counted(process, counter)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)

    def _environment(self, checkout: Path) -> dict[str, str]:
        libraries = f"/usr/lib/{PROCESSOR.triplet}"
        return {
            **installed(),
            "PYTHONPYCACHEPREFIX": str(self.folder / "compiled"),
            "PYTHONHOME": str(self._home),
            "PYTHONPATH": f"{checkout}:{self.folder / 'package/usr/lib/edged'}",
            "PYTHONNOUSERSITE": "1",
            "PYTHONHASHSEED": "0",
            "LD_LIBRARY_PATH": f"{libraries}/blas:{libraries}/lapack",  # packages that were never configured
        }


def _described(debian: Path, root: Path) -> Path:
    """Make a folder of libraries and a description of the processor, which hide the host's. Return the path."""
    root.mkdir()
    for name in ("lib", "usr"):  # no folder of the host with files of the program: SQLite refuses one that is a link
        (root / name).symlink_to(debian / name)
    for path, text in PROCESSOR.files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root
