"""Versions of the factory's motion model, sound and damaged, a board that serves the model, and `edgectl` to install
them.

All versions share one model file; they differ in the manifest, which every result names.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edged.core.answers import WATCH
from edged.core.ledger import Ledger
from edged.ctl.client import connect
from edged.models.store import ModelFolder
from tests import signing
from tests.containers import container, entry
from tests.edged_process import Edged

ROOT = Path(__file__).parents[1]
FACTORY = ROOT / "firmware_models" / "motion" / "1.0.0"
RECORDING = ROOT / "demo" / "recording.csv"

CONFIG = """
[device]
name = "board"
[sources.wrist]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = {pace}
chunk = 10
loop = true
[pipelines.motion]
source = "wrist"
model = "motion"
queue = 1000
"""
"""A sensor without end. The queue has room for all windows delayed by a busy machine."""

PROBATION = {"seconds": 0.2, "windows": 5}
"""Short rules, passed by any version that answers."""


def config(*, pace: int = 200, recording: Path = RECORDING) -> str:
    """Return the configuration of a board that cuts a window every `10 / pace` seconds."""
    return CONFIG.format(recording=recording, pace=pace)


def lines(first: int, count: int) -> bytes:
    """Return samples of the recording in the sensor's format."""
    with RECORDING.open() as file:
        rows = list(csv.reader(file))[1:]
    # A reader that opens a port in the middle of a line discards the rest of the line: begin with an end.
    return b"\n" + b"".join(",".join(rows[index][:7]).encode() + b"\n" for index in range(first, first + count))


def long_recording(folder: Path, times: int = 75) -> Path:
    """The recording so many times, 75 for a minute at 1000 samples a second; a source's own loop would have seams."""
    columns = np.loadtxt(RECORDING, delimiter=",", skiprows=1, usecols=range(1, 7), dtype=np.float32)
    np.save(folder / "long.npy", np.tile(columns, (times, 1)))
    return folder / "long.npy"


def contents() -> dict[str, bytes]:
    """The files of the factory's version."""
    names = json.loads((FACTORY / "manifest.json").read_bytes())["files"]
    return {name: (FACTORY / name).read_bytes() for name in names}


def manifest(version: str, files: dict[str, bytes], **parts: Any) -> dict[str, Any]:
    """The factory's manifest, of another version and with `parts` replaced."""
    factory = json.loads((FACTORY / "manifest.json").read_bytes())
    described = {name: entry(content) for name, content in files.items()}
    return {**factory, "version": version, "probation": PROBATION, **parts, "files": described}


def bundle(folder: Path, version: str, *, files: dict[str, bytes] | None = None, **parts: Any) -> Path:
    """Write a container of a version; `files` extend or replace the factory's files."""
    every = {**contents(), **(files or {})}
    path = folder / f"motion-{version}.edgm"
    body = b"".join(every[name] for name in sorted(every))
    path.write_bytes(container(manifest(version, every, **parts), body=body))
    return path


def seal(container: Path, key: Path, namespace: str = "edged-bundle") -> None:
    """Sign a container, for the proper namespace or another."""
    data = container.read_bytes()
    end = 16 + int.from_bytes(data[8:12], "little")
    signature = signing.sign(data[16:end], key, namespace)
    container.write_bytes(data[:12] + len(signature).to_bytes(4, "little") + data[16:end] + signature + data[end:])


def wrong_golden() -> dict[str, bytes]:
    """Return golden samples with outputs that no motion model computes."""
    arrays = dict(np.load(FACTORY / "golden.npz"))
    arrays["output_0"] = arrays["output_0"][..., ::-1]
    file = io.BytesIO()
    np.savez(file, **arrays)
    return {"golden.npz": file.getvalue()}


class Said(NamedTuple):
    """Result of a call of edgectl."""

    code: int
    output: str


class Call:
    """A running `edgectl`."""

    def __init__(self, daemon: Edged, *words: object) -> None:
        code = "import sys; from edged.ctl.main import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "--runtime-dir", str(daemon.runtime_dir), *map(str, words)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def is_running(self) -> bool:
        """Return whether the end is yet to come."""
        return self._process.poll() is None

    def end(self) -> Said:
        """Wait for the end."""
        output, _ = self._process.communicate(timeout=120)
        return Said(self._process.returncode, output)


def edgectl(daemon: Edged, *words: object) -> Said:
    """Call edgectl and wait for the end."""
    return Call(daemon, *words).end()


def serving(daemon: Edged) -> str:
    """Return the version in service."""
    return next(connect(str(daemon.runtime_dir)).stream(WATCH))["version"]


def shelf(daemon: Edged) -> Path:
    """Return the folder of the model's installed versions."""
    return daemon.state_dir / "models" / "motion"


def ledger(daemon: Edged) -> Ledger:
    """Return the model's ledger."""
    return ModelFolder(shelf(daemon)).read()


def litter(daemon: Edged) -> set[str]:
    """Return unneeded files in the model's folder."""
    folder = shelf(daemon)
    there = {str(path.relative_to(folder)) for pattern in ("*", "versions/*") for path in folder.glob(pattern)}
    known = {"state.json", "state.copy.json", "versions", "current"}
    return there - known - {f"versions/{digest}" for digest in ledger(daemon).versions}


def incoming(daemon: Edged) -> set[str]:
    """Return the transfers with partial files."""
    return {path.name for path in (daemon.state_dir / "incoming").glob("*")}
