"""Verbs about the service, with the types of the answers: the daemon builds them, edgectl reads them.

`NotRequired` marks keys left out by older daemons or by some answers. A time is in Unix seconds for a moment, and in
seconds for a duration.

`edgectl` imports this module first, so the only other import is `typing`. The annotations are evaluated, since
`protocol.check` reads them.
"""

from typing import NotRequired, TypedDict

from edged.core.protocol import Call, Stream

HealthAnswer = TypedDict("HealthAnswer", {"state": str, "reason": str, "hint": str, "since": float, "for": float})
"""Health of a part: `state`, start and duration (`for`) of the state, reason and remedy."""


class PercentilesAnswer(TypedDict):
    """Percentiles of a duration, None before the first measurement."""

    p50: float | None
    p90: float | None
    p99: float | None


# Results


class ObjectAnswer(TypedDict):
    """Object in a picture, with a number if objects are tracked."""

    label: str
    score: float | None
    box: list[float]
    zones: list[str]
    number: NotRequired[int]


class OutcomeAnswer(TypedDict):
    """Answer of a model, as in the records sent over MQTT (`core/record.py`). The keys depend on `kind`."""

    kind: str
    label: NotRequired[str]
    score: NotRequired[float | None]
    scores: NotRequired[dict[str, float | None]]
    decision: NotRequired[str | None]
    decisions: NotRequired[list[str]]
    changed: NotRequired[bool]
    anomalous: NotRequired[bool]
    threshold: NotRequired[float | None]
    values: NotRequired[dict[str, float | None] | list[float | None]]
    count: NotRequired[int]
    vector: NotRequired[str | list[float | None]]
    nearest: NotRequired[str]
    distance: NotRequired[float | None]
    keypoints: NotRequired[dict[str, list[float | None]]]
    visible: NotRequired[bool]
    objects: NotRequired[list[ObjectAnswer]]
    counts: NotRequired[dict[str, dict[str, int]]]
    present: NotRequired[dict[str, list[str]]]
    shares: NotRequired[dict[str, float | None]]
    picture: NotRequired[list[int]]
    dtype: NotRequired[str]
    shape: NotRequired[list[int]]


class ResultAnswer(OutcomeAnswer):
    """A prediction: the answer, or several outcomes by name, and the window."""

    schema: NotRequired[str]
    device: NotRequired[str]
    boot: NotRequired[str]
    pipeline: str
    model: NotRequired[str]
    version: NotRequired[str]
    seq: NotRequired[int]
    id: NotRequired[str]
    time: float
    synchronised: bool
    latency: float | None
    inference: NotRequired[float | None]
    start: NotRequired[float]
    replayed: NotRequired[bool]
    outcomes: NotRequired[dict[str, OutcomeAnswer]]


# Parts of a status


class RunnerAnswer(TypedDict):
    """Runtime and delegate of a loaded model. `nodes` and `delegated` count nodes of the graph, 0 if unknown."""

    backend: str
    runtime: str
    delegate: str
    threads: int
    nodes: int
    delegated: int


class ProofAnswer(TypedDict):
    """Self-test of a model: the number of golden samples, and the worst difference in any element of an output."""

    samples: int
    worst: float | None


class PipelineAnswer(TypedDict):
    """Parts, counters and last result of a pipeline."""

    name: str
    source: str
    model: str
    version: str
    sinks: list[str]
    windows: int
    predictions: int
    dropped: int
    errors: int
    latency: PercentilesAnswer | None
    inference: PercentilesAnswer | None
    runner: RunnerAnswer | None
    last: ResultAnswer | None
    health: HealthAnswer


class SourceAnswer(TypedDict):
    """Rates of a source, declared and measured, and counts of samples read, lost and refused."""

    name: str
    kind: str
    channels: list[str]
    rate: float | None
    measured_rate: float | None
    samples: int
    lost: int
    reconnects: int
    faults: dict[str, int]
    refused: NotRequired[str]
    refused_ago: NotRequired[float | None]
    health: HealthAnswer


class AcceleratorAnswer(HealthAnswer):
    """State of the accelerator of a model. `off_processor` is the share of an inference's time, 0 to 1."""

    name: str
    off_processor: float | None


class VersionAnswer(TypedDict):
    """An installed or rejected version of a model.

    `reason` is empty unless the version is rejected, reverted or out of order. A version without another role is
    "former" if it was confirmed once, and "unconfirmed" otherwise.
    """

    version: str
    digest: str
    roles: list[str]
    reason: str


class ModelVersionsAnswer(TypedDict):
    """Versions of a model; None if the disk did not answer in time."""

    pinned: bool | None
    versions: list[VersionAnswer] | None


class ModelAnswer(TypedDict):
    """A configured or installed model. A status leaves out `pinned` and `versions`, to save a disk access."""

    name: str
    version: str
    digest: NotRequired[str]
    origin: str
    pipelines: list[str]
    bytes: int
    runner: RunnerAnswer | None
    proof: ProofAnswer | None
    accelerator: AcceleratorAnswer | None
    choice: str
    isolated: bool
    health: HealthAnswer
    pinned: NotRequired[bool | None]
    versions: NotRequired[list[VersionAnswer] | None]


