"""The device's MQTT interface as an AsyncAPI 3.0 document, made from the running configuration."""

from __future__ import annotations

from typing import Any

import msgspec

from edged.core.description import Description, PipelineOutput
from edged.core.record import (
    AcceleratorState,
    AnomalyDecision,
    AnomalyResult,
    ClassificationDecision,
    ClassificationResult,
    DecisionRecord,
    DetectionDecision,
    DetectionResult,
    EmbeddingDecision,
    EmbeddingResult,
    KeypointsDecision,
    KeypointsResult,
    MaskRecord,
    MultilabelDecision,
    MultilabelResult,
    RegressionDecision,
    RegressionResult,
    Result,
    SegmentationDecision,
    SegmentationResult,
    SeveralDecision,
    SeveralResult,
    State,
    TensorDecision,
    TensorResult,
    UpdateStep,
)
from edged.core.topics import OFFLINE, ONLINE, STOPPED

Json = dict[str, Any]
Records = dict[str, type[msgspec.Struct]]

_RESULTS: Records = {
    "classification": ClassificationResult,
    "regression": RegressionResult,
    "anomaly": AnomalyResult,
    "detection": DetectionResult,
    "multilabel": MultilabelResult,
    "embedding": EmbeddingResult,
    "keypoints": KeypointsResult,
    "segmentation": SegmentationResult,
    "tensor": TensorResult,
    "several": SeveralResult,
}
_DECISIONS: Records = {
    "classification": ClassificationDecision,
    "regression": RegressionDecision,
    "anomaly": AnomalyDecision,
    "detection": DetectionDecision,
    "multilabel": MultilabelDecision,
    "embedding": EmbeddingDecision,
    "keypoints": KeypointsDecision,
    "segmentation": SegmentationDecision,
    "tensor": TensorDecision,
    "several": SeveralDecision,
}
_SCHEMA_REF = "#/components/schemas/{name}"


def document(description: Description) -> Json:
    """Return the document: a channel for each topic, a send operation for each channel, and the schemas."""
    topics = description.topics
    records = [State, UpdateStep, AcceleratorState, MaskRecord, *_RESULTS.values(), *_DECISIONS.values()]
    _, schemas = msgspec.json.schema_components(records, ref_template=_SCHEMA_REF)
    availability = {"type": "string", "enum": [word.decode() for word in (ONLINE, OFFLINE, STOPPED)]}
    state = {"$ref": _SCHEMA_REF.format(name="State")}
    step = {"$ref": _SCHEMA_REF.format(name="UpdateStep")}
    accelerator = {"$ref": _SCHEMA_REF.format(name="AcceleratorState")}
    channels: dict[str, Json] = {}
    operations: dict[str, Json] = {}

    def add(
        name: str, address: str, what: str, payload: Json, *, retained: bool, content: str = "application/json"
    ) -> None:
        message = {"summary": what, "contentType": content, "payload": payload}
        channels[name] = {"address": address, "summary": what, "messages": {"message": message}}
        operations[f"send_{name}"] = {
            "action": "send",
            "summary": what,
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/message"}],
            "bindings": {"mqtt": {"qos": 1, "retain": retained, "bindingVersion": "0.2.0"}},
        }

    what = "Availability of the device; offline is the last will."
    add("availability", topics.availability, what, availability, retained=True, content="text/plain")
    add("state", topics.state, "State of the daemon.", state, retained=True)
    for name in description.sources:
        add(f"source_{name}", topics.source_state(name), f"State of the source {name}.", state, retained=True)
    for name in description.models:
        add(f"model_{name}", topics.model_state(name), f"State of the model {name}.", state, retained=True)
        add(
            f"update_{name}", topics.model_update(name), f"Last step of the last update of {name}.", step, retained=True
        )
    for name in description.accelerated:
        what = f"State of the accelerator of the model {name}."
        add(f"accelerator_{name}", topics.model_accelerator(name), what, accelerator, retained=True)
    for pipeline in description.pipelines:
        name = pipeline.name
        add(f"pipeline_{name}", topics.pipeline_state(name), f"State of the pipeline {name}.", state, retained=True)
        if pipeline.published:
            result, decision = (_record(pipeline, records, schemas) for records in (_RESULTS, _DECISIONS))
            add(f"result_{name}", topics.result(name), f"Results of the pipeline {name}.", result, retained=False)
            what = f"Current decision of the pipeline {name}; empty while the pipeline does not run."
            add(f"decision_{name}", topics.decision(name), what, decision, retained=True)
        for outcome in pipeline.masks:
            what = f"Masks of the pipeline {name}."
            mask = {"$ref": _SCHEMA_REF.format(name="MaskRecord")}
            png: Json = {"type": "string", "contentEncoding": "binary", "contentMediaType": "image/png"}
            payload, content = (png, "image/png") if pipeline.mask == "png" else (mask, "application/json")
            key = "_".join(filter(None, ("mask", name, outcome)))
            add(key, topics.mask(name, outcome), what, payload, retained=False, content=content)
    found: Json = {
        "asyncapi": "3.0.0",
        "info": {"title": f"edged on {topics.device}", "version": description.version},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas},
    }
    if description.broker:
        plain, secured = ("ws", "wss") if description.path else ("mqtt", "secure-mqtt")
        server = {"host": description.broker, "protocol": secured if description.tls else plain}
        found["servers"] = {"broker": server | ({"pathname": description.path} if description.path else {})}
    return found


