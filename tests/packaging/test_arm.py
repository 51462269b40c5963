"""The packages for ARM on an emulated processor: the programs prove every model among the Debian packages of a board.

The test has no board and no kernel, and installs no package: the root file system consists of unpacked Debian packages
with edged's files above, and each program runs under qemu-user.
"""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from edged import __version__
from tests.arm_boards import PROCESSORS, root_for
from tests.container import Layer
from tests.debian_package import REPOSITORY, build

TOOLS = ("mmdebstrap", "dpkg-deb", "cc", "qemu-aarch64-static", "qemu-arm-static")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.wide,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the root"),
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed"),
]


LOAD = """
import sys
from pathlib import Path
sys.path.insert(0, "/usr/lib/edged")
from edged.backends.tflite import TfliteBackend
TfliteBackend().load(Path("/usr/lib/edged/edged/firmware_models/motion/1.0.0/model.tflite"))
"""

EVERY_MODEL = """
[sources.pulse]
kind = "synthetic"
channels = ["value"]
rate = 10
[sources.pages]
kind = "replay"
path = "/pages.npy"
pace = "fast"
[pipelines.pulse]
source = "pulse"
model = "anomaly"
[pipelines.pages]
source = "pages"
model = "digits"
"""

SEVEN = [
    "..####..",
    "..#####.",
    ".....##.",
    ".....#..",
    "..#####.",
    "...###..",
    "...##...",
    "...#....",
]


class Board(Layer):
    """Files of a package above the files of its dependencies."""

    def __init__(self, folder, package, suite, processor):
        super().__init__(folder, root_for(package, suite))
        self._libraries = f"/usr/lib/{processor.triplet}"
        subprocess.run(["dpkg-deb", "--extract", package, self.root], check=True)
        self._emulate(processor)

    def _emulate(self, processor):
        emulator = shutil.which(f"{processor.emulator}-static")
        shutil.copy(emulator, self.root / emulator.lstrip("/"))
        python = (self.root / "usr/bin/python3").resolve()
        python.rename(python.with_suffix(".real"))
        names = {"EMULATOR": emulator, "CPU": processor.cpu, "REAL": f"/usr/bin/{python.with_suffix('.real').name}"}
        defined = [f'-D{name}="{value}"' for name, value in names.items()]
        source = REPOSITORY / "tests/packaging/emulated_python.c"
        subprocess.run(["cc", "-static", "-Wall", "-Werror", *defined, "-o", python, source], check=True)
        for path, text in processor.files.items():
            self.write(path, text)

    def run(self, *command):
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            # Alternatives of packages that were never configured.
            "LD_LIBRARY_PATH": f"{self._libraries}/blas:{self._libraries}/lapack",
        }
        return subprocess.run(
            ["chroot", self.root, *command], env=environment, capture_output=True, text=True, timeout=300
        )

    def says(self, *command):
        """Return the output of a successful command."""
        done = self.run(*command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(
    scope="module", params=[("arm64", "bookworm"), ("arm64", "trixie"), ("armhf", "bookworm")], ids="-".join
)
def target(request):
    return request.param


@pytest.fixture(scope="module")
def processor(target):
    return PROCESSORS[target[0]]


@pytest.fixture(scope="module")
def board(target, processor, tmp_path_factory):
    arch, suite = target
    board = Board(tmp_path_factory.mktemp(arch), build(arch, suite), suite, processor)
    yield board
    board.close()


def test_it_runs_on_what_it_was_made_for(board, processor, target):
    said = board.says("edgectl", "version")
    runtime, version = processor.runtime.split()
    lines = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert (lines["edgectl"], lines["machine"], lines[runtime]) == (__version__, processor.machine, version)
    assert lines["python"].startswith("3.11." if target[1] == "bookworm" else "3.13.")
    assert "-" not in (lines["numpy"], lines["msgspec"], lines["paho-mqtt"], lines["pyserial"])


def test_as_it_is_packaged_it_proves_its_model(board, processor):
    done = board.run("edged", "--check")
    assert done.returncode == 0, done.stderr
    sound, proof = done.stdout.splitlines()
    assert sound == "the configuration is valid: 1 pipeline, 1 source"
    assert proved(proof) == ("motion", processor.runtime, 16)
    assert done.stderr == ""


def test_every_factory_model_proves_itself(board, processor):
    np.save(board.root / "pages.npy", picture(SEVEN))
    board.write("/etc/edged/conf.d/every.toml", EVERY_MODEL)
    said = board.says("edged", "--check").splitlines()
    (board.root / "etc/edged/conf.d/every.toml").unlink()
    assert sorted(map(proved, said[1:])) == [
        ("anomaly", processor.runtime, 16),
        ("digits", processor.runtime, 20),
        ("motion", processor.runtime, 16),
    ]


def test_the_doctor_finds_runtime_and_model_sound(board, processor):
    said = board.says("edgectl", "doctor")
    assert re.search(rf"ok +runtime +{processor.runtime}\n", said)
    assert re.search(r"ok +model +motion 1\.0\.0: right on 16 golden samples", said)
    assert "fail" not in said


def test_it_reads_a_digit(board):
    np.save(board.root / "seven.npy", picture(SEVEN))
    assert '"label":"7"' in board.says("edgectl", "infer", "--json", "--model", "digits", "/seven.npy").replace(" ", "")


def test_the_runtime_uses_the_fast_kernels_of_the_processor(board, processor):
    done = board.run("python3", "-I", "-c", LOAD)
    assert (done.returncode, done.stderr) == (0, processor.tells)


def proved(line):
    """Return name, runtime and number of samples of a model that gave its golden answers."""
    found = re.fullmatch(r"model (\w+) 1\.0\.0 on (.+): right on (\d+) golden samples, off by .*", line)
    return found and (found[1], found[2], int(found[3]))


def picture(rows):
    return np.array([[[16 if dot == "#" else 0 for dot in row] for row in rows]], np.uint8)
