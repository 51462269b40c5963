"""Clear the retained messages of a device that will never come back, such as a board with a dead SD card.

A broker reports neither the end of its retained messages, nor a message refused by its access rules. The functions
below therefore listen until the broker is quiet, and count a topic as cleared once its empty message arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from edged.api import ControlError
from edged.config.options import DEVICE_NAMES, DeviceName
from edged.core import discovery
from edged.core.topics import ONLINE, Topics
from edged.outbox.publisher import Publisher

QUIET_SECONDS = 2.0
MAX_TOPICS = 10_000

Heard = asyncio.Queue[tuple[str, bytes]]


async def forget_device(publisher: Publisher, topics: Topics, discovery_prefix: str) -> list[str]:
    """Clear a device's retained messages, and its announcement to Home Assistant. Returns the cleared topics.

    Raises:
        ControlError: the broker is not connected, the device is online, or the broker refuses to clear a topic.
    """
    if not publisher.connected:
        raise ControlError("the broker is not connected", hint="see the reason: edgectl status", retryable=True)
    patterns = (f"{topics.prefix}/{topics.device}/#", discovery.topic(discovery_prefix, topics.device))
    loop = asyncio.get_running_loop()
    heard: Heard = asyncio.Queue()

    def hear(topic: str, payload: bytes, is_retained: bool) -> None:
        if is_retained or not payload:  # the messages of an online device never end
            loop.call_soon_threadsafe(heard.put_nowait, (topic, payload))

    for pattern in patterns:
        publisher.subscribe(pattern, hear)
    try:
        found = {topic: payload async for topic, payload in _until_quiet(heard) if payload}
        if found.get(topics.availability) == ONLINE:
            raise ControlError(f"{topics.device!r} is online", hint="stop its daemon first, or give it another name")
        if not found:
            hint = f"check the name, and allow this board to read {patterns[0]} at the broker"
            raise ControlError(f"the broker retains nothing of a device {topics.device!r}", hint=hint)
        for topic in found:
            publisher.forget_state(topic)
        left = set(found)
        async for topic, payload in _until_quiet(heard):
            if not payload:
                left.discard(topic)
            if not left:
                return sorted(found)
    finally:
        for pattern in patterns:
            publisher.unsubscribe(pattern)
    hint = f"allow this board to publish these topics, or clear them yourself: mosquitto_pub -r -n -t {min(left)}"
    raise ControlError(f"the broker still retains {len(left)} of {len(found)} topics, such as {min(left)!r}", hint=hint)


async def _until_quiet(heard: Heard) -> AsyncIterator[tuple[str, bytes]]:
    """Yield messages until the broker is quiet for QUIET_SECONDS."""
    for _ in range(MAX_TOPICS):
        try:
            yield await asyncio.wait_for(heard.get(), QUIET_SECONDS)
        except TimeoutError:
            return


def parse_device(name: object, own: str) -> str:
    """Return the name of another device. Raises ControlError for an invalid name, and for this device."""
    try:
        device = msgspec.convert(name, DeviceName)
    except msgspec.ValidationError:
        raise ControlError(f"{name!r} is no device's name", hint=f"names are {DEVICE_NAMES}") from None
    if device == own:
        raise ControlError(
            f"{device!r} is this device, and would be announced again",
            hint="change the name in [device], or set home_assistant = false",
        )
    return device
