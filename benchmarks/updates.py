"""Duration of an update at 100 windows a second, and its effect on the pipeline.

The new version is the motion model with a file of noise, for a bundle of any size. Lateness is the time from the last
sample of a window to its result; around the swap the worst window of a second counts. The gap is the longest time
between two results around the swap, less the period of windows.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from benchmarks.counters import resident_bytes
from benchmarks.inline import CHANNELS, recorded
from benchmarks.processes import PATIENCE, ROOT, edged_command, program
from benchmarks.report import Figure, Skipped, Target
from edged.core import container, delta
from edged.core import manifest as manifests
from edged.core.answers import PIPELINES, WATCH
from edged.core.manifest import Probation
from edged.ctl.client import UnreachableError, connect
from edged.models.store import FACTORY, Store
from tests.flaky_proxy import FlakyProxy
from tests.real_models import FOLDER
from tests.sshd import SSHD, Sshd
from tests.web_server import WebServer

SIZES = {"0.5 MB": 500_000, "4 MB": 4_000_000, "16 MB": 16_000_000}
RATE = 1000
PERIOD = 10 / RATE
CUTS = 50
CUT_BYTES = 70_000
"""Bytes that a connection carries before its cut."""

UPDATE_SECONDS = 200.0
"""Longest time that an update may take."""

AROUND = round(0.5 / PERIOD)
"""Windows before and after the swap that count as around the swap."""

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
loop = true
[updates.fetch]
pause = 0.05
[pipelines.motion]
source = "wrist"
model = "motion"
queue = 100
"""


def measure(rounds: int, sizes: Mapping[str, int] = SIZES, cuts: int = CUTS) -> list[Figure | Skipped]:
    return [*_updates(rounds, sizes), *_over_links(cuts), _fine_tuned()]


def _updates(rounds: int, sizes: Mapping[str, int]) -> list[Figure]:
    staged = Figure("from the call to serving", "ms", {})
    before = Figure("p99 of lateness before an update", "ms", {})
    during = Figure("p99 of lateness while it is received and tested", "ms", {})
    swap = Figure("worst lateness around the swap", "ms", {})
    gap = Figure("gap in the results at the swap", "ms", {})
    lost = Figure("windows lost in an update", "", {})
    memory = Figure("peak memory of the daemon", "MB", {})
    more = Figure("memory that the update added", "MB", {})
    trial = Figure("peak memory of the self-test", "MB", {})
    figures = (staged, before, during, swap, gap, lost, memory, more, trial)
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


def _over_links(cuts: int) -> Iterator[Figure | Skipped]:
    """Run an update over HTTP and another over SSH, with `cuts` cuts each; bytes hardly vary between rounds."""
    wire = Figure(f"bytes on the wire for one of the bundle, with {cuts} cuts", "", {})
    before = Figure("p99 of lateness before an update over such a link", "ms", {})
    during = Figure("p99 of lateness until it is received, tested and swapped", "ms", {})
    limits = {"HTTP": 1.02, "SSH": 1.5}
    for name, link in {"HTTP": _http, "SSH": _ssh}.items():
        if name == "SSH" and (SSHD is None or shutil.which("ssh") is None):
            yield Skipped("an update over SSH", "OpenSSH is not installed")
            continue
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as folder:
            carried: list[float] = []
            values = _update(Path(folder), cuts * CUT_BYTES, lambda at, bundle: link(at, bundle, cuts, carried))  # noqa: B023
        wire.variants[name] = carried
        wire.targets.append(Target(f"over {name} at most", carried, limits[name]))
        before.variants[name], during.variants[name] = [values[1]], [values[2]]
    yield from (wire, before, during)


def _http(folder: Path, bundle: Path, cuts: int, carried: list[float]) -> _Brought:
    with WebServer(bundle.read_bytes()) as server, FlakyProxy(server.port, cut_after=repeat(CUT_BYTES, cuts)) as link:
        brought = _install(folder / "run", f"http://127.0.0.1:{link.port}/motion-2.edgm")
        carried.append((link.up + link.down) / bundle.stat().st_size)
    _require(link, cuts)
    return brought


def _ssh(folder: Path, bundle: Path, cuts: int, carried: list[float]) -> _Brought:
    with (
        redirect_stdout(io.StringIO()),  # which carries the log
        Sshd(folder / "sshd", folder / "run") as sshd,
        FlakyProxy(sshd.port, cut_up_after=repeat(CUT_BYTES, cuts)) as link,
    ):
        brought = _install(folder / "run", str(bundle), "--host", sshd.host, "--ssh", sshd.ssh(link.port))
        carried.append((link.up + link.down) / bundle.stat().st_size)
    _require(link, cuts)
    return brought


def _require(link: FlakyProxy, cuts: int) -> None:
    if link.cuts != cuts:
        raise RuntimeError(f"the link was cut {link.cuts} times, not {cuts}")


