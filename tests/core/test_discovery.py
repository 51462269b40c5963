from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core import discovery
from edged.core.description import Description, PipelineOutput, Value
from edged.core.topics import Topics
from tests.home_assistant import HomeAssistant

MOTION = PipelineOutput("motion", "classification", labels=("walking", "resting"))
TANK = PipelineOutput("tank", "regression", values=(Value("level", "m"), Value("count")))
PUMP = PipelineOutput("pump", "anomaly")
UNKNOWN = PipelineOutput("motion", "unknown")


def describe(*pipelines: PipelineOutput) -> Description:
    return Description(topics=Topics("edged", "board"), version="1.0", pipelines=pipelines, sources=("imu",))


def test_where_it_goes() -> None:
    assert discovery.topic("homeassistant", "board") == "homeassistant/device/edged_board/config"
    assert discovery.status_topic("homeassistant") == "homeassistant/status"


def test_the_device_and_when_it_is_there() -> None:
    message = discovery.announcement(describe(), {})

    assert message["dev"]["identifiers"] == ["edged_board"]
    assert message["o"] == {"name": "edged", "sw_version": "1.0"}
    [availability] = message["availability"]
    assert availability["topic"] == "edged/board/availability"
    assert "'offline'" in availability["value_template"]  # for "stopped" too, unknown to Home Assistant


def test_a_classification_has_a_class_a_score_and_a_health() -> None:
    components = discovery.components(describe(MOTION))

    assert set(components) == {
        "state",
        "source_imu_problem",
        "pipeline_motion_class",
        "pipeline_motion_score",
        "pipeline_motion_problem",
    }
    label = components["pipeline_motion_class"]
    assert label["state_topic"] == "edged/board/pipelines/motion/decision"
    assert label["options"] == ["walking", "resting", "none"]
    assert components["pipeline_motion_score"]["state_topic"] == "edged/board/pipelines/motion/decision"
    health = components["pipeline_motion_problem"]
    assert (health["p"], health["device_class"]) == ("binary_sensor", "problem")
    assert health["state_topic"] == "edged/board/pipelines/motion/state"


def test_what_a_pipeline_says_is_there_only_while_device_pipeline_and_source_are() -> None:
    motion = PipelineOutput("motion", "classification", labels=("walking",), source="imu")
    components = discovery.components(describe(motion))
    label = components["pipeline_motion_class"]

    assert label["availability_mode"] == "all"
    assert [each["topic"] for each in label["availability"]] == [
        "edged/board/availability",
        "edged/board/pipelines/motion/state",
        "edged/board/sources/imu/state",
    ]
    assert "availability" not in components["pipeline_motion_problem"]  # reports the failure of the source


def test_what_goes_to_no_broker_is_no_entity_that_is_never_known() -> None:
    quiet = PipelineOutput("motion", "classification", labels=("walking",), published=False)

    assert set(discovery.components(describe(quiet))) == {"state", "source_imu_problem", "pipeline_motion_problem"}


def test_a_thousand_labels_are_not_listed() -> None:
    many = PipelineOutput("birds", "classification", labels=tuple(f"bird {number}" for number in range(1000)))
    label = discovery.components(describe(many))["pipeline_birds_class"]

    assert "options" not in label
    assert "device_class" not in label


def test_a_regression_has_a_sensor_for_each_value() -> None:
    components = discovery.components(describe(TANK))

    level = components["pipeline_tank_value_level"]
    assert level["unit_of_measurement"] == "m"
    assert "unit_of_measurement" not in components["pipeline_tank_value_count"]


def test_names_that_run_together_make_no_entity_of_two() -> None:
    tank = PipelineOutput("tank", "regression", values=(Value("score"), Value("problem")))
    wave = PipelineOutput("tank_value", "anomaly")
    alone = len(discovery.components(describe())) + 3 + 3
    components = discovery.components(describe(tank, wave))
    assert len(components) == alone
    assert components["pipeline_tank_value_score"]["name"] == "tank score"
    assert components["pipeline_tank_value_.score"]["name"] == "tank_value score"
    assert len({component["unique_id"] for component in components.values()}) == alone


