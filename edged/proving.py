"""What is done on demand with the ways to run a model: hold them against the CPU, and measure which is the fastest.

`prove` and `tune` go through the ways one by one, and each step loads a model, runs it and closes it again; between two
steps nothing is held. A device may be opened by one process only, so while a daemon runs it is the daemon that does it,
where it would serve: `Proving` are its verbs. Without one, edgectl takes the same steps itself.

A way that is proven takes turns with whatever its device serves. If its process dies of it, all go on with their twins.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from edged.accelerators import Accelerators, Candidate, agreement_on_cpu
from edged.api import Backend, ControlError, DeviceError, EdgedError, ModelError
from edged.backends.delegates import Survey
from edged.backends.tflite import TfliteBackend
from edged.core.manifest import Name
from edged.core.tuning import MAX_TEXT, Measurement, Record, choose
from edged.hardware import temperature
from edged.models.agreement import Agreement, Comparison, agreement
from edged.models.bundle import Bundle
from edged.models.selftest import check_tensors, shaped
from edged.models.tunings import Tunings

if TYPE_CHECKING:
    from edged.backends.isolated import IsolatedRunner

PROOF_RUNS, PROOF_SECONDS = 100, 2.0
"""What is proven is timed for so many runs, or for so long."""

TUNE_RUNS, TUNE_SECONDS = 100_000, 2.0
MAX_SECONDS = 60.0
MAX_THREADS = 4

Load = Callable[[], "IsolatedRunner"]


class Subject(NamedTuple):
    """A model as it is configured here; `wanted` is its `delegate`."""

    name: str
    bundle: Bundle
    wanted: str
    backend: Backend


# Proving


class Latency(msgspec.Struct, frozen=True):
    """Seconds that one inference takes, at two percentiles."""

    p50: float
    p99: float


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """How one way to accelerate a model compares with the CPU.

    agrees      it computes what the CPU does         fails      it does not load or run
    disagrees   it computes something else            not ready  its library, device or permission is missing
                                                      cpu        the model has no way but the CPU
    `reason` and `hint` say the rest. The delegate took `delegated` of the `nodes` of the graph; `off_processor` is the
    share of the time that its process did not compute, 0 to 1; `latency` is that of the way, `cpu_latency` the CPU's.
    """

    model: str
    version: str
    state: Literal["agrees", "disagrees", "fails", "not ready", "cpu"]
    delegate: str = ""
    variant: str = ""
    reason: str = ""
    hint: str = ""
    nodes: int = 0
    delegated: int = 0
    off_processor: float = 0.0
    latency: Latency | None = None
    cpu_latency: Latency | None = None
    samples: tuple[Comparison, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether it must not serve."""
        return self.state in ("disagrees", "fails")


def prove(accelerators: Accelerators, subjects: Collection[Subject]) -> Iterator[Finding]:
    """Hold each way to accelerate these models against the CPU; one finding at least for each model."""
    for subject in subjects:
        try:
            yield from _prove(accelerators, subject)
        except EdgedError as error:
            yield failing(subject, error)


def failing(subject: Subject, error: EdgedError) -> Finding:
    """The finding of a model that does not load or run at all."""
    return _finding(subject, "fails", reason=error.message, hint=error.hint)


def _prove(accelerators: Accelerators, subject: Subject) -> Iterator[Finding]:
    manifest, backend = subject.bundle.manifest, subject.backend
    if not isinstance(backend, TfliteBackend):
        yield _finding(subject, "cpu", reason=f"its backend, {manifest.backend}, has no delegates")
        return
    ways = accelerators.ways(manifest, subject.wanted)
    if not ways:
        forbidden = subject.wanted == "cpu"
        why = "it is configured for the CPU" if forbidden else "it has no variant for an accelerator"
        yield _finding(subject, "cpu", reason=why)
    elif not any(survey.state == "ready" for _, survey in ways):
        yield from (_not_ready(subject, *way) for way in ways)
    else:
        agreed, cpu_latency = _twin(subject)
        for candidate, survey in ways:
            if survey.state != "ready":
                yield _not_ready(subject, candidate, survey)
            else:
                load = partial(accelerators.load, candidate, subject.bundle, backend)
                yield replace(_hold(subject, candidate, load, agreed), cpu_latency=cpu_latency)


