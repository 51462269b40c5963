"""The tables of the configuration, as frozen structs: every key with type and default."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edged.api import Backend, SinkConfig, SourceConfig
from edged.backends.delegates import DelegateOptions
from edged.core.acceleration import Rules
from edged.core.manifest_parts import Version
from edged.core.masks import MaskForm
from edged.core.pictures import WHOLE, Mask, Region
from edged.core.source_health import Supervision
from edged.core.tables import TablePath
from edged.core.types import MAX_URL
from edged.outbox.options import Drop, Durability, MqttOptions, Policy, SpoolOptions
from edged.transfer.options import FetchOptions

DEVICE_NAMES = "letters, digits, - and _, at most 64 of them, the first a letter or digit"
NAME = r"^[a-z0-9][a-z0-9_-]{0,63}\Z"
NAMES = "lower-case " + DEVICE_NAMES

DeviceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", description=DEVICE_NAMES)]
EntryName = Annotated[str, Meta(pattern=NAME, description=NAMES)]


Swap = Literal["auto", "overlap", "handover"]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of the daemon itself."""


def host_name() -> str:
    """Return the host name as a device name."""
    short = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", short).strip("-_")[:64] or "edged"


class DeviceOptions(Table, frozen=True, kw_only=True):
    """Options of [device]: the identity of this board.

    Keys:
        name: Name of the board in every MQTT topic. Default: the host name.
    """

    name: DeviceName = msgspec.field(default_factory=host_name)


class ControlOptions(Table, frozen=True, kw_only=True):
    """Options of [control]: access to the daemon's control socket.

    Keys:
        group: Group for users of `edgectl` on this board, beside root and the daemon's own user.
    """

    group: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class MetricsOptions(Table, frozen=True, kw_only=True):
    """Options of [metrics]: a page of metrics for Prometheus.

    Keys:
        port: TCP port on 127.0.0.1 for the metrics, at /metrics; 0 for no metrics.
    """

    port: Annotated[int, Meta(ge=0, le=65535)] = 0


class UpdateOptions(Table, frozen=True, kw_only=True):
    """Options of [updates]: permission to install models, and the number of versions kept.

    Keys:
        require_signature: Accept a model only with a valid signature. Without this key, all users of the control socket
            may install any model.
        allowed_signers: File of the accepted keys, in the format of ssh-keygen(1), ALLOWED SIGNERS.
        revoked: Revocation list of ssh-keygen(1), or a file of public keys, for keys no longer accepted.
        threshold: Number of different principals required to sign a version.
        check_every (s): Average time between two looks at the `url` of a model, and at the version of a `desired`
            message on MQTT.
        fetch: Table [updates.fetch]: the way models are fetched.
        keep: Versions of each model to keep on disk. Versions in use are kept in any case.
        keep_bytes (bytes): Disk space for the kept versions of each model. Versions in use are kept in any case.
    """

    require_signature: bool = False
    allowed_signers: Path = Path("/etc/edged/allowed_signers")
    revoked: Path | None = None
    threshold: Annotated[int, Meta(ge=1, le=16)] = 1
    check_every: Annotated[float, Meta(ge=10, le=30 * 86400)] = 3600.0
    fetch: FetchOptions = FetchOptions()
    keep: Annotated[int, Meta(ge=2, le=100)] = 4
    keep_bytes: Annotated[int, Meta(ge=1 << 20)] = 256 << 20


