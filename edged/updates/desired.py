"""Desired versions: named by a retained MQTT message, or by a URL in the configuration that is polled.

A desired version is a hint where to look, and trusted for nothing else: the file found there is checked, tried and
watched like any other. A version that serves already is not fetched again, as the head of a container or a delta names
the version. A bare .tflite file (so named in the URL's path) has no such head: a message must state its version, and
the configuration, whose URL is polled, may not name one.

A desired version stands until another replaces it, and is polled whatever the last attempt came to, since a server that
is down may be back later. Many boards hear the same message, or get their power back, at one moment, so polls are
spread in time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from edged.core.manifest import Digest, Version
from edged.models.bare_file import Bare, names_bare
from edged.transfer.http_response import MAX_URL, FetchError, mask, parse_url
from edged.updates.jobs import Event, InstallOptions, Job, Wanted

MAX_DESIRED_BYTES = 8192

FIRST_SECONDS = 60.0
"""Longest time, in seconds, to the first poll."""

log = logging.getLogger("edged.models")


class DesiredVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of .../models/<name>/desired: the place to look for another version. Unknown fields are ignored.

    Keys:
        url: Address of a bundle, a delta or a .tflite file.
        digest: SHA-256 of the manifest, or of a .tflite file; nothing is fetched where that version serves, and nothing
            else is taken.
        version: Number of the version; nothing is fetched where it serves, and no other is taken. A .tflite file needs
            this key, and becomes that version.
        spread (s): Time over which the boards of a fleet share out their first look. The moment of one board is always
            the same for one digest.
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
            raise ValueError("a bare .tflite file does not state its version: add one")

    @property
    def wanted(self) -> Wanted:
        """The version that the file must have."""
        return Wanted(self.digest or "", "" if names_bare(self.url) else self.version or "")

    def delay(self, device: str) -> float:
        """Return how many of the `spread` seconds a device waits."""
        seed = hashlib.sha256(f"{device} {self.digest or self.url}".encode()).digest()
        return self.spread * int.from_bytes(seed[:6], "big") / 2**48


def first_pause(every: float, chance: float) -> float:
    """Return the seconds to the first of polls that come `every` so many seconds; `chance` is in [0, 1)."""
    return chance * min(FIRST_SECONDS, every / 10)


def pause(every: float, chance: float) -> float:
    """Return the seconds between two polls, `every` on average, so that boards do not stay in step."""
    return every * (0.75 + chance / 2)


class VersionFetcher(Protocol):
    """Fetches versions."""

    def fetch(self, url: str, options: InstallOptions, model: str, wanted: Wanted) -> Job:
        """Fetch and install a version of a model. Raises EdgedError if that is refused now."""

    def desired_job(self, model: str) -> Job | None:
        """Return the fetch of a desired version of this model that is under way, if there is one."""


class ModelLookup(Protocol):
    """Tells which models there are, and what serves."""

    def knows(self, model: str) -> bool:
        """Return whether this model is configured."""

    def has(self, model: str, desired: DesiredVersion) -> bool:
        """Return whether the desired version serves already."""


class DesiredVersionPoller:
    """Has the desired versions of `models` fetched. `publish` is called with each that cannot be. On the event loop.

    The version of a message is polled before the URL in the configuration. `chance()` returns numbers from 0 to 1, by
    which polls are spread.
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
        """Take a message over. An empty one withdraws the desired version, but not a fetch that has begun."""
        found = re.search(r"/models/([a-z0-9][a-z0-9_-]{0,63})/desired\Z", topic)
        if found is None:
            return
        name = found[1]
        if not payload:
            self._messages.pop(name, None)
            return
        if not self._models.knows(name):  # nothing is published, or any author could fill the broker with states
            log.warning("%s is for a model that is not configured here", topic)
            return
        try:
            if len(payload) > MAX_DESIRED_BYTES:
                raise ValueError(f"{len(payload)} bytes, and at most {MAX_DESIRED_BYTES} are allowed")
            desired = msgspec.json.decode(payload, type=DesiredVersion)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            text = f"invalid message on .../models/{name}/desired: {error} (send JSON with a url and a digest)"
            self._report(name, "refused", text)
            return
        delay = desired.delay(self._device)
        if desired == self._messages.get(name):  # a broker repeats it at each connection, and to all boards at once
            if name in self._due:
                return
            delay = max(delay, first_pause(self._every, self._chance()))
        if delay >= 1:
            log.info("looking for %s at %s in %.0f s", name, mask(desired.url), delay, extra={"model": name})
        self._messages[name] = desired
        self._schedule(name, delay)

    def configure(self, urls: Mapping[str, str], every: float, device: str) -> None:
        """Poll these URLs, by model, and the versions of messages, soon and then every so many seconds."""
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
        """Poll at the moment `due` and at intervals, as long as there is a desired version of this model."""
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
        """Have a version fetched, unless it serves, and wait for the end.

        A bare file that was judged once is left alone, since all of it would be fetched again to learn its version.
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