def test_an_anomaly_has_a_problem_and_a_score() -> None:
    components = discovery.components(describe(PUMP))

    assert components["pipeline_pump_anomaly"]["p"] == "binary_sensor"
    assert components["pipeline_pump_score"]["p"] == "sensor"


def test_a_detection_has_a_presence_and_a_count_for_each_zone_and_label() -> None:
    gate = PipelineOutput("gate", "detection", labels=("person", "traffic light"), zones=("door", "street"))
    components = discovery.components(describe(gate))

    assert {name for name in components if name.startswith("pipeline_gate")} == {
        "pipeline_gate_problem",
        *(f"pipeline_gate_{zone}_{label}{end}" for zone in ("door", "street") for label in ("person", "traffic_light")
          for end in ("", "_count")),
    }  # fmt: skip
    present = components["pipeline_gate_door_traffic_light"]
    assert (present["p"], present["device_class"], present["name"]) == (
        "binary_sensor",
        "occupancy",
        "gate door traffic light",
    )


def test_of_many_labels_a_detection_has_a_list_for_each_zone() -> None:
    many = tuple(f"label {number}" for number in range(80))
    components = discovery.components(describe(PipelineOutput("gate", "detection", labels=many, zones=("picture",))))

    assert {name for name in components if name.startswith("pipeline_gate")} == {
        "pipeline_gate_problem",
        "pipeline_gate_labels_picture",
        "pipeline_gate_count_picture",
    }


def test_labels_that_differ_by_a_sign_are_two_entities() -> None:
    gate = PipelineOutput("gate", "detection", labels=("a b", "a'b", "\U0001f600"), zones=("picture",))
    components = discovery.components(describe(gate))

    names = [each["name"] for name, each in components.items() if each["p"] == "binary_sensor" and "a" in name]
    assert {"gate a b", "gate a'b", "gate \U0001f600"} <= set(names)


def test_a_model_with_an_accelerator_has_a_problem_sensor_for_it() -> None:
    gait = Description(topics=Topics("edged", "board"), version="1.0", models=("gait", "tank"), accelerated=("gait",))
    components = discovery.components(gait)

    assert [name for name in components if "accelerator" in name] == ["accelerator_gait_problem"]
    problem = components["accelerator_gait_problem"]
    assert (problem["p"], problem["device_class"]) == ("binary_sensor", "problem")
    assert problem["state_topic"] == problem["json_attributes_topic"] == "edged/board/models/gait/accelerator"
    assert "('degraded', 'quarantined', 'failed')" in problem["value_template"]


def test_unique_ids_are_unique_among_devices() -> None:
    components = discovery.components(describe(MOTION, TANK, PUMP))

    assert all(component["unique_id"] == f"edged_board_{name}" for name, component in components.items())


def test_what_is_no_longer_there_is_sent_once_with_nothing_but_its_platform() -> None:
    before = discovery.announced(json.dumps(discovery.announcement(describe(MOTION, PUMP), {})).encode())
    first = discovery.announcement(describe(MOTION), before)
    after = discovery.announced(json.dumps(first).encode())
    second = discovery.announcement(describe(MOTION), after)

    assert first["cmps"]["pipeline_pump_anomaly"] == {"p": "binary_sensor"}
    assert first["cmps"]["pipeline_pump_score"] == {"p": "sensor"}
    assert not [name for name in second["cmps"] if "pump" in name]


def test_a_model_that_cannot_be_read_costs_its_pipeline_no_entities() -> None:
    before = discovery.announced(json.dumps(discovery.announcement(describe(MOTION), {})).encode())
    message = discovery.announcement(describe(UNKNOWN), before)

    assert "pipeline_motion_problem" in message["cmps"]
    assert "pipeline_motion_class" not in message["cmps"]  # neither described nor removed


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"{}",
        b'{"cmps": 1}',
        b'{"cmps": {"a": {}}}',
        b"\xff",
        b'{"cmps": {"\xff": {}}}',
        b'{"x": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    ],
)
def test_a_retained_message_that_is_not_ours_is_nothing(message: bytes) -> None:
    assert discovery.announced(message) == {}


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_any_json_whatever_is_survived(value: object) -> None:
    assert isinstance(discovery.announced(msgspec.json.encode({"cmps": value})), dict)


