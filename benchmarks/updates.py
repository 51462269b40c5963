"""An update of the model that serves, at 100 windows a second: how long it takes, and what the pipeline feels of it.

The new version is the motion model again, with a file of noise beside it that makes its bundle as big as is asked for.
Lateness is from a window's last sample to its result; around the swap it is the worst of a second's windows.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from benchmarks.inline import CHANNELS, recorded
from benchmarks.processes import PATIENCE, ROOT, edged_command, program
from benchmarks.report import Figure, Skipped, Target
from edged.core import container
from edged.core import manifest as manifests
from edged.core.manifest import Probation
from edged.ctl.client import UnreachableError, connect
from edged.models.store import FACTORY, Store

SIZES = {"0.5 MB": 500_000, "4 MB": 4_000_000, "16 MB": 16_000_000}
RATE = 1000
PERIOD = 10 / RATE
AROUND = round(0.5 / PERIOD)
"""Windows before the swap, and after it, that count as being around it."""

CONFIG = """
[device]
name = "bench"
[sources.wrist]
kind = "replay"
path = "{recording}"
channels = {channels}
rate = 10
pace = {rate}
chunk = 10
[pipelines.motion]
source = "wrist"
model = "motion"
queue = 100
"""


def measure(rounds: int, sizes: Mapping[str, int] = SIZES) -> list[Figure | Skipped]:
    staged = Figure("from the call to serving", "ms", {})
    before = Figure("p99 of lateness before an update", "ms", {})
    during = Figure("p99 of lateness while it is received and tested", "ms", {})
    swap = Figure("worst lateness around the swap", "ms", {})
    lost = Figure("windows lost in an update", "", {})
    memory = Figure("memory that an update takes at most", "MB", {})
    figures = (staged, before, during, swap, lost, memory)
    for _ in range(rounds):
        for name, size in sizes.items():
            with tempfile.TemporaryDirectory(prefix="edged-bench-") as folder:
                values = _update(Path(folder), size)
            for figure, value in zip(figures, values, strict=True):
                figure.variants.setdefault(name, []).append(value)
    rounds_of = [list(zip(*figure.variants.values(), strict=True)) for figure in (swap, lost)]
    swap.targets.append(Target("at most a window's period", [max(each) for each in rounds_of[0]], PERIOD * 1e3))
    lost.targets.append(Target("none", [sum(each) for each in rounds_of[1]], 0))
    return list(figures)


def _update(folder: Path, size: int) -> tuple[float, ...]:
    """One update on a fresh daemon: a value for each figure."""
    np.save(folder / "recording.npy", np.tile(recorded(), (60 * RATE // len(recorded()), 1)))
    text = CONFIG.format(recording=folder / "recording.npy", channels=json.dumps(CHANNELS), rate=RATE)
    bundle = _bundle(folder, size)
    with program([*edged_command(folder, text), "--state-dir", str(folder / "state")], folder / "edged.log") as daemon:
        watcher = _Watcher(folder / "run")
        watcher.wait_for(100)
        held = _most_held(daemon.pid)
        calm = len(watcher.heard)
        took = _install(folder / "run", bundle)
        watcher.wait_for(len(watcher.heard) + AROUND)
        most = _most_held(daemon.pid) - held
    heard = list(watcher.heard)
    late = [result["latency"] * 1e3 for result in heard]
    swapped = next(index for index, result in enumerate(heard) if result["version"] != heard[0]["version"])
    missing = heard[-1]["seq"] - heard[0]["seq"] + 1 - len(heard)
    return (
        took * 1e3,
        float(np.percentile(late[:calm], 99)),
        float(np.percentile(late[calm:swapped], 99)),
        max(late[swapped - AROUND : swapped + AROUND]),
        missing,
        most / 1e6,
    )


def _bundle(folder: Path, size: int) -> Path:
    """The motion model as version 2, and noise."""
    motion = Store(FACTORY).find("motion")
    contents = {name: motion.file(name).read_bytes() for name in motion.manifest.files}
    contents["noise.bin"] = random.Random(size).randbytes(size)
    files = {name: container.measure(content) for name, content in contents.items()}
    probation = Probation(seconds=0.0, windows=AROUND)
    manifest = replace(motion.manifest, version="2", files=files, probation=probation)
    path = folder / "motion-2.edgm"
    with path.open("wb") as file:
        for piece in container.write(manifests.encode(manifest), b"", (contents[name] for name in sorted(contents))):
            file.write(piece)
    return path


def _install(runtime_dir: Path, bundle: Path) -> float:
    """Seconds until the new version serves, as whoever calls edgectl sees them."""
    code = "import sys; from edged.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--runtime-dir", str(runtime_dir), "--json", "update-model", str(bundle)]
    began = time.monotonic()
    took = 0.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["id"] == "update.serving":
                took = time.monotonic() - began
    if process.returncode or not took:
        raise RuntimeError(f"the update failed: {line}")
    return took


class _Watcher:
    """Hears every result of the daemon, as `edgectl watch` does."""

    def __init__(self, runtime_dir: Path) -> None:
        self.heard: list[dict[str, Any]] = []
        self._results = _stream(runtime_dir)
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for(self, count: int) -> None:
        """Until so many results have been heard. Raises TimeoutError."""
        until = time.monotonic() + PATIENCE
        while len(self.heard) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(self.heard)} of {count} results came")
            time.sleep(0.01)

    def _listen(self) -> None:
        with suppress(UnreachableError):  # the daemon has been stopped
            for result in self._results:
                self.heard.append(result)


def _stream(runtime_dir: Path) -> Any:
    """Results, once there is a daemon and it has a pipeline that runs."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if connect(str(runtime_dir)).call("pipelines")[0]["predictions"]:
                return connect(str(runtime_dir)).stream("watch")
        except (UnreachableError, IndexError):
            if time.monotonic() > until:
                raise
        time.sleep(0.02)


def _most_held(pid: int) -> int:
    """The most that a process ever held in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} is gone")
