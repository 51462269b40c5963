"""The verbs `prove` and `tune`: compare the ways to run a model with the CPU, and find the fastest way.

Each step loads a model in the next way, runs and closes the model; between two steps no device is in use. Only a single
process may open a device, so that a running daemon takes these steps, in the later serving process: `Proving` has the
daemon's verbs. Without a daemon, edgectl takes the same steps.

A model under proof takes turns with the models on the same device. If the process dies, the models continue on the CPU.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from edged.acceleration.placement import Accelerators
from edged.acceleration.prove import Finding, Latency, Subject, prove
from edged.acceleration.tune import MAX_SECONDS, TUNE_SECONDS, Begun, Measured, Recorded, TuningStep, tune
from edged.api import ControlError
from edged.core import update_answers
from edged.core.manifest_parts import Name
from edged.core.protocol import Args
from edged.core.tuning import Measurement
from edged.core.update_answers import (
    ComparisonAnswer,
    FindingAnswer,
    LatencyAnswer,
    MeasurementAnswer,
    TuneStepAnswer,
)
from edged.models.agreement import Comparison
from edged.models.tuning_records import Tunings

T = TypeVar("T")

# The verbs


class Proving:
    """`prove` and `tune`, for the control socket: one request at a time, on a separate thread.

    `subjects` returns the loaded models by name. After the measurement of a model, `adopt` loads the model again with
    the best choice. If the client leaves before the record is written, the measurement is discarded.
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
        self.streams = dict((update_answers.PROVE.by(self._prove), update_answers.TUNE.by(self._tune)))
        self.changes = frozenset({"tune"})

    def stop(self) -> None:
        """Take no further step. The step in hand ends normally, or at once if the accelerators are closed."""
        self._stopping = True
        self._thread.shutdown(wait=False)

    async def _prove(self, args: Args) -> AsyncGenerator[FindingAnswer, None]:
        """Yield the findings of the requested `model`, or of all models."""
        ask = _understood(args, _Prove)
        subjects = self._subjects() if ask.model is None else {ask.model: self._find(ask.model)}
        async with aclosing(self._steps("proving", prove(self._accelerators, subjects.values()))) as steps:
            async for finding in steps:
                yield finding_answer(finding)

    async def _tune(self, args: Args) -> AsyncGenerator[TuneStepAnswer, None]:
        """Yield the steps of measuring the `model`, each way for a number of `seconds`."""
        ask = _understood(args, _Tune)
        found = tune(self._accelerators, self._find(ask.model), self._tunings, time.time(), ask.seconds)
        async with aclosing(self._steps("tuning", found)) as steps:
            async for step in steps:
                yield step_answer(step)
        adoption = asyncio.ensure_future(self._adopt(ask.model))
        self._adoptions.add(adoption)  # the loop alone would let the task be collected
        adoption.add_done_callback(self._adoptions.discard)
        await asyncio.shield(adoption)  # a client may leave, but the load is completed

    def _find(self, name: str) -> Subject:
        subjects = self._subjects()
        if name not in subjects:
            known = ", ".join(sorted(subjects)) or "none"
            raise ControlError(f"no model {name!r} is loaded", hint=f"there are: {known}")
        return subjects[name]

    async def _steps(self, what: str, steps: Iterator[T]) -> AsyncGenerator[T, None]:
        """Take the steps on the thread. A step of a client now gone is finished before another request begins."""
        if self._busy:
            raise ControlError(f"{self._busy} is under way", hint="try again later", retryable=True)
        self._busy = what
        try:
            while (step := await self._take(steps)) is not None:
                yield step
        finally:
            self._busy = ""

    async def _take(self, steps: Iterator[T]) -> T | None:
        if self._stopping:
            raise ControlError("the daemon is stopping", hint="try again after the restart", retryable=True)
        return await asyncio.get_running_loop().run_in_executor(self._thread, next, steps, None)


def finding_answer(finding: Finding) -> FindingAnswer:
    """Return a finding in the form of the protocol."""
    return {
        "model": finding.model,
        "version": finding.version,
        "state": finding.state,
        "delegate": finding.delegate,
        "variant": finding.variant,
        "reason": finding.reason,
        "hint": finding.hint,
        "nodes": finding.nodes,
        "delegated": finding.delegated,
        "off_processor": finding.off_processor,
        "latency": _latency(finding.latency) if finding.latency else None,
        "cpu_latency": _latency(finding.cpu_latency) if finding.cpu_latency else None,
        "samples": [_comparison(each) for each in finding.samples],
    }


def _latency(latency: Latency) -> LatencyAnswer:
    return {"p50": latency.p50, "p99": latency.p99}


def _comparison(compared: Comparison) -> ComparisonAnswer:
    worst = compared.worst if math.isfinite(compared.worst) else None
    return {"worst": worst, "same": compared.same, "problem": compared.problem}


def step_answer(step: TuningStep) -> TuneStepAnswer:
    """Return a step of tuning in the form of the protocol."""
    match step:
        case Begun():
            return {"id": "tune.begun", "model": step.model, "version": step.version, "ways": step.ways}
        case Measured():
            measurement = _measurement(step.measurement)
            return {"id": "tune.measured", "model": step.model, "title": step.title, "measurement": measurement}
        case Recorded():
            return {"id": "tune.recorded", "model": step.model, "why": step.why}


def _measurement(measured: Measurement) -> MeasurementAnswer:
    return {
        "delegate": measured.delegate,
        "variant": measured.variant,
        "threads": measured.threads,
        "runs": measured.runs,
        "p50": measured.p50,
        "p99": measured.p99,
        "worst": measured.worst,
        "rss_bytes": measured.rss_bytes,
        "celsius_before": measured.celsius_before,
        "celsius_after": measured.celsius_after,
        "failure": measured.failure,
        "hint": measured.hint,
    }


class _Prove(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Name | None = None


class _Tune(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `tune`. The server of the control socket adds the client as `asked_by`."""

    model: Name
    asked_by: str = ""
    seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = TUNE_SECONDS


_Ask = TypeVar("_Ask", _Prove, _Tune)


def _understood(args: Args, kind: type[_Ask]) -> _Ask:
    try:
        return msgspec.convert(args, kind)
    except msgspec.ValidationError as error:
        raise ControlError(f"the request is invalid: {error}", hint="use the edgectl of this version") from error
