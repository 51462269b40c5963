"""What the running configuration offers to listeners, from which Home Assistant's and AsyncAPI's texts are made."""

from __future__ import annotations

from itertools import zip_longest
from typing import Literal

import msgspec

from edged.core.manifest import Classify, Detect, Manifest, Regress
from edged.core.topics import Topics

Kind = Literal["classification", "regression", "anomaly", "unknown"]


class Value(msgspec.Struct, frozen=True):
    """A named real value of a regression, and its unit ("" where it has none)."""

    name: str
    unit: str = ""


class PipelineOutput(msgspec.Struct, frozen=True):
    """What a pipeline says: one of `labels`, or `values`. Its kind is unknown while its model cannot be read.

    It gets its windows from `source`, and its results are `published` where one of its sinks is the broker.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    source: str = ""
    published: bool = True


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A device and its parts. `version` is the daemon's; `broker` is host:port, empty if there is none.

    `path` is where the broker is on a web server, empty where it is spoken to without one.

    `accelerated` are those of the models that have an accelerator to run on.
    """

    topics: Topics
    version: str
    broker: str = ""
    tls: bool = False
    path: str = ""
    pipelines: tuple[PipelineOutput, ...] = ()
    sources: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    accelerated: tuple[str, ...] = ()


def retained(description: Description) -> set[str]:
    """Every topic where a broker may retain something of the device."""
    topics = description.topics
    return {
        topics.availability,
        topics.state,
        *map(topics.source_state, description.sources),
        *map(topics.model_state, description.models),
        *map(topics.model_update, description.models),
        *map(topics.model_accelerator, description.accelerated),
        *(topics.pipeline_state(pipeline.name) for pipeline in description.pipelines),
        *(topics.decision(pipeline.name) for pipeline in description.pipelines if pipeline.published),
    }


def pipeline_output(name: str, manifest: Manifest | None) -> PipelineOutput:
    """What a pipeline with this model says; None for a model that cannot be read."""
    if manifest is None:
        return PipelineOutput(name, "unknown")
    match manifest.postprocess:
        case Classify():
            return PipelineOutput(name, "classification", labels=manifest.labels)
        case Regress(names=names, units=units):
            values = zip_longest(names, units[: len(names)], fillvalue="")
            return PipelineOutput(name, "regression", values=tuple(Value(*value) for value in values))
        case Detect():
            return PipelineOutput(name, "anomaly")
