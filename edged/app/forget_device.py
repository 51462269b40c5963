"""Clears what a broker retains of a device that will never come back, a board whose card died for instance.

A broker does not say when it has sent all that it retains, and need not say that a message was not let through. So this
listens until nothing has come for a while, and takes a topic for cleared when it hears the empty message itself.
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
    """Clear all that the broker retains under a device's topics, and its announcement to Home Assistant.

    Returns the topics that were cleared.

    Raises:
        ControlError: there is no connection, the device is online, or the broker does not let this board do that.
    """
    if not publisher.connected:
        raise ControlError("the broker is not connected", hint="see why: edgectl status", retryable=True)
    patterns = (f"{topics.prefix}/{topics.device}/#", discovery.topic(discovery_prefix, topics.device))
    loop = asyncio.get_running_loop()
    heard: Heard = asyncio.Queue()

    def hear(topic: str, payload: bytes, is_retained: bool) -> None:
        if is_retained or not payload:  # what a device says that is online would never be over
            loop.call_soon_threadsafe(heard.put_nowait, (topic, payload))

    for pattern in patterns:
        publisher.subscribe(pattern, hear)
    try:
        found = {topic: payload async for topic, payload in _until_quiet(heard) if payload}
        if found.get(topics.availability) == ONLINE:
            raise ControlError(f"{topics.device!r} is online", hint="stop its daemon first, or give it another name")
        if not found:
            hint = f"is the name right, and may this board read {patterns[0]} there?"
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
    hint = f"let this board publish there, or clear it by other means: mosquitto_pub -r -n -t {min(left)}"
    raise ControlError(f"the broker still retains {len(left)} of {len(found)} topics, {min(left)!r} for one", hint=hint)


async def _until_quiet(heard: Heard) -> AsyncIterator[tuple[str, bytes]]:
    """What comes, until nothing has for a while."""
    for _ in range(MAX_TOPICS):
        try:
            yield await asyncio.wait_for(heard.get(), QUIET_SECONDS)
        except TimeoutError:
            return


def named(name: object, own: str) -> str:
    """The name of another device. Raises ControlError for what is none."""
    try:
        device = msgspec.convert(name, DeviceName)
    except msgspec.ValidationError:
        raise ControlError(f"{name!r} is no device's name", hint=f"names are {DEVICE_NAMES}") from None
    if device == own:
        raise ControlError(
            f"{device!r} is this device, which would announce itself again",
            hint="to take it away, change its name in [device], or set home_assistant = false",
        )
    return device
