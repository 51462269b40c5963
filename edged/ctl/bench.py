"""Measure the speed of models here: latencies of inferences, bare, through the backend, and from window to outcome.

`bare` is the minimum of calls to the interpreter of the model: set_tensor, invoke, get_tensor. `runner` is the backend
of the daemon. `window` is the work of the daemon for a window: preprocess, run, postprocess. The three ways take turns,
so other load of the machine affects all ways alike. Without a MODEL all factory models are measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.api import Arrays, Backend, BundleError, ConfigError, Runner
from edged.core.answers import RunnerAnswer
from edged.core.container import measure
from edged.core.errors import quantity
from edged.core.manifest import SCHEMA, Input, Manifest, Regress, WindowSpec, encode
from edged.core.manifest_parts import MAX_NAMES
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.local_model import default_backend, find_model, load_model, models_of, prove_first
from edged.models.bundle import BARE_SUFFIX, MANIFEST, Bundle, bare_name, open_folder, read_structure

MAX_RUNS = 1_000_000
_DEFAULT_RUNS = 1000
_DEFAULT_SECONDS = 3.0
_LEAST_RUNS = 20
_WARM_UP = 3

TimedCall = Callable[[], object]


class Times(TypedDict):
    """Percentiles of the seconds of an inference."""

    p50: float
    p90: float
    p99: float


class BenchResult(TypedDict):
    """A measured model, as `edgectl bench --json` prints it. `seconds` has the times of each way to run it."""

    model: str
    version: str
    runner: RunnerAnswer
    load_seconds: float
    runs: int
    seconds: dict[str, Times]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model's name, a bundle's folder, an .edgm or a .tflite file"
    )
    parser.add_argument("--runs", type=_count, metavar="N", help="runs of each way (default: for about three seconds)")
    parser.add_argument("--threads", type=_count, metavar="N", help="threads of the interpreter")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    names = [args.model] if args.model else models_of(args).names()
    if not names:
        raise ConfigError("there are no models", hint="name a model: edgectl bench MODEL")
    results = [_measure_model(name, args) for name in names]
    if args.json:
        tables.show_json(results)
    else:
        tables.show(_lines(results))
    return exits.DONE


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_RUNS:
        raise argparse.ArgumentTypeError(f"from 1 to {MAX_RUNS}")
    return number


def _measure_model(name: str, args: argparse.Namespace) -> BenchResult:
    with TemporaryDirectory(prefix="edgectl-bench-") as scratch:
        return _measure_bundle(*_find(name, args, Path(scratch)), args)


def _measure_bundle(bundle: Bundle, backend: Backend, args: argparse.Namespace) -> BenchResult:
    if args.threads:
        backend = _with_threads(backend, args.threads)
    prove_first(bundle, backend, args)
    begun = time.perf_counter()
    runner = load_model(bundle, backend)
    try:
        loading = time.perf_counter() - begun
        ways = _ways(bundle, runner)
        times = _measure(ways, args.runs, BenchProgress(bundle.manifest.name, sys.stderr))
    finally:
        runner.close()
    return {
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "runner": runner.info.answer(),
        "load_seconds": loading,
        "runs": len(next(iter(times.values()))),
        "seconds": {way: _percentiles(taken) for way, taken in times.items()},
    }


def _find(name: str, args: argparse.Namespace, scratch: Path) -> tuple[Bundle, Backend]:
    """Return a model to measure, even a bare file with inputs or outputs of unknown meaning."""
    try:
        return find_model(name, args)
    except BundleError:
        bundle = _without_meaning(Path(name), scratch) if name.endswith(BARE_SUFFIX) else None
        if bundle is None:
            raise
        return bundle, default_backend(bundle)


def _without_meaning(tflite: Path, folder: Path) -> Bundle | None:
    """Return a bundle of a bare file with a single input, with values as the result; None for other files."""
    structure = read_structure(tflite)
    shapes = [tensor.shape for tensor in (*structure.inputs, *structure.outputs)]
    if structure.obstacle or structure.strange_ops or len(structure.inputs) != 1 or () in shapes or len(shapes[0]) > 4:
        return None
    values = prod(structure.outputs[0].shape)
    data = tflite.read_bytes()
    manifest = Manifest(
        schema=SCHEMA,
        name=bare_name(tflite),
        version="0",
        files={"model.tflite": measure(data)},
        window=WindowSpec(length=1, hop=1, sample_shape=shapes[0][1:] or shapes[0]),
        inputs=(Input(tensor=structure.inputs[0]),),
        outputs=structure.outputs,
        postprocess=Regress(names=tuple(f"v{index}" for index in range(values)) if values <= MAX_NAMES else ()),
    )
    (folder / "model.tflite").write_bytes(data)
    (folder / MANIFEST).write_bytes(encode(manifest))
    return open_folder(folder)


def _with_threads(backend: Backend, threads: int) -> Backend:
    if "threads" not in backend.__struct_fields__:
        raise ConfigError("this model's backend has no threads to set", hint="leave out --threads")
    return msgspec.structs.replace(backend, threads=threads)


def _ways(bundle: Bundle, runner: Runner) -> dict[str, TimedCall]:
    """Return the ways to measure, each a function for an inference."""
    manifest = bundle.manifest
    samples = _samples(manifest.window)
    preprocess, postprocess = Preprocessor(manifest), Postprocessor(manifest, None)
    inputs = [np.array(array) for array in preprocess(samples)]

    def window() -> None:
        outputs = runner.run(preprocess(samples))
        preprocess.feed_back(outputs)
        postprocess(outputs, preprocess.prepared, time.monotonic())

    ways: dict[str, TimedCall] = {"runner": lambda: runner.run(inputs), "window": window}
    if runner.info.backend == "tflite" and manifest.signature is None:
        ways = {"bare": _bare(bundle, runner, inputs)} | ways
    return ways


def _samples(window: WindowSpec) -> NDArray[Any]:
    """A window of noise, the same each time."""
    noise = np.random.default_rng(1).standard_normal((window.length, *window.shape))
    return (noise if window.dtype == "float32" else abs(noise * 50)).astype(window.dtype)


def _bare(bundle: Bundle, runner: Runner, inputs: Arrays) -> TimedCall:
    """Return the inference in a separate interpreter, without other work."""
    package = runner.info.runtime.split()[0].replace("-", "_")
    interpreter = import_module(f"{package}.interpreter").Interpreter(
        model_path=str(bundle.model), num_threads=runner.info.threads
    )
    interpreter.allocate_tensors()
    into = [details["index"] for details in interpreter.get_input_details()]
    out = [details["index"] for details in interpreter.get_output_details()]

    def run() -> None:
        for index, array in zip(into, inputs, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        for index in out:
            interpreter.get_tensor(index)

    return run


def _measure(ways: dict[str, TimedCall], runs: int | None, progress: BenchProgress) -> dict[str, list[float]]:
    """Seconds of each run of each way, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_WARM_UP):
        _take_turns(ways)
    if runs is None:
        begun = time.perf_counter()
        _take_turns(ways)
        turn = time.perf_counter() - begun
        runs = min(_DEFAULT_RUNS, max(_LEAST_RUNS, int(_DEFAULT_SECONDS / turn)))
    for done in range(runs):
        for name, seconds in _take_turns(ways):
            taken[name].append(seconds)
        progress.show(done + 1, runs)
    progress.end()
    return taken