def _fine_tuned() -> Figure | Skipped:
    """Make a delta to MobileNet v2 in which every weight of the last layer moved, mostly by a step or two."""
    name = "delta to MobileNet v2 with a last layer fine-tuned"
    model = FOLDER / "mobilenet_v2_1.0_224_quant.tflite"
    if not model.exists():
        return Skipped(name, "set EDGED_TEST_MODELS to a folder of real models")
    old = model.read_bytes()
    weights = _last_weights(model)
    at = old.index(weights.tobytes())
    moved = weights + np.random.default_rng(1).normal(0.0, 1.0, weights.shape).round()
    tuned = moved.clip(0, 255).astype(np.uint8).tobytes()
    new = old[:at] + tuned + old[at + len(tuned) :]
    share = len(delta.pack([delta.subtract(new, old)])) / len(new)
    return Figure(name, "of the full size", {"share": [share]}, [Target("at most", [share], 0.12)])


def _last_weights(model: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the weights of the classifier: 1001 classes from 1280 features."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    [index] = [each["index"] for each in interpreter.get_tensor_details() if tuple(each["shape"]) == (1001, 1, 1, 1280)]
    weights: np.ndarray[Any, np.dtype[np.uint8]] = interpreter.get_tensor(index)
    return weights


class _Brought(NamedTuple):
    """Outcome of an update: seconds until the version served, and bytes of memory of its self-test."""

    seconds: float
    tried_bytes: int


Bring = Callable[[Path, Path], _Brought]
"""Function that installs a bundle on the daemon in a folder."""


def _here(folder: Path, bundle: Path) -> _Brought:
    return _install(folder / "run", str(bundle))


def _update(folder: Path, size: int, bring: Bring = _here) -> tuple[float, ...]:
    """Run an update on a fresh daemon, and return a value for each figure."""
    np.save(folder / "recording.npy", np.tile(recorded(), (60 * RATE // len(recorded()), 1)))
    text = CONFIG.format(recording=folder / "recording.npy", channels=json.dumps(CHANNELS), rate=RATE)
    bundle = _bundle(folder, size)
    with program(edged_command(folder, text), folder / "edged.log") as daemon:
        watcher = _Watcher(folder / "run")
        watcher.wait_for(100)
        held = resident_bytes(daemon.pid, peak=True)
        calm = len(watcher.heard)
        brought = bring(folder, bundle)
        watcher.wait_for(len(watcher.heard) + AROUND)
        most = resident_bytes(daemon.pid, peak=True)
    heard = list(watcher.heard)
    late = [result["latency"] * 1e3 for result in heard]
    swapped = next(index for index, result in enumerate(heard) if result["version"] != heard[0]["version"])
    told = [result["time"] + result["latency"] for result in heard]
    missing = heard[-1]["seq"] - heard[0]["seq"] + 1 - len(heard)
    return (
        brought.seconds * 1e3,
        float(np.percentile(late[:calm], 99)),
        float(np.percentile(late[calm:swapped], 99)),
        max(late[swapped - AROUND : swapped + AROUND]),
        (float(np.diff(told[swapped - AROUND : swapped + AROUND]).max()) - PERIOD) * 1e3,
        missing,
        most / 1e6,
        (most - held) / 1e6,
        brought.tried_bytes / 1e6,
    )


def _bundle(folder: Path, size: int) -> Path:
    """Pack the motion model as version 2, with noise."""
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


def _install(runtime_dir: Path, bundle: str, *words: str) -> _Brought:
    """Run `edgectl update-model`, and return the outcome as its caller sees it."""
    code = "import sys; from edged.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--runtime-dir", str(runtime_dir), "--json", *words, "update-model", bundle]
    began = time.monotonic()
    took, tried = 0.0, 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        impatience = threading.Timer(UPDATE_SECONDS, process.kill)
        impatience.start()
        for line in process.stdout:
            step = json.loads(line)
            if step["id"] == "update.tried":
                tried = int(step["text"].partition(" MiB")[0].rpartition(" ")[2]) << 20
            if step["id"] == "update.serving":
                took = time.monotonic() - began
        impatience.cancel()
    if process.returncode or not took:
        raise RuntimeError(f"the update failed: {line}")
    return _Brought(took, tried)


class _Watcher:
    """Receiver of every result of the daemon, as in `edgectl watch`."""

    def __init__(self, runtime_dir: Path) -> None:
        self.heard: list[dict[str, Any]] = []
        self._results = _stream(runtime_dir)
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for(self, count: int) -> None:
        """Wait for `count` results. Raises TimeoutError."""
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
    """Wait for a running pipeline, and return the stream of its results."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if connect(str(runtime_dir)).call(PIPELINES)[0]["predictions"]:
                return connect(str(runtime_dir)).stream(WATCH)
        except (UnreachableError, IndexError):
            if time.monotonic() > until:
                raise
        time.sleep(0.02)