def _record(pipeline: PipelineOutput, records: Records, schemas: Json) -> Json:
    """Return the schema of a pipeline's results or decisions, narrowed to its labels or values."""
    refs = {kind: {"$ref": _SCHEMA_REF.format(name=record.__name__)} for kind, record in records.items()}
    if pipeline.kind == "unknown":
        return {"oneOf": list(refs.values())}
    narrowed = _narrowed(pipeline)
    if pipeline.parts:
        parts = {part.name: _part(part, schemas[records[part.kind].__name__]) for part in pipeline.parts}
        narrowed = {"outcomes": {"properties": parts, "required": list(parts)}}
    return {"allOf": [refs[pipeline.kind], {"properties": narrowed}]} if narrowed else refs[pipeline.kind]


def _narrowed(pipeline: PipelineOutput) -> Json:
    """Return schemas for properties of a record, narrowed to the labels or values of a pipeline; {} for none."""
    labels = {"enum": list(pipeline.labels)}
    match pipeline.kind:
        case "classification" if pipeline.labels:
            return {"label": labels}
        case "regression" if pipeline.values:
            values = {value.name: _value(value.unit) for value in pipeline.values}
            return {"values": {"properties": values, "required": list(values)}}
        case "detection":
            return _by_zone(pipeline)
        case "multilabel":
            return {"scores": {"propertyNames": labels}, "decisions": {"items": labels}}
        case "segmentation":
            return {"shares": {"propertyNames": labels}, "decisions": {"items": labels}}
        case "keypoints":
            skeleton = {"x-skeleton": [list(edge) for edge in pipeline.skeleton]} if pipeline.skeleton else {}
            return {"keypoints": {"propertyNames": labels, **skeleton}}
    return {}


def _part(pipeline: PipelineOutput, schema: Json) -> Json:
    """Return the schema of one of several outcomes: that of a record of its own, without the common keys."""
    common = {*Result.__struct_fields__, *DecisionRecord.__struct_fields__, "start", "replayed"}
    properties = {key: each for key, each in schema["properties"].items() if key not in common}
    required = [key for key in schema["required"] if key not in common]
    part: Json = {"type": "object", "properties": properties, "required": required}
    return {"allOf": [part, {"properties": narrowed}]} if (narrowed := _narrowed(pipeline)) else part


def _by_zone(pipeline: PipelineOutput) -> Json:
    """Return the schemas of the members of a detection that are objects with a member for each zone."""
    labels = {"type": "array", "items": {"enum": list(pipeline.labels)}}
    counts = {"type": "object", "properties": {label: {"type": "integer"} for label in pipeline.labels}}
    return {
        "present": {"properties": dict.fromkeys(pipeline.zones, labels), "required": list(pipeline.zones)},
        "counts": {"properties": dict.fromkeys(pipeline.zones, counts), "required": list(pipeline.zones)},
    }


def _value(unit: str) -> Json:
    return {"type": "number", "description": f"in {unit}"} if unit else {"type": "number"}
