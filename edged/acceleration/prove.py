"""Compare each accelerated way to run a model with the CPU, on demand: outputs, share of nodes and latency."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from edged.acceleration.placement import AccelerationCandidate, Accelerators
from edged.api import Backend, EdgedError
from edged.backends.delegates import Survey
from edged.backends.tflite import TfliteBackend
from edged.models.agreement import Agreement, Comparison, agreement
from edged.models.bundle import Bundle
from edged.models.selftest import check_tensors, shaped

if TYPE_CHECKING:
    from edged.backends.isolated import IsolatedRunner


PROOF_RUNS, PROOF_SECONDS = 100, 2.0
"""Runs and seconds after which a proof is long enough."""

LoadCandidate = Callable[[], "IsolatedRunner"]


class Subject(NamedTuple):
    """A model as configured; `wanted` is the `delegate` in [models.<name>]."""

    name: str
    bundle: Bundle
    wanted: str
    backend: Backend


# Proving


class Latency(msgspec.Struct, frozen=True):
    """Seconds of an inference, at two percentiles."""

    p50: float
    p99: float


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A way to accelerate a model, compared with the CPU.

    agrees      the outputs are those of the CPU      fails      the model does not load or run
    disagrees   the outputs are different             not ready  the library, device or permission is missing
                                                      cpu        the model runs on the CPU only
    `reason` and `hint` give details. The delegate took `delegated` of the `nodes` of the graph; `off_processor` is the
    share of time, 0 to 1, without work on the processor; `latency` is the way's, `cpu_latency` the CPU's.
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
        """Return whether the model must not serve this way."""
        return self.state in ("disagrees", "fails")


def prove(accelerators: Accelerators, subjects: Collection[Subject]) -> Iterator[Finding]:
    """Yield a finding for each way to accelerate these models, and for a model without ways a finding "cpu"."""
    for subject in subjects:
        try:
            yield from _prove(accelerators, subject)
        except EdgedError as error:
            yield failing(subject, error)


def failing(subject: Subject, error: EdgedError) -> Finding:
    """Return the finding of a model with an error on the CPU."""
    return _finding(subject, "fails", reason=error.message, hint=error.hint)


def _prove(accelerators: Accelerators, subject: Subject) -> Iterator[Finding]:
    manifest, backend = subject.bundle.manifest, subject.backend
    if not isinstance(backend, TfliteBackend):
        yield _finding(subject, "cpu", reason=f"the backend {manifest.backend} has no delegates")
        return
    ways = accelerators.ways(manifest, subject.wanted)
    if not ways:
        forbidden = subject.wanted == "cpu"
        why = "the model is configured for the CPU" if forbidden else "the model has no variant for an accelerator"
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


def _hold(subject: Subject, candidate: AccelerationCandidate, load: LoadCandidate, agreed: Agreement) -> Finding:
    where = {"delegate": candidate.delegate.name, "variant": candidate.variant}
    try:
        runner = load()
        try:
            check_tensors(subject.bundle.manifest, runner)
            samples = tuple(agreed.compare(runner))
            latency = latency_of(agreed.times(runner, PROOF_RUNS, PROOF_SECONDS))
            info, run_times = runner.info, runner.run_times
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
        hint="install another version of the delegate or of the model" if problems else "",
        nodes=info.nodes,
        delegated=info.delegated,
        off_processor=run_times.off_processor,
        latency=latency,
        samples=samples,
    )


def _finding(subject: Subject, state: Any, **fields: Any) -> Finding:
    return Finding(model=subject.name, version=subject.bundle.manifest.version, state=state, **fields)


def _not_ready(subject: Subject, candidate: AccelerationCandidate, survey: Survey) -> Finding:
    return _finding(
        subject,
        "not ready",
        delegate=candidate.delegate.name,
        variant=candidate.variant,
        reason=survey.problem,
        hint=survey.hint,
    )


def _twin(subject: Subject) -> tuple[Agreement, Latency]:
    """Return the outputs and the latency of a model on the CPU, in this process."""
    manifest = subject.bundle.manifest
    twin = shaped(subject.backend, manifest).load(subject.bundle.model, signature=manifest.signature)
    try:
        agreed = agreement(subject.bundle, twin)
        return agreed, latency_of(agreed.times(twin, PROOF_RUNS, PROOF_SECONDS))
    finally:
        twin.close()


def latency_of(times: list[float]) -> Latency:
    """Return the percentiles of some times in seconds."""
    p50, p99 = (float(each) for each in np.percentile(times, (50, 99)))
    return Latency(p50, p99)