def _hold(subject: Subject, candidate: Candidate, load: Load, agreed: Agreement) -> Finding:
    where = {"delegate": candidate.delegate.name, "variant": candidate.variant}
    try:
        runner = load()
        try:
            check_tensors(subject.bundle.manifest, runner)
            samples = tuple(agreed.compare(runner))
            latency = _latency(agreed.times(runner, PROOF_RUNS, PROOF_SECONDS))
            info, spent = runner.info, runner.spent
        finally:
            runner.close()
    except EdgedError as error:
        return _finding(subject, "fails", **where, reason=error.message, hint=error.hint)
    problems = [each.problem for each in samples if each.problem]
    return _finding(
        subject,
        "disagrees" if problems else "agrees",
        **where,
        reason=f"{len(problems)} of {len(samples)} samples: {problems[0]}" if problems else "",
        hint="another version of the delegate or of the model is needed" if problems else "",
        nodes=info.nodes,
        delegated=info.delegated,
        off_processor=spent.off_processor,
        latency=latency,
        samples=samples,
    )


def _finding(subject: Subject, state: Any, **fields: Any) -> Finding:
    return Finding(model=subject.name, version=subject.bundle.manifest.version, state=state, **fields)


def _not_ready(subject: Subject, candidate: Candidate, survey: Survey) -> Finding:
    return _finding(
        subject,
        "not ready",
        delegate=candidate.delegate.name,
        variant=candidate.variant,
        reason=survey.problem,
        hint=survey.hint,
    )


def _twin(subject: Subject) -> tuple[Agreement, Latency]:
    """What the model says on the CPU, in this process, and how fast it is there."""
    manifest = subject.bundle.manifest
    twin = shaped(subject.backend, manifest).load(subject.bundle.model, signature=manifest.signature)
    try:
        agreed = agreement(subject.bundle, twin)
        return agreed, _latency(agreed.times(twin, PROOF_RUNS, PROOF_SECONDS))
    finally:
        twin.close()


def _latency(times: list[float]) -> Latency:
    p50, p99 = (float(each) for each in np.percentile(times, (50, 99)))
    return Latency(p50, p99)


# Tuning


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="tune.begun", tag_field="id"):
    """A model is going to be measured in so many `ways`."""

    model: str
    version: str
    ways: int


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="tune.measured", tag_field="id"):
    """It was measured in one of them."""

    model: str
    title: str
    measurement: Measurement


class Recorded(msgspec.Struct, frozen=True, kw_only=True, tag="tune.recorded", tag_field="id"):
    """All that was measured is on the disk; `why` says what follows from it."""

    model: str
    why: str


Step = Begun | Measured | Recorded


