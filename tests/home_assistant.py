"""Home Assistant's view of a device: MQTT discovery, availability and templates, in Home Assistant's template language.

Only rules needed by announcements are modelled; tests/end_to_end/test_home_assistant.py compares them with the real
program. An entity is `unavailable` unless all its availability topics hold "online", and `unknown` before the first
value.
"""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment

_TEMPLATES = Environment(autoescape=False)
_SHARED = ("availability", "availability_mode")


class HomeAssistant:
    """Receiver of messages in order of arrival; `states` are by entity, `history` holds each change."""

    def __init__(self, prefix: str = "homeassistant") -> None:
        self._prefix = prefix
        self._entities: dict[tuple[str, str], _Entity] = {}
        self._retained: dict[str, bytes] = {}
        self.history: list[tuple[str, str]] = []

    def hear(self, topic: str, payload: bytes) -> None:
        """Receive a retained message: a new entity gets the last message of each topic."""
        before = self.states
        self._retained[topic] = payload
        words = topic.split("/")
        if words[:2] == [self._prefix, "device"] and words[-1] == "config":
            self._discover(words[2], payload)
        else:
            for entity in self._entities.values():
                entity.hear(topic, payload)
        self.history += sorted(self.states.items() - before.items())

    @property
    def states(self) -> dict[str, str]:
        """Return the state of each entity, by component name, of all devices together."""
        return {component: entity.state for (_, component), entity in self._entities.items()}

    def _discover(self, device: str, payload: bytes) -> None:
        announced = json.loads(payload) if payload else {"cmps": {}}
        shared = {key: announced[key] for key in _SHARED if key in announced}
        for name, component in announced["cmps"].items():
            if "unique_id" not in component:
                self._entities.pop((device, name), None)
            elif (device, name) not in self._entities:
                entity = self._entities[device, name] = _Entity(shared | component)
                for topic, retained in self._retained.items():
                    entity.hear(topic, retained)
        if not payload:
            self._entities = {key: entity for key, entity in self._entities.items() if key[0] != device}


class _Entity:
    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._available = dict.fromkeys((each["topic"] for each in config["availability"]), False)
        self._value = "unknown"

    @property
    def state(self) -> str:
        there = all if self._config.get("availability_mode") == "all" else any
        return self._value if there(self._available.values()) else "unavailable"

    def hear(self, topic: str, payload: bytes) -> None:
        for each in self._config["availability"]:
            if each["topic"] == topic:
                self._available[topic] = _render(each["value_template"], payload) == "online"
        if topic == self._config["state_topic"]:
            value = _render(self._config["value_template"], payload)
            options = self._config.get("options")
            assert value == "None" or not options or value in options, f"{value} is none of {options}"
            value = {"ON": "on", "OFF": "off"}.get(value, value) if self._config["p"] == "binary_sensor" else value
            self._value = "unknown" if value == "None" else value


def _render(template: str, payload: bytes) -> str:
    text = payload.decode()
    variables: dict[str, Any] = {"value": text}
    try:
        variables["value_json"] = json.loads(text)
    except ValueError:
        pass
    return _TEMPLATES.from_string(template).render(variables)