def _take_turns(ways: dict[str, TimedCall]) -> list[tuple[str, float]]:
    times = []
    for name, way in ways.items():
        begun = time.perf_counter()
        way()
        times.append((name, time.perf_counter() - begun))
    return times


def _percentiles(taken: Sequence[float]) -> Times:
    p50, p90, p99 = (float(each) for each in np.percentile(taken, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99}


class BenchProgress:
    """Progress bar on `stream`, after a second, and only on a terminal."""

    def __init__(self, title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._stream = stream
        self._clock = clock
        self._next = clock() + 1.0 if stream.isatty() else float("inf")
        self._shown = False

    def show(self, done: int, total: int) -> None:
        """Draw the bar, at most ten times a second."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + 0.1
        self._shown = True
        bar = "#" * (30 * done // total)
        print(f"\r{self._title} [{bar:.<30}] {done}/{total}", end="", file=self._stream, flush=True)

    def end(self) -> None:
        """Leave an empty line."""
        if self._shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


def _lines(results: Sequence[BenchResult]) -> Iterator[str]:
    rows = []
    for result in results:
        least = next(iter(result["seconds"].values()))["p50"]
        for index, (way, seconds) in enumerate(result["seconds"].items()):
            name = f"{result['model']} {result['version']}" if index == 0 else ""
            times = [f"{each * 1e6:.1f}" for each in (seconds["p50"], seconds["p90"], seconds["p99"])]
            rows.append([name, way, *times, f"{seconds['p50'] / least:.2f}x"])
    yield from tables.table(("MODEL", "WAY", ">P50 us", ">P90 us", ">P99 us", ">P50"), rows)
    for result in results:
        runner = result["runner"]
        threads = quantity(runner["threads"], "thread")
        yield f"{result['model']}: {result['runs']} runs of each way, {runner['runtime']}, {threads}"
