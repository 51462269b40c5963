"""Measure every way to run a model on this board: the threads of the CPU, and each accelerator."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from edged.acceleration.placement import Accelerators, agreement_on_cpu
from edged.acceleration.prove import LoadCandidate, Subject, latency_of
from edged.api import DeviceError, EdgedError, ModelError
from edged.backends.tflite import TfliteBackend
from edged.core.tuning import MAX_TEXT, Measurement, TuningRecord, choose
from edged.models.agreement import Agreement
from edged.models.tuning_records import Tunings
from edged.system.board import temperature

TUNE_RUNS, TUNE_SECONDS = 100_000, 2.0
MAX_SECONDS = 60.0
MAX_THREADS = 4


# Tuning


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="tune.begun", tag_field="id"):
    """The measurement of a model in a number of `ways` begins."""

    model: str
    version: str
    ways: int


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="tune.measured", tag_field="id"):
    """A model was measured in a way."""

    model: str
    title: str
    measurement: Measurement


class Recorded(msgspec.Struct, frozen=True, kw_only=True, tag="tune.recorded", tag_field="id"):
    """The measurements are on disk; `why` is the choice made from them."""

    model: str
    why: str


TuningStep = Begun | Measured | Recorded


def tune(
    accelerators: Accelerators,
    subject: Subject,
    tunings: Tunings,
    now: float,
    seconds: float = TUNE_SECONDS,
    sys: Path = Path("/sys"),
) -> Iterator[TuningStep]:
    """Measure every way to run a model for a number of seconds, and record the figures; `now` is Unix seconds.

    Each way runs in a separate process, the CPU too, so that the figures are comparable.

    Raises:
        EdgedError: the model does not run on the CPU, a device or library changed meanwhile, or the disk fails.
    """
    manifest, backend = subject.bundle.manifest, subject.backend
    if not isinstance(backend, TfliteBackend):
        raise ModelError(f"{subject.name} has only one way to run", hint="tune models of the tflite backend")
    environment = accelerators.environment(manifest, subject.wanted, backend)
    agreed = agreement_on_cpu(subject.bundle, subject.backend)
    ways = [
        *_on_cpu(accelerators, subject, backend, environment.processors),
        *_accelerated(accelerators, subject, backend),
    ]
    yield Begun(model=subject.name, version=manifest.version, ways=len(ways))
    measurements = []
    for nothing_yet, load in ways:
        measured = _measure(nothing_yet, load, agreed, seconds, sys)
        measurements.append(measured)
        yield Measured(model=subject.name, title=measured.title, measurement=measured)
    if accelerators.environment(manifest, subject.wanted, backend) != environment:  # a device may be unplugged
        raise DeviceError(
            f"a device or library of {subject.name} changed during the measurement, and nothing is recorded",
            hint="see edgectl devices, and tune the model again",
            retryable=True,
        )
    record = TuningRecord(
        model=subject.name,
        version=manifest.version,
        digest=subject.bundle.digest,
        environment=environment,
        measured=now,
        measurements=tuple(measurements),
    )
    tunings.write(record)
    chosen = choose(
        record, [each.way for each in measurements if each.delegate != "cpu"], pinned=subject.wanted != "auto"
    )
    fixed = f"; [models.{subject.name}] threads = {backend.threads} takes precedence" if backend.threads else ""
    yield Recorded(model=subject.name, why=chosen.why + fixed)


def _on_cpu(
    accelerators: Accelerators, subject: Subject, backend: TfliteBackend, processors: int
) -> Iterator[tuple[Measurement, LoadCandidate]]:
    for threads in range(1, min(MAX_THREADS, processors) + 1):
        load = partial(accelerators.on_cpu.load, "the CPU", subject.bundle, replace(backend, threads=threads))
        yield Measurement(threads=threads), load


def _accelerated(
    accelerators: Accelerators, subject: Subject, backend: TfliteBackend
) -> Iterator[tuple[Measurement, LoadCandidate]]:
    for way, _ in accelerators.ways(subject.bundle.manifest, subject.wanted):
        nothing_yet = Measurement(delegate=way.delegate.name, variant=way.variant, threads=backend.threads or 1)
        yield nothing_yet, partial(accelerators.load, way, subject.bundle, backend)


def _measure(
    nothing_yet: Measurement, load: LoadCandidate, agreed: Agreement, seconds: float, sys: Path
) -> Measurement:
    """Return the figures of a way after a proof as warm-up, or the failure."""
    before = temperature(sys)
    try:
        runner = load()
        try:
            worst = agreed.prove(runner).worst
            times = agreed.times(runner, TUNE_RUNS, seconds)
            resident = _resident_bytes(runner.pid)
        finally:
            runner.close()
    except EdgedError as error:
        return replace(nothing_yet, failure=error.message[:MAX_TEXT], hint=error.hint[:MAX_TEXT])
    latency = latency_of(times)
    return replace(
        nothing_yet,
        runs=len(times),
        p50=latency.p50,
        p99=latency.p99,
        worst=worst,
        rss_bytes=resident,
        celsius_before=before,
        celsius_after=temperature(sys),
    )


def _resident_bytes(pid: int) -> int:
    """Return the memory of a process, or 0 after the end of the process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0