def tune(
    accelerators: Accelerators,
    subject: Subject,
    tunings: Tunings,
    now: float,
    seconds: float = TUNE_SECONDS,
    sys: Path = Path("/sys"),
) -> Iterator[Step]:
    """Measure every way to run a model, for so many seconds each, and record it; `now` is Unix seconds.

    Each runs in a process of its own or of its device, the CPU too, so that like is compared with like.

    Raises:
        EdgedError: it does not run on the CPU, what it depends on changed meanwhile, or the record cannot be written.
    """
    manifest, backend = subject.bundle.manifest, subject.backend
    if not isinstance(backend, TfliteBackend):
        raise ModelError(f"{subject.name} has one way to run only", hint="only the tflite backend has others")
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
    if accelerators.environment(manifest, subject.wanted, backend) != environment:  # as where a device was unplugged
        raise DeviceError(
            f"what {subject.name} depends on changed while it was measured, and nothing is recorded",
            hint="see edgectl devices, and tune it again",
            retryable=True,
        )
    record = Record(
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
    fixed = f"; [models.{subject.name}] threads = {backend.threads} counts all the same" if backend.threads else ""
    yield Recorded(model=subject.name, why=chosen.why + fixed)


def _on_cpu(
    accelerators: Accelerators, subject: Subject, backend: TfliteBackend, processors: int
) -> Iterator[tuple[Measurement, Load]]:
    for threads in range(1, min(MAX_THREADS, processors) + 1):
        load = partial(accelerators.load_on_cpu, "the CPU", subject.bundle, replace(backend, threads=threads))
        yield Measurement(threads=threads), load


def _accelerated(
    accelerators: Accelerators, subject: Subject, backend: TfliteBackend
) -> Iterator[tuple[Measurement, Load]]:
    for way, _ in accelerators.ways(subject.bundle.manifest, subject.wanted):
        nothing_yet = Measurement(delegate=way.delegate.name, variant=way.variant, threads=backend.threads or 1)
        yield nothing_yet, partial(accelerators.load, way, subject.bundle, backend)


def _measure(nothing_yet: Measurement, load: Load, agreed: Agreement, seconds: float, sys: Path) -> Measurement:
    """What a way takes, once it has warmed up in its proof; what does not work has a failure instead."""
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
    latency = _latency(times)
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
    """The memory of a process; 0 if it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


# The verbs


class Proving:
    """`prove` and `tune`, for the operator's socket: one of them at a time, on a thread of its own.

    `subjects` gives the models there are, by name. When one has been tuned, `adopt` has it serve as was found best;
    where whoever asked leaves before it is recorded, nothing is.
    """

    def __init__(
        self,
        accelerators: Accelerators,
        subjects: Callable[[], Mapping[str, Subject]],
        tunings: Tunings,
        adopt: Callable[[str], Awaitable[None]],
    ) -> None:
        self._accelerators = accelerators
        self._subjects = subjects
        self._tunings = tunings
        self._adopt = adopt
        self._thread = ThreadPoolExecutor(1, "proving")
        self._busy = ""
        self._stopping = False
        self._adoptions: set[asyncio.Future[None]] = set()
        self.streams: dict[str, Callable[[dict[str, Any]], AsyncGenerator[Any, None]]] = {
            "prove": self._prove,
            "tune": self._tune,
        }
        self.changes = frozenset({"tune"})

    def stop(self) -> None:
        """Begin nothing more; the step in hand ends by itself, and at once where the accelerators are closed."""
        self._stopping = True
        self._thread.shutdown(wait=False)

    async def _prove(self, args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Findings of the `model` that is named, or of all."""
        ask = _understood(args, _Prove)
        subjects = self._subjects() if ask.model is None else {ask.model: self._find(ask.model)}
        async with aclosing(self._steps("proving", prove(self._accelerators, subjects.values()))) as steps:
            async for step in steps:
                yield step

    async def _tune(self, args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Steps of measuring the `model`, each way for so many `seconds`."""
        ask = _understood(args, _Tune)
        found = tune(self._accelerators, self._find(ask.model), self._tunings, time.time(), ask.seconds)
        async with aclosing(self._steps("tuning", found)) as steps:
            async for step in steps:
                yield step
        adoption = asyncio.ensure_future(self._adopt(ask.model))
        self._adoptions.add(adoption)  # the loop itself would let it be collected
        adoption.add_done_callback(self._adoptions.discard)
        await asyncio.shield(adoption)  # whoever leaves now leaves no model behind that is loaded by half

    def _find(self, name: str) -> Subject:
        subjects = self._subjects()
        if name not in subjects:
            known = ", ".join(sorted(subjects)) or "none"
            raise ControlError(f"no model {name!r} is loaded", hint=f"there are: {known}")
        return subjects[name]

    async def _steps(self, what: str, steps: Iterator[msgspec.Struct]) -> AsyncGenerator[Any, None]:
        """Take steps, each on the thread; what a client who left has begun is finished before anything else begins."""
        if self._busy:
            raise ControlError(f"{self._busy} is under way", hint="try again when it is done", retryable=True)
        self._busy = what
        try:
            while (step := await self._take(steps)) is not None:
                yield told(step)
        finally:
            self._busy = ""

    async def _take(self, steps: Iterator[msgspec.Struct]) -> msgspec.Struct | None:
        if self._stopping:
            raise ControlError("the daemon is stopping", hint="ask again when it is back", retryable=True)
        return await asyncio.get_running_loop().run_in_executor(self._thread, next, steps, None)


def told(step: msgspec.Struct) -> dict[str, Any]:
    """A finding or step as JSON has it; what is no number there is null."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(step))
    return plain


class _Prove(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Name | None = None


class _Tune(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of a verb that changes something. `asked_by` is who asks, as the control socket's server says."""

    model: Name
    asked_by: str = ""
    seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = TUNE_SECONDS


_Ask = TypeVar("_Ask", _Prove, _Tune)


def _understood(args: dict[str, Any], kind: type[_Ask]) -> _Ask:
    try:
        return msgspec.convert(args, kind)
    except msgspec.ValidationError as error:
        raise ControlError(f"the request cannot be understood: {error}", hint="is edgectl of this version?") from error
