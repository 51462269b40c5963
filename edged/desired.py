"""What others wish would serve: a retained MQTT message, or a URL in the configuration that is looked at now and then.

A wish is a hint and trusted for nothing but where to look. Whatever is found there goes the way of every container,
and is refused, tried and watched like any other. What serves already is not fetched again: the head of a container, or
of a delta, says what it is, and the rest is left where it is. A bare .tflite file (the URL's path says so) has no such
head: a message must say its version, and the configuration, which is looked at again and again, may not name one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from edged.core.manifest import Digest, Version
from edged.models.answer import MAX_URL, mask
from edged.models.bare import Bare, names_bare
from edged.models.job import Event, Job, Options

MAX_WISH_BYTES = 8192

log = logging.getLogger("edged.models")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of .../models/<name>/desired. Fields that are not known here are left alone.

    With `digest`, the SHA-256 of the manifest, nothing is fetched where that version serves; with `version`, where that
    number serves. A bare file becomes that `version`.
    """

    url: Annotated[str, Meta(max_length=MAX_URL, pattern=r"\A[!-~]+\Z")]  # it is logged: no lines of its own in there
    digest: Digest | None = None
    version: Version | None = None

    def __post_init__(self) -> None:
        if names_bare(self.url) and self.version is None:
            raise ValueError("a bare .tflite file does not say its version: add one")


class Fetches(Protocol):
    """What is needed of the updates."""

    def fetch(self, url: str, options: Options, model: str = "") -> Job:
        """Fetch and install a version of a model. Raises EdgedError where that may not be now."""


class Models(Protocol):
    """What is needed of those who know the models."""

    def knows(self, model: str) -> bool:
        """Whether there is such a model."""

    def has(self, model: str, wish: Wish) -> bool:
        """Whether what is wished for serves already."""


class Desires:
    """Follows wishes for the `models` there are; `say` hears of those that cannot be followed. On the event loop."""

    def __init__(self, fetches: Fetches, models: Models, say: Callable[[Event], None]) -> None:
        self._fetches = fetches
        self._models = models
        self._say = say
        self._urls: Mapping[str, str] = {}
        self._every = 0.0
        self._changed = asyncio.Event()

    def hear(self, topic: str, payload: bytes) -> None:
        """A wish has come over MQTT; an empty one is taken back, and changes nothing."""
        found = re.search(r"/models/([a-z0-9][a-z0-9_-]{0,63})/desired\Z", topic)
        if found is None or not payload:
            return
        name = found[1]
        if not self._models.knows(name):  # nor is anything published of it, or anybody could fill the broker
            log.warning("%s is for a model that is not configured here", topic)
            return
        try:
            if len(payload) > MAX_WISH_BYTES:
                raise ValueError(f"it has {len(payload)} bytes, and {MAX_WISH_BYTES} are allowed")
            wish = msgspec.json.decode(payload, type=Wish)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._refuse(name, f"a desired message is not understood: {error} (send JSON with a url, best a digest)")
            return
        self._follow(name, wish, "mqtt")

    def look_at(self, urls: Mapping[str, str], every: float) -> None:
        """Look at these URLs, by model, now if they are others than before, and every so many seconds."""
        if (urls, every) != (self._urls, self._every):
            self._urls, self._every = urls, every
            self._changed.set()

    async def run(self) -> None:
        """Keep looking, until cancelled."""
        while True:
            self._changed.clear()
            for name, url in self._urls.items():
                self._follow(name, Wish(url=url), "config")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every if self._urls else None):
                    await self._changed.wait()

    def _follow(self, name: str, wish: Wish, who: str) -> None:
        if self._models.has(name, wish):
            return
        try:
            bare = Bare(model=name, version=wish.version) if names_bare(wish.url) else None
            self._fetches.fetch(wish.url, Options(origin=f"{who}: {mask(wish.url)}", bare=bare), name)
        except Exception as error:  # a wish must never be more than a wish
            self._refuse(name, f"{mask(wish.url)} cannot be fetched: {error}")
        else:
            log.info("looking for %s at %s", name, mask(wish.url), extra={"model": name, "step": "update.desired"})

    def _refuse(self, name: str, text: str) -> None:
        self._say(Event(id="update.refused", model=name, text=text, time=time.monotonic(), outcome="refused"))
