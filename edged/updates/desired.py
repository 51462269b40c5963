"""What others wish would serve: a retained MQTT message, or a URL in the configuration that is looked at now and then.

A wish is a hint and trusted for nothing but where to look. Whatever is found there goes the way of every container,
and is refused, tried and watched like any other. What serves already is not fetched again: the head of a container, or
of a delta, says what it is, and the rest is left where it is. A bare .tflite file (the URL's path says so) has no such
head: a message must say its version, and the configuration, which is looked at again and again, may not name one.

A wish stands until another takes its place, and is looked at every so often, whatever came of it the last time: a
server that is down, or a network that wants a log-in first, is back some day. Many boards hear the same message, or get
their power back, at one moment, so looks are spread in time.
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

MAX_WISH_BYTES = 8192

FIRST_SECONDS = 60.0

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

    url: Annotated[str, Meta(max_length=MAX_URL, pattern=r"\A[!-~]+\Z")]  # it is logged: no lines of its own in there
    digest: Digest | None = None
    version: Version | None = None
    spread: Annotated[float, Meta(ge=0, le=30 * 86400)] = 0.0

    def __post_init__(self) -> None:
        try:
            parse_url(self.url)
        except FetchError as error:
            raise ValueError(error.message) from error
        if names_bare(self.url) and self.version is None:
            raise ValueError("a bare .tflite file does not say its version: add one")

    @property
    def wanted(self) -> Wanted:
        """What may come of it."""
        return Wanted(self.digest or "", "" if names_bare(self.url) else self.version or "")

    def delay(self, device: str) -> float:
        """Return how many of the `spread` seconds a device waits."""
        seed = hashlib.sha256(f"{device} {self.digest or self.url}".encode()).digest()
        return self.spread * int.from_bytes(seed[:6], "big") / 2**48


def first_pause(every: float, chance: float) -> float:
    """Return the seconds to the first look, where looks are `every` so many; `chance` is in [0, 1)."""
    return chance * min(FIRST_SECONDS, every / 10)


def pause(every: float, chance: float) -> float:
    """Return the seconds between two looks, `every` on average: boards that began together do not go on so."""
    return every * (0.75 + chance / 2)


class VersionFetcher(Protocol):
    """What is needed of the updates."""

    def fetch(self, url: str, options: InstallOptions, model: str, wanted: Wanted) -> Job:
        """Fetch and install the version of a model that is wanted. Raises EdgedError where that may not be now."""

    def wish(self, model: str) -> Job | None:
        """Return the wish for a model that is being fetched, if there is one."""


class Models(Protocol):
    """What is needed of those who know the models."""

    def knows(self, model: str) -> bool:
        """Whether there is such a model."""

    def has(self, model: str, wish: DesiredVersion) -> bool:
        """Whether what is wished for serves already."""


class Desires:
    """Follows wishes for the `models` there are; `say` hears of those that cannot be followed. On the event loop.

    A wish that was heard is looked at before the URL in the configuration. `chance()` gives numbers from 0 to 1, for
    looks that are to come at no certain moment.
    """

    def __init__(
        self,
        fetches: VersionFetcher,
        models: Models,
        say: Callable[[Event], None],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._fetches = fetches
        self._models = models
        self._say = say
        self._chance = chance
        self._device = ""
        self._every = 3600.0
        self._urls: Mapping[str, str] = {}
        self._heard: dict[str, DesiredVersion] = {}
        self._judged: dict[str, DesiredVersion] = {}
        self._due: dict[str, float] = {}
        self._fresh: set[str] = set()
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()

    def hear(self, topic: str, payload: bytes) -> None:
        """A wish has come over MQTT; an empty one is taken back, and what has been begun for it goes on."""
        found = re.search(r"/models/([a-z0-9][a-z0-9_-]{0,63})/desired\Z", topic)
        if found is None:
            return
        name = found[1]
        if not payload:
            self._heard.pop(name, None)
            return
        if not self._models.knows(name):  # nor is anything published of it, or anybody could fill the broker
            log.warning("%s is for a model that is not configured here", topic)
            return
        try:
            if len(payload) > MAX_WISH_BYTES:
                raise ValueError(f"it has {len(payload)} bytes, and {MAX_WISH_BYTES} are allowed")
            wish = msgspec.json.decode(payload, type=DesiredVersion)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            text = f"a desired message is not understood: {error} (send JSON with a url, best a digest)"
            self._tell(name, "refused", text)
            return
        delay = wish.delay(self._device)
        if wish == self._heard.get(name):  # a broker says it again at each connection, and to all boards at once
            if name in self._due:
                return
            delay = max(delay, first_pause(self._every, self._chance()))
        if delay >= 1:
            log.info("looking for %s at %s in %.0f s", name, mask(wish.url), delay, extra={"model": name})
        self._heard[name] = wish
        self._look_in(name, delay)

    def look_at(self, urls: Mapping[str, str], every: float, device: str) -> None:
        """Look at these URLs, by model, and at all else that is wished for, soon and then every so many seconds."""
        names = {*self._urls, *urls, *self._heard}
        self._urls, self._every, self._device = urls, every, device
        self._judged.clear()
        for name in names:
            waits = self._due.get(name, 0.0) - time.monotonic()
            self._look_in(name, max(waits, first_pause(every, self._chance())))

    async def run(self) -> None:
        """Keep looking, until cancelled."""
        try:
            while True:
                for name in self._fresh:
                    if task := self._looking.pop(name, None):
                        task.cancel()
                    self._looking[name] = asyncio.create_task(self._look_after(name, self._due[name]))
                self._fresh.clear()
                self._news.clear()
                await self._news.wait()
        finally:
            for task in self._looking.values():
                task.cancel()

    def _look_in(self, name: str, seconds: float) -> None:
        self._due[name] = time.monotonic() + seconds
        self._fresh.add(name)
        self._news.set()

    async def _look_after(self, name: str, due: float) -> None:
        """Look when that is due, and then every so often, as long as there is a wish for this model."""
        await asyncio.sleep(due - time.monotonic())
        if self._due.get(name) != due:  # there is news already, and somebody else looks
            return
        del self._due[name]
        while wishes := self._wishes(name):
            for wish, who in wishes:
                await self._follow(name, wish, who)
            await asyncio.sleep(pause(self._every, self._chance()))

    def _wishes(self, name: str) -> list[tuple[DesiredVersion, Literal["mqtt", "config"]]]:
        found: list[tuple[DesiredVersion, Literal["mqtt", "config"]]] = []
        if name in self._heard and self._models.knows(name):
            found.append((self._heard[name], "mqtt"))
        if name in self._urls:
            found.append((DesiredVersion(url=self._urls[name]), "config"))
        return found

    async def _follow(self, name: str, wish: DesiredVersion, who: Literal["mqtt", "config"]) -> None:
        """Have a version fetched, unless it serves, and see it to its end.

        Of a bare file all would have to be fetched again to learn what it is: what was judged once is left alone.
        """
        bare = Bare(model=name, version=wish.version) if names_bare(wish.url) else None
        try:
            if self._models.has(name, wish) or self._judged.get(name) == wish:
                return
            if who == "config" and (other := self._fetches.wish(name)):
                await other.ended.wait()
            options = InstallOptions(origin=f"{who}: {mask(wish.url)}", bare=bare)
            job = self._fetches.fetch(wish.url, options, name, wish.wanted)
        except Exception as error:  # a wish must never be more than a wish
            self._tell(name, "failed", f"{mask(wish.url)} cannot be fetched: {error}")
            return
        log.info("looking for %s at %s", name, mask(wish.url), extra={"model": name, "step": "update.desired"})
        await job.ended.wait()
        if bare and job.fetched and job.state != "failed":
            self._judged[name] = wish

    def _tell(self, name: str, outcome: Literal["refused", "failed"], text: str) -> None:
        self._say(Event(id=f"update.{outcome}", model=name, text=text, time=time.monotonic(), outcome=outcome))
