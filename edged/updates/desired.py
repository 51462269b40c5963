"""Desired versions: named by a retained MQTT message, or by a URL in the configuration, and polled.

A desired version is a hint and not trusted further: the file is checked, tried and watched like any other. A version
already in service is not fetched again, as the head of a container or a delta names the version. A bare .tflite file
(so named in the URL's path) has no such head: a message must state the version of a bare file, and the configuration
may not name a bare file.

A desired version stands until the next one, and is polled after failures, too, since a server may come back. Many
boards hear the same message, or get power back, at the same moment, so polls are spread in time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from edged.core.manifest_parts import Digest, Version
from edged.core.types import MAX_URL
from edged.models.bare_file import Bare
from edged.models.bundle import names_bare
from edged.system.later import hashlib
from edged.system.urls import FetchError, mask, parse_url
from edged.updates.jobs import Event, InstallOptions, Job, Wanted

MAX_DESIRED_BYTES = 8192
MAX_BRACKETS = 100
"""Opening brackets of a message: the depth that a JSON decoder refuses by itself depends on the version of Python."""

FIRST_SECONDS = 60.0
"""Longest time, in seconds, to the first poll."""

log = logging.getLogger("edged.models")


class DesiredVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of .../models/<name>/desired: the place to look for another version. Unknown fields are ignored.

    Keys:
        url: Address of a bundle, a delta or a .tflite file.
        digest: SHA-256 of the manifest, or of a .tflite file; a version in service is not fetched, and no other
            version is taken.
        version: Number of the version, likewise. A .tflite file needs this key, and becomes the version of this number.
        spread (s): Time over which the boards of a fleet share out the first look. The moment of each board is always
            the same for the same digest.
    """

    url: Annotated[str, Meta(max_length=MAX_URL, pattern=r"\A[!-~]+\Z")]  # printable, as the log shows it
    digest: Digest | None = None
    version: Version | None = None
    spread: Annotated[float, Meta(ge=0, le=30 * 86400)] = 0.0

    def __post_init__(self) -> None:
        try:
            parse_url(self.url)
        except FetchError as error:
            raise ValueError(error.message) from error
        if names_bare(self.url) and self.version is None:
            raise ValueError("a bare .tflite file has no version inside: add the key version")

    @property
    def wanted(self) -> Wanted:
        """The version required of the file."""
        return Wanted(self.digest or "", "" if names_bare(self.url) else self.version or "")

    def delay(self, device: str) -> float:
        """Return how many of the `spread` seconds a device waits."""
        seed = hashlib.sha256(f"{device} {self.digest or self.url}".encode()).digest()
        return self.spread * int.from_bytes(seed[:6], "big") / 2**48


def first_pause(every: float, chance: float) -> float:
    """Return the seconds to the first poll, for polls `every` so many seconds; `chance` is in [0, 1)."""
    return chance * min(FIRST_SECONDS, every / 10)


def pause(every: float, chance: float) -> float:
    """Return the seconds between two polls, `every` on average, to keep boards out of step."""
    return every * (0.75 + chance / 2)


class VersionFetcher(Protocol):
    """Fetches versions."""

    def fetch(self, url: str, options: InstallOptions, model: str, wanted: Wanted) -> Job:
        """Fetch and install a version of a model. Raises EdgedError for a refusal."""

    def desired_job(self, model: str) -> Job | None:
        """Return the present fetch of a desired version of the model, if any."""


class ModelLookup(Protocol):
    """Knows the configured models and the versions in service."""

    def knows(self, model: str) -> bool:
        """Return True for a configured model."""

    def has(self, model: str, desired: DesiredVersion) -> bool:
        """Return True if the desired version serves already."""


