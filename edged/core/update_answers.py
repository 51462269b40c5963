"""Verbs to update, prove and tune models, with the types of the answers. `core/answers.py` has the other verbs."""

from typing import NotRequired, TypedDict

from edged.core.protocol import Call, Stream

# Updates


class TransferAnswer(TypedDict, total=False):
    """Answer to a bundle offered, sent or fetched.

    Keys:
        offset: Number of bytes received, and so the start of the rest.
        job: Number of the installing job.
        confirm_within: Seconds for confirmation, as set at the start of the job.
        present: True for an installed version.
        unused: Remedy, if no pipeline uses the installed version.
        missing: Digest of the base of a delta, if not installed.
    """

    offset: int
    job: str
    confirm_within: float
    present: bool
    unused: str
    missing: str


class OffsetAnswer(TypedDict):
    """Number of bytes received."""

    offset: int


class JobAnswer(TypedDict):
    """An update. `text` describes the end, and `last` the last step."""

    job: str
    model: str
    version: str
    digest: str
    origin: str
    state: str
    text: str
    hint: str
    began: float | None
    last: str


class JobItemAnswer(TypedDict, total=False):
    """A step of an update, or another event of a watched update. The keys depend on `id`.

    job.progress   bytes, total (None if unknown), rate (bytes per second)
    job.alive      text: the progress of the probation, or empty
    job.ended      as in JobAnswer
    any other      model, text, time, and `at`, the board's CLOCK_MONOTONIC seconds
    """

    id: str
    model: str
    text: str
    time: float
    at: float
    bytes: int
    total: int | None
    rate: float
    job: str
    version: str
    digest: str
    origin: str
    state: str
    hint: str
    began: float | None
    last: str


class JobDetailsAnswer(JobAnswer):
    """An update with all steps."""

    events: list[JobItemAnswer]


class ServingAnswer(TypedDict):
    """State of a model after an operator's decision. `serving` is a digest, None if no pipeline uses the model."""

    model: str
    serving: str | None
    version: str
    factory: bool
    pinned: bool
    under_way: bool
    changed: NotRequired[bool]


# Proving and tuning


class LatencyAnswer(TypedDict):
    """Seconds for an inference, at two percentiles."""

    p50: float
    p99: float


class ComparisonAnswer(TypedDict):
    """Comparison of a sample with the CPU: `worst` is None for NaN, `same` None for models without a decision."""

    worst: float | None
    same: bool | None
    problem: str


class FindingAnswer(TypedDict):
    """Comparison of an accelerated model with the CPU."""

    model: str
    version: str
    state: str
    delegate: str
    variant: str
    reason: str
    hint: str
    nodes: int
    delegated: int
    off_processor: float
    latency: LatencyAnswer | None
    cpu_latency: LatencyAnswer | None
    samples: list[ComparisonAnswer]


class MeasurementAnswer(TypedDict):
    """Measurement of a way to run a model, or the `failure`."""

    delegate: str
    variant: str
    threads: int
    runs: int
    p50: float
    p99: float
    worst: float
    rss_bytes: int
    celsius_before: float | None
    celsius_after: float | None
    failure: str
    hint: str


class TuneStepAnswer(TypedDict, total=False):
    """A step of tuning. The keys depend on `id`.

    tune.begun      model, version, ways         tune.recorded   model, why
    tune.measured   model, title, measurement
    """

    id: str
    model: str
    version: str
    ways: int
    title: str
    measurement: MeasurementAnswer
    why: str


# The verbs

RECEIVE_OPEN = Call("receive-open", TransferAnswer)
RECEIVE_CHUNK = Call("receive-chunk", OffsetAnswer)
RECEIVE_DONE = Call("receive-done", TransferAnswer)
FETCH = Call("fetch", TransferAnswer)
JOBS = Call("jobs", list[JobAnswer])
JOB = Call("job", JobDetailsAnswer)
JOB_WATCH = Stream("job-watch", JobItemAnswer)

ROLLBACK = Call("rollback", ServingAnswer)
CONFIRM = Call("confirm", ServingAnswer)
PIN = Call("pin", ServingAnswer)
CLEAR_REJECTION = Call("clear-rejection", ServingAnswer)

PROVE = Stream("prove", FindingAnswer)
TUNE = Stream("tune", TuneStepAnswer)
