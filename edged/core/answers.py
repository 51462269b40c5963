"""The verbs that ask about the service, and the shape of each answer: the daemon builds these, edgectl reads them.

A key that is `NotRequired` is one that older daemons leave out, or that comes in some answers only. Times are Unix
seconds where they name a moment, and seconds where they name a duration.

`edgectl` imports this before anything else, so that only `typing` may be imported here. The annotations are evaluated,
as `protocol.check` reads them.
"""

from typing import NotRequired, TypedDict

from edged.core.protocol import Call, Stream

HealthAnswer = TypedDict("HealthAnswer", {"state": str, "reason": str, "hint": str, "since": float, "for": float})
"""Health of a part: its `state`, since when (and `for` how long), why, and what to do about it."""


class PercentilesAnswer(TypedDict):
    """Percentiles of a duration, None before the first measurement."""

    p50: float | None
    p90: float | None
    p99: float | None


# Results


class ResultAnswer(TypedDict):
    """A prediction, as in the records that are sent over MQTT (`core/record.py`). `kind` decides which keys follow."""

    kind: str
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
    label: NotRequired[str]
    score: NotRequired[float | None]
    scores: NotRequired[dict[str, float | None]]
    decision: NotRequired[str | None]
    changed: NotRequired[bool]
    replayed: NotRequired[bool]
    anomalous: NotRequired[bool]
    threshold: NotRequired[float | None]
    values: NotRequired[dict[str, float | None] | list[float | None]]
    count: NotRequired[int]


# Parts of a status


class RunnerAnswer(TypedDict):
    """Runtime and delegate that a model runs on. `nodes` and `delegated` count nodes of its graph, 0 if unknown."""

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
    """A pipeline: its parts, its counters and its last result."""

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
    """A source: its rate as declared and as measured, and what was lost."""

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
    health: HealthAnswer


class AcceleratorAnswer(HealthAnswer):
    """State of the accelerator of a model. `off_processor` is the share of an inference's time, 0 to 1."""

    name: str
    off_processor: float | None


class VersionAnswer(TypedDict):
    """A version of a model that is installed or was rejected, and why it was."""

    version: str
    digest: str
    roles: list[str]
    reason: str


class ModelVersionsAnswer(TypedDict):
    """Versions of a model, None where the disk did not answer in time."""

    pinned: bool | None
    versions: list[VersionAnswer] | None


class ModelAnswer(TypedDict):
    """A model that is configured or installed. A status leaves out `pinned` and `versions`, which are on disk."""

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
    """A sink and its counters."""

    name: str
    sent: int
    failed: int
    dropped: int
    health: HealthAnswer


# The spool


class SetAsideAnswer(TypedDict):
    """A spool file that could not be used, and the number of messages that were saved from it."""

    path: str
    saved: int


class DiskAnswer(TypedDict):
    """The file of a spool, and what a power cut would cost; None where that is not known or not bounded."""

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
    """A message that the broker refused. Operators name it by its `number`."""

    number: int
    pipeline: str
    seq: int
    topic: str
    bytes: int
    reason: str


class SpoolAnswer(SpoolHealthAnswer):
    """A spool with all of its details. `rate` is the number of messages the broker takes per second."""

    rate: float
    seconds_to_empty: float | None
    replayed: int
    refused: list[RefusedAnswer]


class SpoolCountAnswer(TypedDict):
    """Number of messages that are sent again or were dropped."""

    count: int


# The status


class ClockAnswer(TypedDict):
    """State of the wall clock."""

    synchronised: bool


class MqttAnswer(TypedDict):
    """The connection to the broker. `namesake` is the boot of another board with this one's name, "" if none."""

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
    """Problems of a configuration that was refused."""

    message: str
    problems: list[str]


class ConfigAnswer(TypedDict):
    """The configuration in effect, and why the last one was refused, if it was."""

    files: list[str]
    state_dir: NotRequired[str]
    loaded: float
    error: ConfigErrorAnswer | None


class MemoryAnswer(TypedDict):
    """Memory of the daemon's process."""

    rss_bytes: int


class VersionOnlyAnswer(TypedDict):
    """Version of the daemon, which any daemon's status holds."""

    version: str


class ConfigOnlyAnswer(TypedDict):
    """The configuration in effect, read from a status."""

    config: ConfigAnswer


class StatusAnswer(VersionOnlyAnswer, ConfigOnlyAnswer):
    """The daemon and all of its parts."""

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
    """Tables that a reload `changed`. Those in `restart` take effect at the next start. Not `done`: it continues."""

    changed: list[str]
    done: bool
    restart: list[str]
    warnings: list[str]


class ReleaseAnswer(TypedDict):
    """An accelerator that was released. `changed` is false if it had no fault."""

    released: str
    changed: bool


class ForgetDeviceAnswer(TypedDict):
    """Retained topics of another device that were cleared."""

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
