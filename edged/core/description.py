"""Interface of the running configuration on MQTT, the base of the Home Assistant and AsyncAPI documents."""

from __future__ import annotations

from itertools import zip_longest
from typing import Literal

import msgspec

from edged.core.detection_spec import WHOLE, DetectObjects, ObjectDecision, counted_labels
from edged.core.manifest import Classify, DetectAnomaly, Manifest, Regress, Several
from edged.core.manifest_outcomes import PRESETS, ClassifyMany, Embed, FindKeypoints, ReadTensor, SegmentPicture
from edged.core.manifest_parts import Decision
from edged.core.topics import Topics

OutcomeKind = Literal[
    "classification",
    "regression",
    "anomaly",
    "detection",
    "multilabel",
    "embedding",
    "keypoints",
    "segmentation",
    "tensor",
    "several",
    "unknown",
]


class Value(msgspec.Struct, frozen=True):
    """Real value of a regression: name and unit ("" without a unit)."""

    name: str
    unit: str = ""


class PipelineOutput(msgspec.Struct, frozen=True):
    """Output of a pipeline. The kind is "unknown" while the model cannot be read.

    `labels` are the labels, classes or keypoints of the kind; `skeleton` joins keypoints; `values` are those of a
    regression. A detection counts objects of `labels` in each of the `zones`. `referenced` embeddings are compared with
    references. `parts` are several outputs, by their names. The windows come from `source`. The results are `published`
    if a sink of the pipeline is the broker. `mask` is the form of published masks, or empty.
    """

    name: str
    kind: OutcomeKind
    labels: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    zones: tuple[str, ...] = ()
    source: str = ""
    published: bool = True
    skeleton: tuple[tuple[str, str], ...] = ()
    referenced: bool = False
    parts: tuple[PipelineOutput, ...] = ()
    mask: str = ""

    @property
    def masks(self) -> tuple[str, ...]:
        """Return the outcomes whose masks are published; "" names a single one."""
        if not self.mask:
            return ()
        return ("",) if self.kind == "segmentation" else tuple(p.name for p in self.parts if p.kind == "segmentation")


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A device and its parts.

    `version` is the version of the daemon. `broker` is host:port, or empty without a broker. `path` is the path of a
    broker behind WebSockets, otherwise empty. `accelerated` names the models that have an accelerator.
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
    """Return all topics on which the broker may retain a message of the device."""
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


def pipeline_output(name: str, manifest: Manifest | None, decision: Decision | None = None) -> PipelineOutput:
    """Return the output of a pipeline with this model; None stands for a model that cannot be read.

    `decision` overrides the manifest's own, unless None.
    """
    if manifest is None:
        return PipelineOutput(name, "unknown")
    match manifest.postprocess:
        case Classify():
            return PipelineOutput(name, "classification", labels=manifest.labels)
        case Regress(names=names, units=units):
            values = zip_longest(names, units[: len(names)], fillvalue="")
            return PipelineOutput(name, "regression", values=tuple(Value(*value) for value in values))
        case DetectAnomaly():
            return PipelineOutput(name, "anomaly")
        case DetectObjects() as detect:
            rules = decision if isinstance(decision, ObjectDecision) else detect.decision
            labels = counted_labels(manifest.labels[detect.label_offset :], rules)
            return PipelineOutput(name, "detection", labels=labels, zones=tuple(rules.zones) or (WHOLE,))
        case ClassifyMany():
            return PipelineOutput(name, "multilabel", labels=manifest.labels)
        case Embed(references=references):
            return PipelineOutput(name, "embedding", referenced=references is not None)
        case FindKeypoints(points=points, preset=preset):
            return PipelineOutput(name, "keypoints", points, skeleton=PRESETS[preset].skeleton if preset else ())
        case SegmentPicture():
            return PipelineOutput(name, "segmentation", labels=manifest.labels)
        case ReadTensor():
            return PipelineOutput(name, "tensor")
        case Several():
            parts = tuple(pipeline_output(part, each) for part, each in manifest.parts.items())
            return PipelineOutput(name, "several", parts=parts)