@pytest.mark.parametrize("name", ["level", "it's", 'a "b"', "back\\slash", "}} {{ x", "größe"])
def test_a_value_of_any_name_is_shown_and_is_unknown_while_nothing_is_decided(name: str) -> None:
    tank = PipelineOutput("tank", "regression", values=(Value(name),), source="imu")
    home = HomeAssistant()
    home.hear(
        discovery.topic("homeassistant", "board"), json.dumps(discovery.announcement(describe(tank), {})).encode()
    )
    for topic in ("pipelines/tank/state", "sources/imu/state"):
        home.hear(f"edged/board/{topic}", b'{"state": "running"}')
    assert home.states[f"pipeline_tank_value_{name}"] == "unavailable"
    home.hear("edged/board/availability", b"online")
    assert home.states[f"pipeline_tank_value_{name}"] == "unknown"
    home.hear("edged/board/pipelines/tank/decision", json.dumps({"values": {name: 21.4}}).encode())
    assert home.states[f"pipeline_tank_value_{name}"] == "21.4"
    home.hear("edged/board/pipelines/tank/decision", b"")
    assert home.states[f"pipeline_tank_value_{name}"] == "unknown"
    home.hear("edged/board/availability", b"stopped")
    assert home.states[f"pipeline_tank_value_{name}"] == "unavailable"


def home_with(gate: PipelineOutput) -> HomeAssistant:
    """A Home Assistant that knows the device, which is online, and whose parts run."""
    home = HomeAssistant()
    home.hear(
        discovery.topic("homeassistant", "board"), json.dumps(discovery.announcement(describe(gate), {})).encode()
    )
    for topic in ("pipelines/gate/state", "sources/imu/state"):
        home.hear(f"edged/board/{topic}", b'{"state": "running"}')
    home.hear("edged/board/availability", b"online")
    return home


@pytest.mark.parametrize("label", ["person", "traffic light", "a'b\\\"c", "}} %}", "Tür", "\U0001f600"])
def test_home_assistant_shows_presence_and_count_of_any_label(label: str) -> None:
    gate = PipelineOutput("gate", "detection", labels=(label,), zones=("door",), source="imu")
    home = home_with(gate)
    (present,) = [name for name in home.states if name.startswith("pipeline_gate_door") and "_count" not in name]
    for found, count in (([label], 2), ([], 0)):
        counts = {"door": {label: count} if count else {}}
        decision = {"present": {"door": found}, "counts": counts}
        home.hear("edged/board/pipelines/gate/decision", json.dumps(decision).encode())
        assert home.states[present] == ("on" if found else "off")
        assert home.states[f"{present}_count"] == str(count)
    home.hear("edged/board/pipelines/gate/decision", b"")
    assert home.states[present] == home.states[f"{present}_count"] == "unknown"


def test_home_assistant_shows_a_list_of_many_labels() -> None:
    many = tuple(f"label {number}" for number in range(80))
    gate = PipelineOutput("gate", "detection", labels=many, zones=("picture",), source="imu")
    home = home_with(gate)
    said = {"present": {"picture": ["label 1", "label 7"]}, "counts": {"picture": {"label 1": 2, "label 7": 1}}}
    home.hear("edged/board/pipelines/gate/decision", json.dumps(said).encode())
    assert home.states["pipeline_gate_labels_picture"] == "label 1, label 7"
    assert home.states["pipeline_gate_count_picture"] == "3"
    home.hear("edged/board/pipelines/gate/decision", b'{"present": {"picture": []}, "counts": {"picture": {}}}')
    assert home.states["pipeline_gate_labels_picture"] == "nothing"
