from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edged.core.asyncapi import document
from edged.core.description import Description, PipelineOutput, Value
from edged.core.topics import Topics

DESCRIPTION = Description(
    topics=Topics("edged", "board"),
    version="1.0",
    broker="broker:8883",
    tls=True,
    pipelines=(
        PipelineOutput("motion", "classification", labels=("walking", "resting")),
        PipelineOutput("tank", "regression", values=(Value("level", "m"),)),
        PipelineOutput("pump", "anomaly"),
        PipelineOutput("gate", "detection", labels=("person", "car"), zones=("door", "street")),
        PipelineOutput("broken", "unknown"),
    ),
    sources=("imu",),
    models=("gait", "tank"),
    accelerated=("gait",),
)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def look_up(found: Any, reference: str) -> Any:
    for key in reference.removeprefix("#/").split("/"):
        found = found[key]
    return found


def test_every_topic_is_a_channel() -> None:
    addresses = {channel["address"] for channel in document(DESCRIPTION)["channels"].values()}

    assert addresses == {
        "edged/board/availability",
        "edged/board/state",
        "edged/board/sources/imu/state",
        "edged/board/models/gait/state",
        "edged/board/models/gait/update",
        "edged/board/models/gait/accelerator",
        "edged/board/models/tank/state",
        "edged/board/models/tank/update",
        *(f"edged/board/pipelines/{name}/{leaf}" for name in ("motion", "tank", "pump", "gate", "broken")
          for leaf in ("state", "result", "decision")),
    }  # fmt: skip


def test_only_results_are_not_retained() -> None:
    operations = document(DESCRIPTION)["operations"]
    fleeting = {name for name, operation in operations.items() if not operation["bindings"]["mqtt"]["retain"]}

    assert fleeting == {f"send_result_{name}" for name in ("motion", "tank", "pump", "gate", "broken")}


def test_what_goes_to_no_broker_has_no_channel() -> None:
    quiet = Description(
        topics=Topics("edged", "board"), version="1.0", pipelines=(PipelineOutput("x", "anomaly", published=False),)
    )

    assert set(document(quiet)["channels"]) == {"availability", "state", "pipeline_x"}


def test_every_reference_leads_somewhere_and_it_is_all_json() -> None:
    found = document(DESCRIPTION)

    assert json.loads(json.dumps(found)) == found
    assert len([look_up(found, reference) for reference in references(found)]) > 10


def test_results_are_narrowed_to_the_pipelines_own_labels_and_values() -> None:
    channels = document(DESCRIPTION)["channels"]

    assert channels["result_motion"]["messages"]["message"]["payload"] == {
        "allOf": [
            {"$ref": "#/components/schemas/ClassificationResult"},
            {"properties": {"label": {"enum": ["walking", "resting"]}}},
        ]
    }
    tank = channels["result_tank"]["messages"]["message"]["payload"]["allOf"][1]["properties"]["values"]
    assert tank == {"properties": {"level": {"type": "number", "description": "in m"}}, "required": ["level"]}


def test_the_schemas_are_those_of_the_records() -> None:
    schemas = document(DESCRIPTION)["components"]["schemas"]

    assert schemas["ClassificationResult"]["properties"]["schema"] == {"enum": ["edged.result/1"]}
    assert "synchronised" in schemas["AnomalyResult"]["required"]
    states = ["accelerated", "cpu", "degraded", "quarantined"]
    assert schemas["AcceleratorState"]["properties"]["state"]["enum"] == states
    assert schemas["State"]["properties"]["state"]["enum"] == ["degraded", "failed", "running", "starting", "stopped"]


def test_the_broker_is_a_server_if_there_is_one() -> None:
    assert document(DESCRIPTION)["servers"] == {"broker": {"host": "broker:8883", "protocol": "secure-mqtt"}}
    assert "servers" not in document(Description(topics=Topics("edged", "board"), version="1.0"))


def test_a_detection_has_members_for_each_zone() -> None:
    channels = document(DESCRIPTION)["channels"]
    base, narrowed = channels["result_gate"]["messages"]["message"]["payload"]["allOf"]

    assert base == {"$ref": "#/components/schemas/DetectionResult"}
    present, counts = narrowed["properties"]["present"], narrowed["properties"]["counts"]
    assert present["required"] == counts["required"] == ["door", "street"]
    assert present["properties"]["door"] == {"type": "array", "items": {"enum": ["person", "car"]}}
    assert set(counts["properties"]["street"]["properties"]) == {"person", "car"}