class DesiredVersionPoller:
    """Has the desired versions of `models` fetched. `publish` is called with each failure. On the event loop.

    The version of a message is polled before the URL in the configuration. `chance()` returns numbers from 0 to 1, to
    spread the polls.
    """

    def __init__(
        self,
        fetcher: VersionFetcher,
        models: ModelLookup,
        publish: Callable[[Event], None],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._fetcher = fetcher
        self._models = models
        self._publish = publish
        self._chance = chance
        self._device = ""
        self._every = 3600.0
        self._urls: Mapping[str, str] = {}
        self._messages: dict[str, DesiredVersion] = {}
        self._judged: dict[str, DesiredVersion] = {}
        self._due: dict[str, float] = {}
        self._rescheduled: set[str] = set()
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def receive(self, topic: str, payload: bytes) -> None:
        """Take over a message. An empty message withdraws the desired version, but not a fetch under way."""
        found = re.search(r"/models/([a-z0-9][a-z0-9_-]{0,63})/desired\Z", topic)
        if found is None:
            return
        name = found[1]
        if not payload:
            self._messages.pop(name, None)
            return
        if not self._models.knows(name):  # publish no state, or any author could fill the broker with states
            log.warning("%s names a model without configuration here", topic)
            return
        try:
            if len(payload) > MAX_DESIRED_BYTES:
                raise ValueError(f"{len(payload)} bytes, and at most {MAX_DESIRED_BYTES} are allowed")
            if payload.count(b"[") + payload.count(b"{") > MAX_BRACKETS:
                raise ValueError(f"more than {MAX_BRACKETS} opening brackets")
            desired = msgspec.json.decode(payload, type=DesiredVersion)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            text = f"invalid message on .../models/{name}/desired: {error} (send JSON with a url and a digest)"
            self._report(name, "refused", text)
            return
        delay = desired.delay(self._device)
        if desired == self._messages.get(
            name
        ):  # a broker repeats messages at each connection, and to all boards at once
            if name in self._due:
                return
            delay = max(delay, first_pause(self._every, self._chance()))
        if delay >= 1:
            log.info("looking for %s at %s in %.0f s", name, mask(desired.url), delay, extra={"model": name})
        self._messages[name] = desired
        self._schedule(name, delay)

    def configure(self, urls: Mapping[str, str], every: float, device: str) -> None:
        """Poll `urls`, by model, and the versions of messages, soon and then every so many seconds."""
        names = {*self._urls, *urls, *self._messages}
        self._urls, self._every, self._device = urls, every, device
        self._judged.clear()
        for name in names:
            waits = self._due.get(name, 0.0) - time.monotonic()
            self._schedule(name, max(waits, first_pause(every, self._chance())))

    async def run(self) -> None:
        """Poll until cancelled."""
        try:
            while True:
                for name in self._rescheduled:
                    if task := self._polls.pop(name, None):
                        task.cancel()
                    self._polls[name] = asyncio.create_task(self._poll(name, self._due[name]))
                self._rescheduled.clear()
                self._changed.clear()
                await self._changed.wait()
        finally:
            for task in self._polls.values():
                task.cancel()

    def _schedule(self, name: str, seconds: float) -> None:
        self._due[name] = time.monotonic() + seconds
        self._rescheduled.add(name)
        self._changed.set()

    async def _poll(self, name: str, due: float) -> None:
        """Poll at the moment `due` and at intervals, as long as the model has a desired version."""
        await asyncio.sleep(due - time.monotonic())
        if self._due.get(name) != due:  # rescheduled, and another task polls
            return
        del self._due[name]
        while desired := self._desired(name):
            for each, source in desired:
                await self._follow(name, each, source)
            await asyncio.sleep(pause(self._every, self._chance()))

    def _desired(self, name: str) -> list[tuple[DesiredVersion, Literal["mqtt", "config"]]]:
        found: list[tuple[DesiredVersion, Literal["mqtt", "config"]]] = []
        if name in self._messages and self._models.knows(name):
            found.append((self._messages[name], "mqtt"))
        if name in self._urls:
            found.append((DesiredVersion(url=self._urls[name]), "config"))
        return found

    async def _follow(self, name: str, desired: DesiredVersion, source: Literal["mqtt", "config"]) -> None:
        """Have a version fetched, unless already in service, and wait for the end.

        A bare file is judged only once, since only the whole file would show a change.
        """
        bare = Bare(model=name, version=desired.version) if names_bare(desired.url) else None
        try:
            if self._models.has(name, desired) or self._judged.get(name) == desired:
                return
            if source == "config" and (other := self._fetcher.desired_job(name)):
                await other.ended.wait()
            options = InstallOptions(origin=f"{source}: {mask(desired.url)}", bare=bare)
            job = self._fetcher.fetch(desired.url, options, name, desired.wanted)
        except Exception as error:  # no message may end the polls
            self._report(name, "failed", f"{mask(desired.url)} cannot be fetched: {error}")
            return
        log.info("looking for %s at %s", name, mask(desired.url), extra={"model": name, "step": "update.desired"})
        await job.ended.wait()
        if bare and job.fetched and job.state != "failed":
            self._judged[name] = desired

    def _report(self, name: str, outcome: Literal["refused", "failed"], text: str) -> None:
        self._publish(Event(id=f"update.{outcome}", model=name, text=text, time=time.monotonic(), outcome=outcome))
