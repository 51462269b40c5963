"""This device at the broker: retained topics, the announcement to Home Assistant, and boards with the same name.

`BrokerPresence` records each topic before the first message (announced.py), and clears the topics of former
configurations. Another board of the same name is reported in the state of the broker's connection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edged.app.announced import Announced
from edged.app.state import ServiceState
from edged.config.check import describe
from edged.config.options import Config
from edged.core.description import Description, retained
from edged.core.record import state_boot
from edged.core.topics import ONLINE

if TYPE_CHECKING:  # imported for Home Assistant
    from edged.outbox.announcer import Announcer

KEEP_SECONDS = 1.0
"""Time to wait until recorded topics are on disk."""

RETAINED_SECONDS = 60.0
"""Time to report another board of this name after a state retained by the broker."""

NAMESAKE_SECONDS = 600.0
"""Time to report another board of this name after a newly published state."""

REPUBLISH_SECONDS = 2.0
"""Delay before all messages are published again, until a board of the same name has cleared its topics."""


class BrokerPresence:
    """The topics and the announcement of this device, from `start` to `reset` under the same name and broker."""

    def __init__(self, state: ServiceState, announced: Announced) -> None:
        self._state = state
        self._announced = announced
        self._announcer: Announcer | None = None
        self._described: tuple[Description, Announcer | None] | None = None

    def start(self) -> None:
        """Begin to announce the device to Home Assistant, if configured."""
        state, announced = self._state, self._announced
        mqtt, name = state.config.mqtt, state.config.device.name
        if mqtt.home_assistant:
            from edged.core import discovery
            from edged.outbox.announcer import Announcer

            known = announced.components if discovery.topic(mqtt.discovery_prefix, name) in announced.topics else {}
            self._announcer = Announcer(mqtt.discovery_prefix, name, state.publisher, known)

    def subscribe(self) -> None:
        """Receive the states of other boards with this name."""
        publisher, topics = self._state.publisher, self._state.topics
        publisher.subscribe(topics.state, self._receive_state)
        publisher.subscribe(topics.availability, self._receive_availability)

    def announce(self) -> None:
        """Record the topics, clear the topics of former configurations, and announce to Home Assistant.

        Call again from time to time: the announcement depends on the serving versions. An unchanged announcement is
        not repeated.
        """
        state = self._state
        manifests = {name: part.bundle.manifest if part.bundle else None for name, part in state.models.items()}
        description = describe(state.config, manifests)
        if (description, self._announcer) == self._described:
            return
        self._described = description, self._announcer
        topics = retained(description)
        if self._announcer:
            topics.add(self._announcer.topic)
        over = self._announced.expect(state.publisher.broker, topics) if state.publisher.broker else set()
        ours = {topic for topic in over if not topic.endswith("/config")}
        for topic in over - ours:
            state.publisher.forget_state(topic)
        if self._announcer:
            self._announcer.announce(description)
            for pipeline in description.pipelines:  # Home Assistant has rejected states not yet announced
                state.publisher.repeat_state(state.topics.decision(pipeline.name))
        for topic in ours:  # after Home Assistant has unsubscribed
            state.publisher.forget_state(topic)

    def settle(self) -> None:
        """Remove topics from the record after the broker has cleared them."""
        components = self._announcer.known if self._announcer else self._announced.components
        self._announced.settle(self._state.publisher.is_clear, components)

    def flush(self) -> None:
        """Wait until the record is on disk, for KEEP_SECONDS at most."""
        self._announced.flush(KEEP_SECONDS)

    def reset(self, new: Config) -> None:
        """Prepare for another name or broker. All topics at an abandoned broker are cleared."""
        state = self._state
        if new.mqtt.broker != state.config.mqtt.broker:
            for topic in self._announced.topics - {state.topics.availability}:
                state.publisher.forget_state(topic)
        self._announcer = None

    def _receive_state(self, topic: str, payload: bytes, is_retained: bool) -> None:
        """Report the state of another board with this name. Called on the publisher's thread."""
        boot = state_boot(payload)
        if not boot or boot in self._announced.boots:
            return
        state = self._state
        name = state.config.device.name
        state.namesake, state.namesake_at = boot, time.monotonic()
        reason = f"another board is named {name!r} too (boot {boot})"
        hint = "give each board another name in [device]; after a change of SD card, wait a minute"
        state.publisher.degrade(reason, hint, RETAINED_SECONDS if is_retained else NAMESAKE_SECONDS)

    def _receive_availability(self, topic: str, payload: bytes, is_retained: bool) -> None:
        """Publish all messages again after a board with this name has left. Called on the publisher's thread."""
        if not is_retained and payload != ONLINE:
            self._state.publisher.repeat_states(REPUBLISH_SECONDS)
