"""Versions that the daemon fetches by itself: each a job, from the first byte to the end of the install.

A fetch is written down beside what has come of it, so that a daemon that is back goes on with it. What is found at the
URL decides how far it gets: of what serves already, or may not come in, only the head is fetched, for some URLs are
looked at again and again; a delta that comes to nothing here is followed by the bundle beside it. Fetches have threads
of their own, and wait for one that is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from urllib.parse import urlunsplit

import msgspec

from edged.api import BundleError, ControlError, EdgedError
from edged.coming import Coming, Door, Standing, Updater
from edged.core import container, delta
from edged.core.container import Head
from edged.models.answer import mask, parse_url
from edged.models.delta import VersionCheck
from edged.models.fetch import Fetcher, FetchOptions, transfer_id
from edged.models.incoming import Incoming, Transfer
from edged.models.job import Event, Job, Options, Outcome
from edged.models.line import AbandonedError

MAX_FETCHES = 4
"""So many at a time, and the others wait; and no more than:"""
MAX_JOBS = 50
"""of which none is remembered when there are as many later ones."""

log = logging.getLogger("edged.models")


class Fetches:
    """Fetches as `options` say, which may be replaced at any time; `say` hears of those the updater never knew of."""

    def __init__(
        self, incoming: Incoming, updater: Updater, door: Door, say: Callable[[Event], None], options: FetchOptions
    ) -> None:
        self.options = options
        self._incoming = incoming
        self._updater = updater
        self._door = door
        self._say = say
        self._all: dict[str, _Fetch] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._threads = ThreadPoolExecutor(MAX_FETCHES, thread_name_prefix="fetch")

    def resume(self) -> None:
        """Go on with what an earlier run has left."""
        for order in self._incoming.orders().values():
            with contextlib.suppress(EdgedError, msgspec.MsgspecError, UnicodeDecodeError):  # the card may have rotted
                left = msgspec.json.decode(order, type=_Order)
                self.fetch(left.url, left.options, left.model)

    async def stop(self) -> None:
        """End them all, but for a look-up of a name; what has come is kept, and gone on with in the next run."""
        self._stopping = True
        for fetch in self._all.values():
            fetch.fetcher.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The latest, the oldest first."""
        return tuple(fetch.job for fetch in self._all.values())

    def job_of(self, install: Job) -> Job:
        """The job that an install is to whoever asks: the fetch that has led to it, if one has, or itself."""
        return next((fetch.job for fetch in self._all.values() if install in fetch.installs), install)

    @property
    def coming(self) -> tuple[Coming, ...]:
        """What is under way and not here yet."""
        fetches = self._all.values()
        return tuple(each.coming for each in fetches if not each.job.ended.is_set() and not each.installs)

    def progress(self, job: Job) -> dict[str, Any] | None:
        """How far a fetch is; None where this is none, or nothing has come."""
        fetch = self._all.get(job.id)
        return fetch.progress if fetch else None

    def fetch(self, url: str, options: Options, model: str = "") -> Job:
        """Fetch a container and install it, all as one job; a fetch of this URL that is under way is that job.

        `model` is what is looked for there, where that is known. A delta (.edgd) that comes to nothing here is followed
        by the bundle (.edgm) beside it.

        Raises:
            BundleError: it is a bare file, and only signed versions may come in.
            ControlError: too many are under way, or this one on other terms, or the daemon is stopping.
        """
        if self._stopping:
            raise ControlError("the daemon is stopping", hint="ask again when it is back", retryable=True)
        if options.bare:
            self._door.admit_bare()
        under_way = [fetch for fetch in self._all.values() if not fetch.job.ended.is_set()]
        for fetch in under_way:
            if (fetch.url, fetch.job.options.bare) == (url, options.bare):
                _refuse_other_terms(fetch.job, options)
                return fetch.job
        if len(under_way) >= MAX_JOBS:
            raise ControlError(
                f"{MAX_JOBS} fetches are under way, and no more are allowed", hint="wait for one: edgectl jobs"
            )
        job = Job(f"fetch-{next(self._numbers)}", options, model)
        fetch = _Fetch(url, job, Fetcher(self.options), Coming("fetching", model))
        self._forget_oldest()
        self._all[job.id] = fetch
        task = asyncio.get_running_loop().create_task(self._bring(fetch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return fetch.job

    def _forget_oldest(self) -> None:
        """Make room for one more. What is under way is not forgotten: nobody could watch it then, nor end it."""
        if len(self._all) >= MAX_JOBS:
            del self._all[next(name for name, fetch in self._all.items() if fetch.job.ended.is_set())]

    async def _bring(self, fetch: _Fetch) -> None:
        """The life of a fetch, from the first byte to the end of the install."""
        job = fetch.job
        try:
            full = _full_beside(fetch.url)
            installed = await self._bring_from(fetch, fetch.url)
            if full and any(event.id == "update.full_needed" for event in job.events):
                installed = await self._bring_from(fetch, full)
            assert installed is not None  # only a delta comes to nothing
            assert installed.state != "running"
            job.end(installed.state, installed.text, installed.hint)
        except _PresentError as error:
            job.end("done", error.message)
        except EdgedError as error:
            self._end_fetch(fetch, "refused" if isinstance(error, BundleError) else "failed", error)
        except asyncio.CancelledError:
            job.end("failed", "the daemon stopped; what has come is gone on with when it is back")
            raise
        except Exception as error:  # or it would be under way for ever, and so would whoever waits for it
            log.exception("the fetch of %s met a bug", mask(fetch.url))
            told = EdgedError(
                f"{type(error).__name__}: {error}", hint="this is a bug: report it with the log's traceback"
            )
            self._end_fetch(fetch, "failed", told)

    async def _bring_from(self, fetch: _Fetch, url: str) -> Job | None:
        """Fetch and install what is at a URL; the install, None for a delta that could come to nothing."""
        job = fetch.job
        try:
            standing = Standing(await self._updater.models())
            loop = asyncio.get_running_loop()
            transfer = await loop.run_in_executor(self._threads, self._fetch_all, fetch, url, standing)
        except _BaseMissingError as error:
            if not _full_beside(url):
                raise
            self._note(fetch, "update.full_needed", error.message)
            return None
        try:
            installed = self._updater.install(transfer.path, job.options)
            fetch.installs.append(installed)
            installed.events = job.events
            await installed.released.wait()
        except asyncio.CancelledError:  # it is gone on with, unless it has become a candidate meanwhile
            await asyncio.to_thread(transfer.close)
            raise
        # Where this device is at fault, as when it has no room, all of it need not be fetched again at the next look.
        await asyncio.to_thread(transfer.give_up if installed.state == "failed" else transfer.discard)
        job.model, job.version, job.digest = installed.model, installed.version, installed.digest
        await installed.ended.wait()
        return installed

    def _fetch_all(self, fetch: _Fetch, url: str, standing: Standing) -> Transfer:
        """On a thread of its own: the transfer, complete and open. Raises EdgedError, and what has come is kept."""

        def approve(head: Head, _transfer: str, base: str) -> None:
            version = f"{head.manifest.name} {head.manifest.version}"
            fetch.coming.name(head)
            fetch.job.name(head)
            if self._door.serves(head):
                raise _PresentError(f"{version} is what serves already")
            manifest = head.manifest
            standing.admit(manifest.name, head.digest, manifest.version, allow_downgrade=options.allow_downgrade)
            self._door.approve(head)
            self._door.fit(head)
            if base and base not in standing.bases:
                raise _BaseMissingError(
                    f"the full bundle is needed: what the delta for {version} builds on is not here",
                    hint="fetch the full bundle",
                )

        options = fetch.job.options
        check = None if options.bare else partial(VersionCheck, approve)
        transfer = fetch.coming.transfer = self._incoming.open(transfer_id(url), check=check)
        try:
            transfer.order(msgspec.json.encode(_Order(url, options, fetch.coming.model)))
            fetch.fetcher.fetch(url, transfer, progress=fetch.went_on)
        except AbandonedError:  # the daemon stops, and goes on with it when it is back
            transfer.close()
            raise
        except BundleError:  # it is not worth going on with
            transfer.discard()
            raise
        except BaseException:
            transfer.give_up()
            raise
        return transfer

    def _end_fetch(self, fetch: _Fetch, state: Literal["refused", "failed"], error: EdgedError) -> None:
        """It came to nothing before the updater knew of it."""
        self._note(fetch, f"update.{state}", error.message, state)
        fetch.job.end(state, error.message, error.hint)

    def _note(self, fetch: _Fetch, kind: str, text: str, outcome: Outcome = "") -> None:
        """A step of a fetch."""
        event = fetch.coming.event(kind, text, outcome)
        fetch.job.events.append(event)
        self._say(event)


@dataclass(eq=False)
class _Fetch:
    """A fetch, and the installs it leads to: of a delta, of the full bundle. Its thread writes `progress`."""

    url: str
    job: Job
    fetcher: Fetcher
    coming: Coming
    installs: list[Job] = field(default_factory=list)
    progress: dict[str, Any] | None = None

    def went_on(self, received: int, total: int | None, rate: float) -> None:
        self.progress = {"bytes": received, "total": total, "rate": rate}


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left beside a transfer, so that a daemon that is back goes on with it."""

    url: str
    options: Options
    model: str


class _BaseMissingError(BundleError):
    """A delta is of no use here."""


class _PresentError(BundleError):
    """There is no need to fetch the rest of it."""


def _refuse_other_terms(job: Job, asked: Options) -> None:
    """Nobody is to believe that a version is taken back unless confirmed, where it is not."""
    known = job.options
    if asked.confirm_within not in (0.0, known.confirm_within) or asked.allow_downgrade > known.allow_downgrade:
        raise ControlError(
            "it is fetched already, and was not asked for on these terms",
            hint=f"wait for it: edgectl job wait {job.id}",
        )


def _full_beside(url: str) -> str | None:
    """The URL of the full bundle beside a delta: the same with .edgm for .edgd. None where it names no delta.

    Raises FetchError for what is no URL.
    """
    parts = parse_url(url)
    path, suffix = parts.path.removesuffix(delta.SUFFIX), container.SUFFIX
    return urlunsplit(parts._replace(path=path + suffix)) if path != parts.path else None
