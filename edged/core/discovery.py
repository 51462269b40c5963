"""How Home Assistant learns of the device: one retained message that lists all its entities ("components").

A component that is no longer named stays in Home Assistant; to be removed it must be sent once more with nothing but
its platform. So an announcement is made from what there is now and what was announced before. While a pipeline's kind
is unknown its components are left alone: a model that fails to load must not cost its entities their history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edged.core.description import Description, PipelineOutput

MAX_OPTIONS = 100

Component = dict[str, Any]

_PROBLEM = "{{ 'ON' if value_json.state in ('degraded', 'quarantined', 'failed') else 'OFF' }}"
_STATES = ["starting", "running", "degraded", "failed", "stopped"]


def topic(discovery_prefix: str, device: str) -> str:
    """Where the announcement goes."""
    return f"{discovery_prefix}/device/edged_{device}/config"


def status_topic(discovery_prefix: str) -> str:
    """Where Home Assistant says "online" as it starts."""
    return f"{discovery_prefix}/status"


def announcement(description: Description, previous: Mapping[str, str]) -> dict[str, Any]:
    """The message for Home Assistant. `previous` are components announced before: platform by id."""
    topics = description.topics
    now = components(description)
    return {
        "dev": {
            "identifiers": [f"edged_{topics.device}"],
            "name": topics.device,
            "manufacturer": "edged",
            "model": "inference daemon",
            "sw_version": description.version,
        },
        "o": {"name": "edged", "sw_version": description.version},
        # "stopped" would be no news to Home Assistant: it knows two payloads and ignores others
        "availability": [
            {
                "topic": topics.availability,
                "value_template": "{{ 'online' if value == 'online' else 'offline' }}",
            }
        ],
        "cmps": {**_removals(description, previous, now), **now},
    }


def announced(message: bytes) -> dict[str, str]:
    """The components, platform by id, of an announcement as a broker retained it; none if it is not one."""
    try:
        found = msgspec.json.decode(message, type=_Announcement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: component.p for name, component in found.cmps.items() if component.unique_id}


def components(description: Description) -> dict[str, Component]:
    """All entities of the device, by id."""
    topics = description.topics
    found = {"state": _state(topics.state)}
    for pipeline in description.pipelines:
        prefix = _prefix(pipeline)
        found[f"{prefix}problem"] = _problem(f"{pipeline.name} problem", topics.pipeline_state(pipeline.name))
        for name, component in _outputs(pipeline, topics.result(pipeline.name)).items():
            found[prefix + name] = component
    for source in description.sources:
        found[f"source_{source}_problem"] = _problem(f"Source {source} problem", topics.source_state(source))
    for model in description.models:
        found[f"model_{model}_problem"] = _problem(f"Model {model} problem", topics.model_state(model))
    for model in description.accelerated:
        problem = _problem(f"Model {model} accelerator problem", topics.model_accelerator(model))
        found[f"accelerator_{model}_problem"] = problem
    for name, component in found.items():
        component["unique_id"] = f"edged_{topics.device}_{name}"
    return found


class _Announced(msgspec.Struct):
    p: str
    unique_id: str = ""


class _Announcement(msgspec.Struct):
    cmps: dict[str, _Announced]


def _removals(description: Description, previous: Mapping[str, str], now: Mapping[str, Any]) -> dict[str, Component]:
    kept = tuple(_prefix(pipeline) for pipeline in description.pipelines if pipeline.kind == "unknown")
    gone = (name for name in previous if name not in now and not name.startswith(kept))
    return {name: {"p": previous[name]} for name in gone}


def _prefix(pipeline: PipelineOutput) -> str:
    return f"pipeline_{pipeline.name}_"


def _outputs(pipeline: PipelineOutput, result: str) -> dict[str, Component]:
    name = pipeline.name
    match pipeline.kind:
        case "classification":
            return {"class": _class(pipeline, result), "score": _score(f"{name} score", result)}
        case "anomaly":
            anomalous = {
                "p": "binary_sensor",
                "name": f"{name} anomaly",
                "device_class": "problem",
                "state_topic": result,
                "value_template": "{{ 'ON' if value_json.anomalous else 'OFF' }}",
            }
            return {"anomaly": anomalous, "score": _score(f"{name} score", result)}
        case "regression":
            return {
                f"value_{value.name}": {
                    "p": "sensor",
                    "name": f"{name} {value.name}",
                    "state_class": "measurement",
                    "state_topic": result,
                    "value_template": f"{{{{ value_json['values']['{value.name}'] }}}}",
                    **({"unit_of_measurement": value.unit} if value.unit else {}),
                }
                for value in pipeline.values
            }
    return {}


def _class(pipeline: PipelineOutput, result: str) -> Component:
    component: Component = {
        "p": "sensor",
        "name": pipeline.name,
        "state_topic": result,
        "value_template": "{{ value_json.decision or 'none' }}",
    }
    options = list(dict.fromkeys([*pipeline.labels, "none"]))
    if 1 < len(options) <= MAX_OPTIONS:
        component |= {"device_class": "enum", "options": options}
    return component


def _score(name: str, result: str) -> Component:
    return {
        "p": "sensor",
        "name": name,
        "state_class": "measurement",
        "suggested_display_precision": 2,
        "state_topic": result,
        "value_template": "{{ value_json.score }}",
    }


def _problem(name: str, state: str) -> Component:
    return {
        "p": "binary_sensor",
        "name": name,
        "device_class": "problem",
        "entity_category": "diagnostic",
        "state_topic": state,
        "value_template": _PROBLEM,
        "json_attributes_topic": state,
    }


def _state(state: str) -> Component:
    return {
        "p": "sensor",
        "name": "State",
        "device_class": "enum",
        "options": list(_STATES),
        "entity_category": "diagnostic",
        "state_topic": state,
        "value_template": "{{ value_json.state }}",
        "json_attributes_topic": state,
    }
