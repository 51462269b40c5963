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
MAX_SHARES = 32
"""Most classes of a segmentation with a sensor each."""

MAX_STATE = 255
"""Most characters of a state in Home Assistant."""

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
        shown = _outputs(pipeline, topics.decision(pipeline.name)) | _masks(pipeline, topics)
        for name, component in shown.items():
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
    if not pipeline.published:
        return {}
    found = {}
    for part in pipeline.parts or (pipeline,):
        said, title, prefix = "said", pipeline.name, ""
        if pipeline.parts:
            said, title, prefix = f"said.outcomes[{part.name!r}]", f"{pipeline.name} {part.name}", f"{part.name}_"
        for name, component in _outcome(part, title, said).items():
            found[f"{prefix}{name}"] = component | {"state_topic": decision}
    return found


def _masks(pipeline: PipelineOutput, topics: Topics) -> dict[str, Component]:
    """Return a picture for each published mask in PNG."""
    if pipeline.mask != "png":
        return {}
    return {
        "_".join(filter(None, (outcome, "mask"))): {
            "p": "image",
            "name": " ".join(filter(None, (pipeline.name, outcome, "mask"))),
            "image_topic": topics.mask(pipeline.name, outcome),
            "content_type": "image/png",
        }
        for outcome in pipeline.masks
    }


def _outcome(pipeline: PipelineOutput, title: str, said: str) -> dict[str, Component]:
    """Return the components of an outcome, found at `said` in the decision, without the topic."""
    match pipeline.kind:
        case "classification":
            return {"class": _class(pipeline, title, said), "score": _number(f"{title} score", f"{said}.score")}
        case "anomaly":
            return {"anomaly": _anomaly(title, said), "score": _number(f"{title} score", f"{said}.score")}
        case "regression":
            return {
                f"value_{value.name}": {
                    "p": "sensor",
                    "name": f"{title} {value.name}",
                    "state_class": "measurement",
                    "value_template": _known(f"{said}['values'][{value.name!r}]"),
                    **({"unit_of_measurement": value.unit} if value.unit else {}),
                }
                for value in pipeline.values
            }
        case "detection":
            return _presences(pipeline, title, said)
        case "multilabel":
            return {"labels": _listed(title, said)}
        case "embedding" if pipeline.referenced:
            nearest = {"p": "sensor", "name": title, "value_template": _known(f"{said}.decision or 'none'")}
            distance = _number(f"{title} distance", f"{said}.distance")
            return {"nearest": nearest, "anomaly": _anomaly(title, said), "distance": distance}
        case "keypoints":
            visible = {
                "p": "binary_sensor",
                "name": title,
                "device_class": "occupancy",
                "value_template": _known(f"('ON' if {said}.visible else 'OFF')"),
            }
            return {"visible": visible, "score": _number(f"{title} score", f"{said}.score")}
        case "segmentation":
            shares = {
                f"share_{index}": _number(f"{title} {label}", f"{said}.shares.get({label!r}, 0)", unit="%")
                for index, label in enumerate(pipeline.labels[:MAX_SHARES])
            }
            return {"labels": _listed(title, said), **shares}
    return {}


def _presences(pipeline: PipelineOutput, title: str, said: str) -> dict[str, Component]:
    """Return presence and number of each label in each zone, or of many labels a list and a number for each zone."""
    found: dict[str, Component] = {}
    many = len(pipeline.zones) * len(pipeline.labels) > MAX_PRESENCES
    for zone in pipeline.zones:
        place = title if len(pipeline.zones) == 1 else f"{title} {zone}"
        present, counts = f"{said}.present[{zone!r}]", f"{said}.counts[{zone!r}]"
        if many:
            words = _known(f"{present} | join(', ') | truncate(250) or 'nothing'")
            found[f"labels_{zone}"] = {"p": "sensor", "name": place, "value_template": words}
            found[f"count_{zone}"] = _count(f"{place} count", f"{counts}.values() | sum")
            continue
        for label in pipeline.labels:
            name = _free(found, "", f"{zone}_{_SIGNS.sub('_', label)}")
            word = ascii(label)  # Jinja knows the escapes of Python
            found[name] = {
                "p": "binary_sensor",
                "name": f"{place} {label}",
                "device_class": "occupancy",
                "value_template": _known(f"('ON' if {word} in {present} else 'OFF')"),
            }
            found[f"{name}_count"] = _count(f"{place} {label} count", f"{counts}[{word}] | default(0)")
    return found


def _count(name: str, expression: str) -> Component:
    return {"p": "sensor", "name": name, "state_class": "measurement", "value_template": _known(expression)}


def _known(expression: str) -> str:
    """Return a template for `expression`, or for an unknown value while the message is empty, without a decision."""
    return f"{{% set said = {_SAID} %}}{{{{ {expression} if said else '{_UNKNOWN}' }}}}"


def _class(pipeline: PipelineOutput, title: str, said: str) -> Component:
    component: Component = {"p": "sensor", "name": title, "value_template": _known(f"{said}.decision or 'none'")}
    options = list(dict.fromkeys([*pipeline.labels, "none"]))
    if 1 < len(options) <= MAX_OPTIONS:
        component |= {"device_class": "enum", "options": options}
    return component


def _listed(title: str, said: str) -> Component:
    labels = f"(({said}.decisions | join(', '))[:{MAX_STATE}] or 'none')"
    return {"p": "sensor", "name": title, "value_template": _known(labels)}


def _anomaly(title: str, said: str) -> Component:
    return {
        "p": "binary_sensor",
        "name": f"{title} anomaly",
        "device_class": "problem",
        "value_template": _known(f"('ON' if {said}.anomalous else 'OFF')"),
    }


def _number(name: str, value: str, unit: str = "") -> Component:
    return {
        "p": "sensor",
        "name": name,
        "state_class": "measurement",
        "suggested_display_precision": 2,
        "value_template": _known(value),
        **({"unit_of_measurement": unit} if unit else {}),
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
