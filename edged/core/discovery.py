"""Announcement to Home Assistant: one retained message that lists all entities ("components") of the device.

A component missing from an announcement stays in Home Assistant; removal requires one more message with only the
platform of the component. An announcement is therefore made from the present components and the previous announcement.
While the kind of a pipeline is unknown, its components are left alone: a model that fails to load must not erase the
history of its entities.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from edged.core.description import Description, PipelineOutput
from edged.core.topics import Topics

MAX_OPTIONS = 100

MAX_PRESENCES = 40
"""Most pairs of a zone and a label with entities of their own; of 80 labels nobody would find one."""

_SIGNS = re.compile("[^A-Za-z0-9_-]")

Component = dict[str, Any]

# A withdrawn state is an empty message without JSON: then `value_json` is undefined.
_SAID = "(value_json | default({}, true))"
_PROBLEM = f"{{{{ 'ON' if {_SAID}.state in ('degraded', 'quarantined', 'failed') else 'OFF' }}}}"
_WORKS = f"{{{{ 'online' if {_SAID}.state in ('running', 'degraded') else 'offline' }}}}"
_UNKNOWN = "None"  # Home Assistant's payload for an unknown value
_STATES = ["starting", "running", "degraded", "failed", "stopped"]


def topic(discovery_prefix: str, device: str) -> str:
    """Return the topic of the announcement."""
    return f"{discovery_prefix}/device/edged_{device}/config"


def status_topic(discovery_prefix: str) -> str:
    """Return the topic on which Home Assistant publishes "online" at start."""
    return f"{discovery_prefix}/status"


def announcement(description: Description, previous: Mapping[str, str]) -> dict[str, Any]:
    """Return the message for Home Assistant. `previous` holds components announced before: platform by id."""
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
        "availability": [_device_works(topics)],
        "cmps": {**_removals(description, previous, now), **now},
    }


def announced(message: bytes) -> dict[str, str]:
    """Return the components, platform by id, of a retained announcement; {} for any other message."""
    try:
        found = msgspec.json.decode(message, type=_Announcement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: component.p for name, component in found.cmps.items() if component.unique_id}


def components(description: Description) -> dict[str, Component]:
    """Return all entities of the device by id."""
    topics = description.topics
    found = {"state": _state(topics.state)}
    for pipeline in description.pipelines:
        prefix = _prefix(pipeline)
        found[_free(found, prefix, "problem")] = _problem(
            f"{pipeline.name} problem", topics.pipeline_state(pipeline.name)
        )
        for name, component in _outputs(pipeline, topics.decision(pipeline.name)).items():
            found[_free(found, prefix, name)] = component | {
                "availability_mode": "all",
                "availability": [
                    _device_works(topics),
                    {"topic": topics.pipeline_state(pipeline.name), "value_template": _WORKS},
                    {"topic": topics.source_state(pipeline.source), "value_template": _WORKS},
                ],
            }
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


def _free(found: Mapping[str, Any], prefix: str, name: str) -> str:
    """Return an unused id: ids of two pipelines may coincide, since names may hold underscores."""
    return f"{prefix}{name}" if f"{prefix}{name}" not in found else f"{prefix}.{name}"


class _Announced(msgspec.Struct):
    p: str
    unique_id: str = ""


class _Announcement(msgspec.Struct):
    cmps: dict[str, _Announced]


def _removals(description: Description, previous: Mapping[str, str], now: Mapping[str, Any]) -> dict[str, Component]:
    kept = tuple(_prefix(pipeline) for pipeline in description.pipelines if pipeline.kind == "unknown")
    gone = (name for name in previous if name not in now and not name.startswith(kept))
    return {name: {"p": previous[name]} for name in gone}


def _device_works(topics: Topics) -> dict[str, str]:
    # Home Assistant knows two payloads and ignores others, such as "stopped"
    template = "{{ 'online' if value == 'online' else 'offline' }}"
    return {"topic": topics.availability, "value_template": template}


def _prefix(pipeline: PipelineOutput) -> str:
    return f"pipeline_{pipeline.name}_"


def _outputs(pipeline: PipelineOutput, decision: str) -> dict[str, Component]:
    name = pipeline.name
    if not pipeline.published:
        return {}
    match pipeline.kind:
        case "classification":
            return {"class": _class(pipeline, decision), "score": _score(f"{name} score", decision)}
        case "anomaly":
            anomalous = {
                "p": "binary_sensor",
                "name": f"{name} anomaly",
                "device_class": "problem",
                "state_topic": decision,
                "value_template": _known("'ON' if said.anomalous else 'OFF'"),
            }
            return {"anomaly": anomalous, "score": _score(f"{name} score", decision)}
        case "regression":
            return {
                f"value_{value.name}": {
                    "p": "sensor",
                    "name": f"{name} {value.name}",
                    "state_class": "measurement",
                    "state_topic": decision,
                    "value_template": _known(f"said['values'][{value.name!r}]"),
                    **({"unit_of_measurement": value.unit} if value.unit else {}),
                }
                for value in pipeline.values
            }
        case "detection":
            return _presences(pipeline, decision)
    return {}


def _presences(pipeline: PipelineOutput, decision: str) -> dict[str, Component]:
    """Return presence and number of each label in each zone, or of many labels a list and a number for each zone."""
    found: dict[str, Component] = {}
    many = len(pipeline.zones) * len(pipeline.labels) > MAX_PRESENCES
    for zone in pipeline.zones:
        place = pipeline.name if len(pipeline.zones) == 1 else f"{pipeline.name} {zone}"
        if many:
            present, counts = f"said.present[{zone!r}]", f"said.counts[{zone!r}]"
            found[f"labels_{zone}"] = _listing(place, decision, f"{present} | join(', ') | truncate(250) or 'nothing'")
            found[f"count_{zone}"] = _number(f"{place} count", decision, f"{counts}.values() | sum")
            continue
        for label in pipeline.labels:
            name = _free(found, "", f"{zone}_{_SIGNS.sub('_', label)}")
            word = ascii(label)  # Jinja knows the escapes of Python
            found[name] = {
                "p": "binary_sensor",
                "name": f"{place} {label}",
                "device_class": "occupancy",
                "state_topic": decision,
                "value_template": _known(f"('ON' if {word} in said.present[{zone!r}] else 'OFF')"),
            }
            number = f"said.counts[{zone!r}][{word}] | default(0)"
            found[f"{name}_count"] = _number(f"{place} {label} count", decision, number)
    return found


def _listing(name: str, decision: str, expression: str) -> Component:
    return {"p": "sensor", "name": name, "state_topic": decision, "value_template": _known(expression)}


def _number(name: str, decision: str, expression: str) -> Component:
    return {
        "p": "sensor",
        "name": name,
        "state_class": "measurement",
        "state_topic": decision,
        "value_template": _known(expression),
    }


def _known(expression: str) -> str:
    """Return a template for `expression`, or for an unknown value while the message is empty, without a decision."""
    return f"{{% set said = {_SAID} %}}{{{{ {expression} if said else '{_UNKNOWN}' }}}}"


def _class(pipeline: PipelineOutput, decision: str) -> Component:
    component: Component = {
        "p": "sensor",
        "name": pipeline.name,
        "state_topic": decision,
        "value_template": _known("said.decision or 'none'"),
    }
    options = list(dict.fromkeys([*pipeline.labels, "none"]))
    if 1 < len(options) <= MAX_OPTIONS:
        component |= {"device_class": "enum", "options": options}
    return component


def _score(name: str, decision: str) -> Component:
    return {
        "p": "sensor",
        "name": name,
        "state_class": "measurement",
        "suggested_display_precision": 2,
        "state_topic": decision,
        "value_template": _known("said.score"),
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
        "value_template": f"{{{{ {_SAID}.state | default('{_UNKNOWN}') }}}}",
        "json_attributes_topic": state,
    }
