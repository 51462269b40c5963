"""Child process of a trial: load a bundle as in service, run its self-test, and measure the time.

Standard output gets the current stage, a line of STAGES each, and at last the verdict, a line of JSON. Any other
output, from a vendor's library for example, is redirected to standard error.
"""

from __future__ import annotations

import os
import re
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edged.api import Arrays, Backend, BundleError, DeviceError, EdgedError, Runner, StoreError
from edged.core.verdict import Failure, Verdict
from edged.models.bundle import Bundle, derive, open_folder
from edged.models.selftest import golden_samples, prove, shaped

STAGES = (
    "starting",
    "reading the bundle",
    "loading the model",
    "running the golden samples",
    "timing the model",
    "closing the model",
)
RUNS = 100
LEAST_RUNS = 5
"""Bounds for the number of timed inferences, within the available time."""
MEMORY_HINT = "a smaller model is needed, or a board with more memory"


class TrialRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of a trial: the bundle at `path`, on the class `backend` ("module:Class") with `options`.

    `path` is a folder or a bare file. `sha256` is the digest of the model file, and `signature` replaces the manifest's
    signature. `timing_seconds` limits the timing, after at least LEAST_RUNS inferences.
    """

    path: str
    sha256: str
    backend: str
    options: dict[str, Any]
    signature: str | None = None
    timing_seconds: float


def main(request: str) -> None:
    """Run the trial and report. The process ends here, without exit handlers of vendors' libraries."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    verdict = _try(msgspec.json.decode(request, type=TrialRequest), lambda stage: print(stage, file=out))
    print(msgspec.json.encode(verdict).decode(), file=out)
    os._exit(0)


def _try(request: TrialRequest, say: Callable[[str], None]) -> Verdict:
    stages = iter(STAGES[1:])
    failure: Failure = "unfit"
    try:
        say(next(stages))
        bundle = _open(Path(request.path), request.sha256)
        say(next(stages))
        backend = shaped(_backend(request), bundle.manifest)
        runner = backend.load(bundle.model, signature=request.signature or bundle.manifest.signature)
        failure = "wrong"
        say(next(stages))
        proof = prove(bundle, runner)
        say(next(stages))
        p50, p99 = np.percentile(_latencies(runner, _feeds(bundle), request.timing_seconds), (50, 99))
        say(next(stages))
        runner.close()
    except Exception as error:  # a foreign backend may raise any exception
        return _explain(error, failure)
    return Verdict(
        samples=proof.samples,
        worst=proof.worst,
        latency_p50=float(p50),
        latency_p99=float(p99),
        rss_bytes=_peak_rss(),
        runner=runner.info,
    )


def _open(path: Path, sha256: str) -> Bundle:
    """Return the bundle at a path. Raises BundleError if unsound, StoreError if the model was replaced."""
    bundle = open_folder(path) if path.is_dir() else derive(path)
    if bundle.manifest.files[bundle.manifest.model].sha256 != sha256:
        raise StoreError(f"{bundle.model} was replaced during the trial", hint="try again once the file is in place")
    return bundle


def _backend(request: TrialRequest) -> Backend:
    module, _, name = request.backend.partition(":")
    kind: type[Backend] = getattr(import_module(module), name)
    return msgspec.convert(request.options, kind)


def _feeds(bundle: Bundle) -> Iterator[Arrays]:
    """Yield inputs endlessly: golden inputs, or zeros without any."""
    manifest = bundle.manifest
    if manifest.golden is None:
        return repeat([np.zeros(each.tensor.shape, each.tensor.dtype) for each in manifest.inputs])
    inputs, _ = golden_samples(bundle, manifest.golden)
    return cycle(zip(*inputs, strict=True))


def _latencies(runner: Runner, feeds: Iterator[Arrays], seconds: float) -> list[float]:
    """Return the seconds of single inferences without preempted ones, unless most were preempted.

    This process has the lowest priority, and the waiting time says nothing about the model.
    """
    runner.run(next(feeds))
    undisturbed, all_of_them = [], []
    end = time.perf_counter() + seconds
    for inputs in feeds:
        preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        begun = time.perf_counter()
        runner.run(inputs)
        now = time.perf_counter()
        all_of_them.append(now - begun)
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == preempted:
            undisturbed.append(now - begun)
        if len(undisturbed) == RUNS or (now > end and len(all_of_them) >= LEAST_RUNS):
            break
    return undisturbed if len(undisturbed) >= LEAST_RUNS else all_of_them


def _peak_rss() -> int:
    """Return the peak memory in bytes. `getrusage` includes the parent, as of the start, and is used only without
    /proc.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert found is not None
    return int(found[1]) * 1024


def _explain(error: Exception, failure: Failure) -> Verdict:
    if _out_of_memory(error):
        said = error.message if isinstance(error, EdgedError) else str(error)
        reason = f"the process ran out of memory: {said}" if said else "the process ran out of memory"
        return Verdict(failure="memory", reason=reason, hint=MEMORY_HINT)
    if isinstance(error, EdgedError):
        if error.retryable or isinstance(error, DeviceError | StoreError):
            failure = "hindered"
        elif isinstance(error, BundleError):
            failure = "damaged"
        return Verdict(failure=failure, reason=error.message, hint=error.hint)
    traceback.print_exc()
    return Verdict(failure=failure, reason=f"the backend failed: {_words(error)}", hint="see the traceback")


def _words(error: Exception) -> str:
    return error.message if isinstance(error, EdgedError) else f"{type(error).__name__}: {error}"


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__
    return error is not None