class LogOptions(Table, frozen=True, kw_only=True):
    """Options of [log]: the daemon's log.

    Keys:
        level: Lowest level of the logged messages.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"


class SourceEntry(Table, frozen=True, kw_only=True):
    """Options of [sources.X], common to all kinds of sources.

    Keys:
        kind: Kind of source: "serial", "replay", "images", "synthetic" or the name of a plug-in.
        supervision: Table [sources.X.supervision].
    """

    kind: str
    options: SourceConfig
    supervision: Supervision = Supervision()


class ModelKeys(Table, frozen=True, kw_only=True):
    """Options of [models.X], common to all backends.

    Keys:
        path: Factory version of the model: the folder of a bundle, an .edgm file or a .tflite file. Default: the
            version of this name that came with edged. Installed versions serve in its place; a rollback can return to
            it.
        version: Serve versions of this number only, and refuse to install others.
        url: HTTP or HTTPS address of a bundle (.edgm) or a delta (.edgd), looked at every `check_every` seconds of
            [updates] and installed if the version there is another than the one that serves.
        swap: Order of loading when one version follows another. "overlap" loads the new version beside the old one;
            "handover" unloads the old one first, while windows wait; "auto" hands over where memory does not suffice
            for both, or the device takes only one.
        backend: Kind of runtime that runs the model file: "tflite", "fake" or the name of a plug-in.
        delegate: Accelerator to use. "auto" takes the first variant of the model whose accelerator is ready, or the one
            that `edgectl tune` measured as the fastest; "cpu" uses none; the name of a delegate insists on that one.
        isolate: Run the model in a child process also on the CPU. On an accelerator a model always runs in one.
    """

    path: Path | None = None
    version: Version | None = None
    url: Annotated[str, Meta(max_length=MAX_URL)] = ""
    swap: Swap = "auto"
    backend: EntryName = "tflite"
    delegate: EntryName = "auto"
    isolate: bool = False


class ModelEntry(ModelKeys, frozen=True, kw_only=True):
    """Options of [models.X], and those of the backend."""

    options: Backend


class PipelineEntry(Table, frozen=True, kw_only=True):
    """Options of [pipelines.X]: a source, the model that gets its windows, and the sinks that get the predictions.

    Keys:
        source: Name of a table [sources.X].
        model: Name of the model; it needs no table [models.X].
        sinks: Names of tables [sinks.X]. "mqtt" and "stdout" need no table.
        decision: Table [pipelines.X.decision]: fields of the manifest's `decision` that are replaced here.
        region: With a source of pictures, the part of each picture for the model, as fractions of width and height:
            left, top, right and bottom, for example [0.5, 0.0, 1.0, 1.0] for the right half.
        mask: With a source of pictures, polygons to be painted over before the model sees the picture, each a list of
            at least three points, as fractions of width and height: [[[0.0, 0.0], [0.2, 0.0], [0.0, 0.3]]].
        queue (windows): Most windows that wait for a model which has not kept up for 5 s; the oldest are dropped. For a
            model that keeps up, all windows wait.
        durability: Place of results that wait for the broker. "memory": in memory, lost with a restart; "spill": in
            memory, saved on disk while the broker is away; "always": on disk before anything is published, so that the
            pipeline waits for the disk with each result.
        drop: Result that is dropped when the spool is full: the "oldest", the "newest", or with "thin" all but every
            `keep_every`th.
        keep_every: With drop = "thin", one result in this many is kept.
        priority: Results of a higher priority are sent first and dropped last.
        publish: Results sent to the broker: "all"; "changes", those with another decision or other values than the one
            before; or a number of seconds, one result in that time.
        decision_seconds (s): Least time between two updates of the retained decision. A decision that changes is
            published at once.
        publish_mask: Form of the masks of a segmentation, to be published on a topic of their own: "rle" for run
            lengths in JSON, "png" for a picture. Default: no masks.
        mask_seconds (s): Least time between two masks.
    """

    source: EntryName
    model: EntryName
    sinks: Annotated[tuple[EntryName, ...], Meta(max_length=16)] = ("mqtt",)
    decision: dict[str, Any] = {}
    region: Region = WHOLE
    mask: Mask = ()
    queue: Annotated[int, Meta(ge=1, le=1000)] = 4
    durability: Durability = "spill"
    drop: Drop = "oldest"
    keep_every: Annotated[int, Meta(ge=2, le=1000)] = 2
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    publish: Literal["all", "changes"] | Annotated[float, Meta(gt=0, le=86_400)] = "all"
    decision_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 1.0
    publish_mask: MaskForm | None = None
    mask_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 1.0

    @property
    def policy(self) -> Policy:
        """The durability and the priority of the pipeline's messages."""
        return Policy(durability=self.durability, drop=self.drop, keep_every=self.keep_every, priority=self.priority)


class SinkEntry(Table, frozen=True, kw_only=True):
    """Options of [sinks.X], common to all kinds of sinks. `mqtt` and `stdout` need no table.

    Keys:
        kind: Kind of sink: "mqtt", "jsonl", "stdout" or the name of a plug-in.
    """

    kind: str
    options: SinkConfig


class Config(Table, frozen=True, kw_only=True):
    """The whole configuration. `models` and `sinks` also hold an entry for each name in a pipeline without a table.

    `origins` has the file of each key; a key without origin has the default value.
    """

    device: DeviceOptions
    mqtt: MqttOptions
    spool: SpoolOptions
    control: ControlOptions
    metrics: MetricsOptions
    log: LogOptions
    updates: UpdateOptions
    accelerators: Rules
    delegates: dict[str, DelegateOptions]
    sources: dict[str, SourceEntry]
    models: dict[str, ModelEntry]
    pipelines: dict[str, PipelineEntry]
    sinks: dict[str, SinkEntry]
    origins: dict[TablePath, str]