class SinkAnswer(TypedDict):
    """Counters and health of a sink."""

    name: str
    sent: int
    failed: int
    dropped: int
    health: HealthAnswer


# The spool


class SetAsideAnswer(TypedDict):
    """A damaged spool file, and the number of messages saved from the file."""

    path: str
    saved: int


class DiskAnswer(TypedDict):
    """The file of a spool, and the loss by a power cut; None for unknown or unbounded figures."""

    path: str
    file_bytes: int
    written: int | None
    daily_bytes: int
    unsaved: int
    unsaved_seconds: float
    loss_seconds: float | None
    loss_messages: int | None
    late: int
    commit: PercentilesAnswer
    set_aside: list[SetAsideAnswer]


class SpoolStatsAnswer(TypedDict):
    """Counters of a spool. `drops` and `parks` count by pipeline and reason."""

    depth: int
    in_flight: int
    on_disk: int
    bytes: int
    oldest: float | None
    dropped: int
    parked: int
    drops: dict[str, dict[str, int]]
    parks: dict[str, dict[str, int]]
    disk: DiskAnswer | None


class SpoolHealthAnswer(SpoolStatsAnswer):
    """A spool as a status shows it."""

    health: HealthAnswer


class RefusedAnswer(TypedDict):
    """A message refused by the broker, for operators called by `number`."""

    number: int
    pipeline: str
    seq: int
    topic: str
    bytes: int
    reason: str


class SpoolAnswer(SpoolHealthAnswer):
    """A spool with all details. `rate` is the number of messages sent to the broker per second."""

    rate: float
    seconds_to_empty: float | None
    replayed: int
    refused: list[RefusedAnswer]


class SpoolCountAnswer(TypedDict):
    """Number of messages queued again or dropped."""

    count: int


# The status


class ClockAnswer(TypedDict):
    """State of the wall clock."""

    synchronised: bool


class MqttAnswer(TypedDict):
    """The connection to the broker. `namesake` is the boot id of another board of the same name, or empty."""

    broker: str
    connected: bool
    sent: int
    last_sent: float | None
    last_sent_ago: float | None
    reconnects: int
    namesake: NotRequired[str]
    spool: SpoolHealthAnswer
    health: HealthAnswer


class ConfigErrorAnswer(TypedDict):
    """Problems of a refused configuration."""

    message: str
    problems: list[str]


class ConfigAnswer(TypedDict):
    """The configuration in effect, and the error of a newer, refused configuration."""

    files: list[str]
    state_dir: NotRequired[str]
    loaded: float
    error: ConfigErrorAnswer | None


class MemoryAnswer(TypedDict):
    """Memory of the daemon's process."""

    rss_bytes: int


class VersionOnlyAnswer(TypedDict):
    """Version of the daemon, present in the status of every release."""

    version: str


class ConfigOnlyAnswer(TypedDict):
    """The configuration in effect, read from a status."""

    config: ConfigAnswer


class StatusAnswer(VersionOnlyAnswer, ConfigOnlyAnswer):
    """The daemon and all parts."""

    device: str
    boot: str
    uptime: float
    state: str
    health: HealthAnswer
    clock: ClockAnswer
    mqtt: MqttAnswer
    pipelines: list[PipelineAnswer]
    sources: list[SourceAnswer]
    models: list[ModelAnswer]
    sinks: list[SinkAnswer]
    memory: MemoryAnswer


# Small verbs


class MetricsAnswer(TypedDict):
    """Metrics in the text format of Prometheus."""

    text: str


class ReloadAnswer(TypedDict):
    """Tables `changed` by a reload; tables in `restart` wait for the next start. Not `done` means still running.

    Tables in `added` and `removed` are among the changed ones.
    """

    changed: list[str]
    added: NotRequired[list[str]]
    removed: NotRequired[list[str]]
    done: bool
    restart: list[str]
    warnings: list[str]


class ReleaseAnswer(TypedDict):
    """A released accelerator. `changed` is false for an accelerator without a fault."""

    released: str
    changed: bool


class ForgetDeviceAnswer(TypedDict):
    """Cleared topics of another device."""

    topics: list[str]


# The verbs

STATUS = Call("status", StatusAnswer)
STATUS_VERSION = Call("status", VersionOnlyAnswer)
STATUS_CONFIG = Call("status", ConfigOnlyAnswer)
PIPELINES = Call("pipelines", list[PipelineAnswer])
SOURCES = Call("sources", list[SourceAnswer])
MODELS = Call("models", list[ModelAnswer])
METRICS = Call("metrics", MetricsAnswer)
RELOAD = Call("reload", ReloadAnswer)
SPOOL = Call("spool", SpoolAnswer)
SPOOL_RETRY = Call("spool-retry", SpoolCountAnswer)
SPOOL_DROP = Call("spool-drop", SpoolCountAnswer)
RELEASE = Call("release", ReleaseAnswer)
FORGET_DEVICE = Call("forget-device", ForgetDeviceAnswer)
WATCH = Stream("watch", ResultAnswer)
