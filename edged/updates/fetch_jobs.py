"""Versions that the daemon fetches by itself: each a job, from the first byte to the end of the install.

A fetch is written down beside what has come of it, so that a daemon that is back goes on with it. What is found at the
URL decides how far it gets: of what serves already, or may not come in, only the head is fetched, for some URLs are
looked at again and again; a delta that comes to nothing here is followed by the bundle beside it. Fetches have threads
of their own, and wait for one that is free.

An operator asks for some of them; the others are wishes, from a message or the configuration. Wishes are fetched under
the rules of models/origins.py, one per model at a time, and never keep an operator waiting. What is published of a
failed wish is one of a few words: a message must not make the board tell what it finds in its network.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlunsplit

import msgspec

from edged.api import BundleError, ConfigError, ControlError, EdgedError
from edged.core import container, delta
from edged.core.container import Head
from edged.models.bare_file import is_bare
from edged.models.delta import VersionCheck
from edged.transfer.http_connection import AbandonedError
from edged.transfer.http_fetch import Fetcher, FetchOptions, transfer_id
from edged.transfer.http_response import FetchError, NotBundleError, NotFoundError, mask, parse_url
from edged.transfer.origins import PolicyError
from edged.transfer.partial_files import PartialFiles, Transfer
from edged.updates.intake import AdmissionRules, InboundVersion, Installer, ModelsSnapshot
from edged.updates.jobs import ANY, NAME_IT, Ending, Event, InstallOptions, Job, Outcome, Wanted

MAX_WISHES = 4
MAX_ASKED = 2
"""So many wishes, and so many fetches that operators asked for, are fetched at a time, and the others wait."""

MAX_JOBS = 50
"""No more of each are under way, and none is remembered when there are as many later ones."""

log = logging.getLogger("edged.models")


class FetchJobs:
    """Fetches as `options` say; `urls` are those of models in the configuration.

    `say` hears of those the updater never knew of.
    """

    def __init__(
        self,
        incoming: PartialFiles,
        updater: Installer,
        door: AdmissionRules,
        say: Callable[[Event], None],
        options: FetchOptions,
        urls: Collection[str] = (),
    ) -> None:
        self.abide_by(options, urls)
        self._incoming = incoming
        self._updater = updater
        self._door = door
        self._say = say
        self._all: dict[str, _Fetch] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._threads = ThreadPoolExecutor(MAX_WISHES + MAX_ASKED, thread_name_prefix="fetch")
        self._wishes, self._asked = asyncio.Semaphore(MAX_WISHES), asyncio.Semaphore(MAX_ASKED)

    def abide_by(self, options: FetchOptions, urls: Collection[str]) -> None:
        """Fetch as these say from now on."""
        self._options, self._policy = options, options.policy(urls)

    def resume(self) -> None:
        """Go on with what an earlier run has left."""
        for order in self._incoming.orders().values():
            with contextlib.suppress(EdgedError, msgspec.MsgspecError, UnicodeDecodeError):  # the card may have rotted
                left = msgspec.json.decode(order, type=_Order)
                self.fetch(left.url, left.options, left.model, left.wanted, operator=left.operator)

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
    def coming(self) -> tuple[InboundVersion, ...]:
        """What is under way and not here yet."""
        fetches = self._all.values()
        return tuple(each.coming for each in fetches if not each.job.ended.is_set() and not each.installs)

    def progress(self, job: Job) -> dict[str, Any] | None:
        """How far a fetch is; None where this is none, or nothing has come."""
        fetch = self._all.get(job.id)
        return fetch.progress if fetch else None

    def wish(self, model: str) -> Job | None:
        """Return the wish for a model that is being fetched, if there is one."""
        return next((each.job for each in self._under_way() if not each.operator and each.model == model), None)

    def fetch(
        self, url: str, options: InstallOptions, model: str = "", wanted: Wanted = ANY, *, operator: bool = False
    ) -> Job:
        """Fetch a container and install it, all as one job; a fetch of this URL that is under way is that job.

        `model` is what is looked for there, where that is known, and `wanted` which version; anything else is refused.
        The latest wish for a model takes the place of the one before. What an `operator` asks for takes the place of a
        wish for the same. A delta (.edgd) that comes to nothing here is followed by the bundle (.edgm) beside it.

        Raises:
            BundleError: it is a bare file, and only signed versions may come in.
            ControlError: too many are under way, or this one on other terms, or the daemon is stopping.
        """
        if self._stopping:
            raise ControlError("the daemon is stopping", hint="ask again when it is back", retryable=True)
        if options.bare:
            self._door.admit_bare()
        before = [each for each in self._all.values() if each.url == url and not each.job.ended.is_set()]
        for each in before:
            alike = each.job.options.bare == options.bare
            if operator:
                stays = each.operator or each.installing
            else:
                stays = each.operator or (each.model, each.wanted) == (model, wanted)
            if stays and alike and not each.called_off:
                _refuse_other_terms(each.job, options)
                return each.job
        if sum(each.operator == operator for each in self._under_way()) >= MAX_JOBS:
            raise ControlError(
                f"{MAX_JOBS} fetches are under way, and no more are allowed", hint="wait for one: edgectl jobs"
            )
        for each in self._under_way():
            if operator and each in before and not each.operator:
                each.call_off("an operator asked for the same, and that takes its place")
            elif model and not operator and not each.operator and each.model == model:
                each.call_off(f"another wish for {model} takes its place")
        job = Job(f"fetch-{next(self._numbers)}", options, model)
        fetcher = Fetcher(self._options, self._policy, guarded=not operator)
        fetch = _Fetch(
            url, job, fetcher, InboundVersion("fetching", model, quiet=not operator), operator, model, wanted
        )
        self._forget_oldest()
        self._all[job.id] = fetch
        fetch.task = asyncio.get_running_loop().create_task(self._bring(fetch, [each.job for each in before]))
        self._tasks.add(fetch.task)
        fetch.task.add_done_callback(self._tasks.discard)
        return fetch.job

    def _under_way(self) -> list[_Fetch]:
        """List the fetches that go on; one that was called off is as good as gone."""
        return [each for each in self._all.values() if not each.job.ended.is_set() and not each.called_off]

    def _forget_oldest(self) -> None:
        """Make room for one more. What is under way is not forgotten: nobody could watch it then, nor end it."""
        ended = [name for name, fetch in self._all.items() if fetch.job.ended.is_set()]
        for name in ended[: max(len(self._all) - MAX_JOBS + 1, 0)]:
            del self._all[name]

    async def _bring(self, fetch: _Fetch, before: list[Job]) -> None:
        """The life of a fetch, from the first byte, once those `before` have ended, to the end of the install."""
        job = fetch.job
        try:
            for each in before:
                await each.ended.wait()
            full = _full_beside(fetch.url)
            installed = await self._bring_from(fetch, fetch.url)
            if full and any(event.id == "update.full_needed" for event in job.events):
                installed = await self._bring_from(fetch, full)
            assert installed is not None  # only a delta comes to nothing
            assert installed.state != "running"
            job.end(installed.state, installed.text, installed.hint)
        except _PresentError as error:
            job.end("done", error.message)
        except _UnusedError as error:
            job.end("installed", error.message, error.hint)
        except AbandonedError as error:
            job.end("failed", fetch.called_off or error.message)
        except EdgedError as error:
            self._end_fetch(fetch, error)
        except asyncio.CancelledError:
            job.end("failed", fetch.called_off or "the daemon stopped; what has come is gone on with when it is back")
            raise
        except Exception as error:  # or it would be under way for ever, and so would whoever waits for it
            log.exception("the fetch of %s met a bug", mask(fetch.url))
            told = EdgedError(
                f"{type(error).__name__}: {error}", hint="this is a bug: report it with the log's traceback"
            )
            self._end_fetch(fetch, told)

    async def _bring_from(self, fetch: _Fetch, url: str) -> Job | None:
        """Fetch and install what is at a URL; the install, None for a delta that could come to nothing."""
        job = fetch.job
        fetch.begun = False
        try:
            async with self._asked if fetch.operator else self._wishes:
                standing = ModelsSnapshot(await self._updater.models())
                if bare := job.options.bare:  # which would be fetched to its end before the updater could say so
                    standing.admit_bare(bare, allow_downgrade=job.options.allow_downgrade)
                fetch.begun = True
                loop = asyncio.get_running_loop()
                transfer = await loop.run_in_executor(self._threads, self._fetch_all, fetch, url, standing)
            if fetch.called_off:  # in the very moment that it was complete
                await asyncio.to_thread(transfer.give_up)
                raise AbandonedError(fetch.called_off)
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

    def _fetch_all(self, fetch: _Fetch, url: str, standing: ModelsSnapshot) -> Transfer:
        """On a thread of its own: the transfer, complete and open. Raises EdgedError, and what has come is kept."""

        def approve(head: Head, _transfer: str, base: str) -> None:
            version = f"{head.manifest.name} {head.manifest.version}"
            fetch.refuse_other(head)
            fetch.coming.name(head)
            fetch.job.name(head)
            if self._door.serves(head):
                raise _PresentError(f"{version} is what serves already")
            if standing.is_unused(head.digest):
                raise _UnusedError(f"{version} is installed already, and no pipeline uses it", hint=NAME_IT)
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
            transfer.order(msgspec.json.encode(_Order(url, options, fetch.model, fetch.operator, fetch.wanted)))
            fetch.fetcher.fetch(url, transfer, progress=fetch.went_on)
            fetch.job.fetched = True
            if options.bare:  # the updater would take it for its verdict
                fetch.refuse_other_file(transfer.path)
        except AbandonedError:
            if fetch.called_off:
                transfer.give_up()
            else:  # the daemon stops, and goes on with it when it is back
                transfer.close()
            raise
        except BundleError:  # it is not worth going on with
            transfer.discard()
            raise
        except BaseException:
            transfer.give_up()
            raise
        return transfer

    def _end_fetch(self, fetch: _Fetch, error: EdgedError) -> None:
        """End a fetch that the updater never knew of. Of a wish, only a sound head can be refused for good."""
        known = fetch.operator or bool(fetch.coming.digest) or fetch.coming.transfer is None
        judged = isinstance(error, BundleError) and (fetch.operator or (known and not error.retryable))
        state: Ending = "refused" if judged or isinstance(error, PolicyError | _OtherError) else "failed"
        plain = fetch.operator or (known and not isinstance(error, FetchError))
        text = error.message if plain else _in_general(error)
        if text != error.message:
            place = "" if isinstance(error, FetchError) else f"{mask(fetch.url)}: "  # which those say themselves
            log.warning("the wish for %s failed: %s%s", fetch.model, place, error, extra={"model": fetch.model})
        self._note(fetch, f"update.{state}", text, state)
        fetch.job.end(state, error.message, error.hint)

    def _note(self, fetch: _Fetch, kind: str, text: str, outcome: Outcome = "") -> None:
        """A step of a fetch."""
        event = fetch.coming.event(kind, text, outcome)
        fetch.job.events.append(event)
        self._say(event)


@dataclass(eq=False)
class _Fetch:
    """A fetch, and the installs it leads to: of a delta, of the full bundle. Its thread writes `progress`.

    It is for a `model` ("" where nobody said which) and the version that is `wanted`, and has `begun` once there was a
    thread for it.
    """

    url: str
    job: Job
    fetcher: Fetcher
    coming: InboundVersion
    operator: bool
    model: str
    wanted: Wanted
    task: asyncio.Task[None] | None = None
    begun: bool = False
    called_off: str = ""
    installs: list[Job] = field(default_factory=list)
    progress: dict[str, Any] | None = None

    @property
    def installing(self) -> bool:
        """Tell whether all of it is here, and with the updater."""
        return any(not each.ended.is_set() for each in self.installs)

    def call_off(self, why: str) -> None:
        """End it before it is installed; what has come is kept."""
        if not self.installing:
            self.called_off = why
            self.fetcher.cancel()
            if self.task and not self.begun:  # it may not even have seen its first line
                self.job.end("failed", why)
                self.task.cancel()

    def refuse_other(self, head: Head) -> None:
        """Raise BundleError for a version of another model, or another version, than what was asked for."""
        name, version = head.manifest.name, head.manifest.version
        if self.model not in ("", name):
            raise _OtherError(f"it is for {name}, and not for {self.model}", hint="check the URL")
        if self.wanted.version not in ("", version):
            raise _OtherError(f"it is version {version}, and not {self.wanted.version}", hint="check the URL")
        if self.wanted.digest not in ("", head.digest):
            raise _OtherError(f"its digest is {head.digest}, and not {self.wanted.digest}", hint="check the URL")

    def refuse_other_file(self, file: Path) -> None:
        """Raise BundleError for what is no .tflite file, or another than what was asked for."""
        with file.open("rb") as opened:
            if not is_bare(opened.read(8)):
                raise BundleError("not a .tflite file: it has no TFL3 in its head", hint="check the URL")
            opened.seek(0)
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if self.wanted.digest not in ("", digest):
            raise _OtherError(f"its digest is {digest}, and not {self.wanted.digest}", hint="check the URL")

    def went_on(self, received: int, total: int | None, rate: float) -> None:
        self.progress = {"bytes": received, "total": total, "rate": rate}


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left beside a transfer, so that a daemon that is back goes on with it."""

    url: str
    options: InstallOptions
    model: str
    operator: bool = False
    wanted: Wanted = ANY


class _OtherError(BundleError):
    """What is at the URL is not what was asked for."""


class _BaseMissingError(BundleError):
    """A delta is of no use here."""


class _UnusedError(BundleError):
    """There is no need to fetch the rest of it, and nothing comes of having it."""


class _PresentError(BundleError):
    """There is no need to fetch the rest of it."""


def _in_general(error: EdgedError) -> str:
    """Return the few words that are published of a wish that failed: its author may not know more."""
    match error:
        case PolicyError():
            return "refused by policy"
        case NotFoundError():
            return "not found"
        case _OtherError():
            return "not what was wished for"
        case BundleError() | NotBundleError():
            return "not a bundle"
        case FetchError() | ConfigError():
            return "unreachable"
    return error.message


def _refuse_other_terms(job: Job, asked: InstallOptions) -> None:
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
