"""Fetches of versions by the daemon: each fetch is a job, from the first byte to the end of the install.

An order for the fetch lies beside the received bytes, and the next run of the daemon continues from there. Of a version
already in service, or not admitted here, only the head is fetched, since some URLs are polled again and again. A
useless delta is followed by the full bundle beside the delta. Fetches run on own threads, and wait for a free thread.

Operators request some fetches; the others are for desired versions, named by a message or the configuration. Desired
versions are fetched under the rules of transfer/origins.py, at most one per model at a time, and never keep an operator
waiting. A failed fetch of a desired version is published in a few fixed words, since a message must not make the board
report on its network.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlunsplit

import msgspec

from edged.api import BundleError, ConfigError, ControlError, EdgedError
from edged.core import container, delta
from edged.core.container import Head
from edged.core.update_answers import JobItemAnswer
from edged.models.bare_file import is_bare
from edged.models.delta import VersionCheck
from edged.system.later import hashlib
from edged.system.urls import FetchError, mask, parse_url
from edged.transfer.http_response import AbandonedError, NotFoundError, WrongFileError
from edged.transfer.options import FetchOptions
from edged.transfer.origins import PolicyError
from edged.transfer.partial_files import PartialFiles, Transfer
from edged.updates.intake import InboundChecks, InboundVersion, InstallControl, ModelsSnapshot
from edged.updates.jobs import ANY, MAX_JOBS, NAME_IT, Ending, Event, InstallOptions, Job, JobOutcome, Wanted
from edged.updates.update_state import bug

if TYPE_CHECKING:  # imported with the first fetch: few boards fetch
    from edged.transfer.http_fetch import Fetcher

MAX_DESIRED = 4
MAX_REQUESTED = 2
"""Number of desired versions, and of versions requested by operators, fetched at a time. The others wait."""

log = logging.getLogger("edged.models")


class FetchJobs:
    """Fetches of versions, at most MAX_JOBS of operators and as many of desired versions.

    `publish` is called with the steps of fetches before the updater knows the version. `urls` are the models' URLs in
    the configuration.
    """

    def __init__(
        self,
        partial_files: PartialFiles,
        updater: InstallControl,
        checks: InboundChecks,
        publish: Callable[[Event], None],
        options: FetchOptions,
        urls: Collection[str] = (),
    ) -> None:
        self.configure(options, urls)
        self._partial_files = partial_files
        self._updater = updater
        self._checks = checks
        self._publish = publish
        self._all: dict[str, _FetchJob] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._threads = ThreadPoolExecutor(MAX_DESIRED + MAX_REQUESTED, thread_name_prefix="fetch")
        self._desired, self._requested = asyncio.Semaphore(MAX_DESIRED), asyncio.Semaphore(MAX_REQUESTED)

    def configure(self, options: FetchOptions, urls: Collection[str]) -> None:
        """Use these options for the fetches to come."""
        self._options, self._policy = options, options.policy(urls)

    def resume(self) -> None:
        """Continue the fetches of an earlier run."""
        for order in self._partial_files.orders().values():
            with contextlib.suppress(EdgedError, msgspec.MsgspecError, UnicodeDecodeError):  # the card may have rotted
                left = msgspec.json.decode(order, type=_Order)
                self.fetch(left.url, left.options, left.model, left.wanted, operator=left.operator)

    async def stop(self) -> None:
        """End all fetches except for a look-up of a name. Received bytes are kept, and the next run continues."""
        self._stopping = True
        for fetch in self._all.values():
            fetch.fetcher.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The latest jobs, oldest first."""
        return tuple(fetch.job for fetch in self._all.values())

    def job_of(self, install: Job) -> Job:
        """Return the job of the fetch behind an install, or else the install."""
        return next((fetch.job for fetch in self._all.values() if install in fetch.installs), install)

    @property
    def inbound(self) -> tuple[InboundVersion, ...]:
        """Versions under way and not complete yet."""
        fetches = self._all.values()
        return tuple(each.inbound for each in fetches if not each.job.ended.is_set() and not each.installs)

    def progress(self, job: Job) -> JobItemAnswer | None:
        """Return the progress of a fetch; None for other jobs, and before the first byte."""
        fetch = self._all.get(job.id)
        return fetch.progress if fetch else None

    def desired_job(self, model: str) -> Job | None:
        """Return the present fetch of a desired version of the model, if any."""
        return next((each.job for each in self._under_way() if not each.operator and each.model == model), None)

    def fetch(
        self, url: str, options: InstallOptions, model: str = "", wanted: Wanted = ANY, *, operator: bool = False
    ) -> Job:
        """Fetch a file and install the version, all as one job. A fetch of the same URL under way is joined.

        `model` is the expected model, "" if not known, and `wanted` the expected version; any other is refused. The
        latest desired version replaces an earlier one of the same model, and an operator's fetch replaces a desired
        version at the same URL. A useless delta (.edgd) is followed by the full bundle (.edgm) beside the delta.

        Raises:
            BundleError: the file is a bare model, and only signed versions may come in.
            ControlError: too many fetches are under way, or this fetch with other options, or the daemon is stopping.
        """
        if self._stopping:
            raise ControlError("the daemon is stopping", hint="repeat the command after the restart", retryable=True)
        if options.bare:
            self._checks.admit_bare()
        before = [each for each in self._all.values() if each.url == url and not each.job.ended.is_set()]
        for each in before:
            alike = each.job.options.bare == options.bare
            if operator:
                stays = each.operator or each.installing
            else:
                stays = each.operator or (each.model, each.wanted) == (model, wanted)
            if stays and alike and not each.cancelled:
                _refuse_other_terms(each.job, options)
                return each.job
        if sum(each.operator == operator for each in self._under_way()) >= MAX_JOBS:
            raise ControlError(
                f"{MAX_JOBS} fetches are under way, and no more are allowed",
                hint="wait for the end of one: edgectl jobs",
            )
        for each in self._under_way():
            if operator and each in before and not each.operator:
                each.cancel("replaced by an operator's fetch of the same URL")
            elif model and not operator and not each.operator and each.model == model:
                each.cancel(f"replaced by a newer desired version of {model}")
        from edged.transfer.http_fetch import ExpectedFile, Fetcher

        job = Job(f"fetch-{next(self._numbers)}", options, model)
        expected = ExpectedFile("a model file" if options.bare else "a bundle", _may_start_version)
        fetcher = Fetcher(self._options, self._policy, expected, guarded=not operator)
        fetch = _FetchJob(
            url, job, fetcher, InboundVersion("fetching", model, quiet=not operator), operator, model, wanted
        )
        self._forget_oldest()
        self._all[job.id] = fetch
        fetch.task = asyncio.get_running_loop().create_task(self._bring(fetch, [each.job for each in before]))
        self._tasks.add(fetch.task)
        fetch.task.add_done_callback(self._tasks.discard)
        return fetch.job

    def _under_way(self) -> list[_FetchJob]:
        """Return the fetches under way. A cancelled fetch counts as ended."""
        return [each for each in self._all.values() if not each.job.ended.is_set() and not each.cancelled]

    def _forget_oldest(self) -> None:
        """Make room for another fetch. Fetches under way stay, as clients may watch them."""
        ended = [name for name, fetch in self._all.items() if fetch.job.ended.is_set()]
        for name in ended[: max(len(self._all) - MAX_JOBS + 1, 0)]:
            del self._all[name]

    async def _bring(self, fetch: _FetchJob, before: list[Job]) -> None:
        """Run a fetch to the end of the install, after the end of the jobs `before`."""
        job = fetch.job
        try:
            for each in before:
                await each.ended.wait()
            full = _bundle_beside(fetch.url)
            installed = await self._bring_from(fetch, fetch.url)
            if full and any(event.id == "update.full_needed" for event in job.events):
                installed = await self._bring_from(fetch, full)
            assert installed is not None  # only a delta can be of no use
            assert installed.state != "running"
            job.end(installed.state, installed.text, installed.hint)
        except _PresentError as error:
            job.end("done", error.message)
        except _UnusedError as error:
            job.end("installed", error.message, error.hint)
        except AbandonedError as error:
            job.end("failed", fetch.cancelled or error.message)
        except EdgedError as error:
            self._end_fetch(fetch, error)
        except asyncio.CancelledError:
            job.end("failed", fetch.cancelled or "the daemon stopped, and continues the fetch after the restart")
            raise
        except Exception as error:  # else the job would never end, and clients would wait forever
            log.exception("the fetch of %s met a bug", mask(fetch.url))
            self._end_fetch(fetch, bug(error))

    async def _bring_from(self, fetch: _FetchJob, url: str) -> Job | None:
        """Fetch and install the file at a URL, and return the install; None for a useless delta."""
        job = fetch.job
        fetch.begun = False
        try:
            async with self._requested if fetch.operator else self._desired:
                snapshot = ModelsSnapshot(await self._updater.models())
                if bare := job.options.bare:  # else the whole file would be fetched before the updater could refuse
                    snapshot.admit_bare(bare, allow_downgrade=job.options.allow_downgrade)
                fetch.begun = True
                loop = asyncio.get_running_loop()
                transfer = await loop.run_in_executor(self._threads, self._fetch_all, fetch, url, snapshot)
            if fetch.cancelled:  # just as the last byte arrived
                await asyncio.to_thread(transfer.give_up)
                raise AbandonedError(fetch.cancelled)
        except _BaseMissingError as error:
            if not _bundle_beside(url):
                raise
            self._announce(fetch, "update.full_needed", error.message)
            return None
        try:
            installed = self._updater.install(transfer.path, job.options)
            fetch.installs.append(installed)
            installed.events = job.events
            await installed.released.wait()
        except asyncio.CancelledError:  # the next run continues, unless the version is the candidate by then
            await asyncio.to_thread(transfer.close)
            raise
        # If the board is at fault, as for want of room, the bytes are kept for the next attempt.
        await asyncio.to_thread(transfer.give_up if installed.state == "failed" else transfer.discard)
        job.model, job.version, job.digest = installed.model, installed.version, installed.digest
        await installed.ended.wait()
        return installed

    def _fetch_all(self, fetch: _FetchJob, url: str, snapshot: ModelsSnapshot) -> Transfer:
        """On a thread of its own: return the complete transfer, still open. After an EdgedError the bytes stay."""

        def approve(head: Head, _transfer: str, base: str) -> None:
            version = f"{head.manifest.name} {head.manifest.version}"
            fetch.refuse_other(head)
            fetch.inbound.name(head)
            fetch.job.name(head)
            if self._checks.serves(head):
                raise _PresentError(f"{version} serves already")
            if snapshot.is_unused(head.digest):
                raise _UnusedError(f"{version} is installed already, but used by no pipeline", hint=NAME_IT)
            manifest = head.manifest
            snapshot.admit(manifest.name, head.digest, manifest.version, allow_downgrade=options.allow_downgrade)
            self._checks.approve(head)
            self._checks.fit(head)
            if base and base not in snapshot.bases:
                raise _BaseMissingError(
                    f"the full bundle is needed: the delta for {version} builds on an absent version",
                    hint="fetch the full bundle",
                )

        from edged.transfer.http_fetch import transfer_id

        options = fetch.job.options
        check = None if options.bare else partial(VersionCheck, approve)
        transfer = fetch.inbound.transfer = self._partial_files.open(transfer_id(url), check=check)
        try:
            transfer.keep_order(msgspec.json.encode(_Order(url, options, fetch.model, fetch.operator, fetch.wanted)))
            fetch.fetcher.fetch(url, transfer, progress=fetch.set_progress)
            fetch.job.fetched = True
            if options.bare:  # else the updater would report a fault of the board
                fetch.refuse_other_file(transfer.path)
        except AbandonedError:
            if fetch.cancelled:
                transfer.give_up()
            else:  # the daemon stops, and will continue
                transfer.close()
            raise
        except BundleError:  # no more bytes can mend the file
            transfer.discard()
            raise
        except BaseException:
            transfer.give_up()
            raise
        return transfer

    def _end_fetch(self, fetch: _FetchJob, error: EdgedError) -> None:
        """End a fetch unknown to the updater. For a desired version, only a sound head is refused for good."""
        known = fetch.operator or bool(fetch.inbound.digest) or fetch.inbound.transfer is None
        judged = isinstance(error, BundleError) and (fetch.operator or (known and not error.retryable))
        state: Ending = "refused" if judged or isinstance(error, PolicyError | _UnwantedError) else "failed"
        plain = fetch.operator or (known and not isinstance(error, FetchError))
        text = error.message if plain else _public_words(error)
        if text != error.message:
            place = "" if isinstance(error, FetchError) else f"{mask(fetch.url)}: "  # a FetchError names the URL
            log.warning("no desired version of %s: %s%s", fetch.model, place, error, extra={"model": fetch.model})
        self._announce(fetch, f"update.{state}", text, state)
        fetch.job.end(state, error.message, error.hint)

    def _announce(self, fetch: _FetchJob, kind: str, text: str, outcome: JobOutcome = "") -> None:
        event = fetch.inbound.event(kind, text, outcome)
        fetch.job.events.append(event)
        self._publish(event)


@dataclass(eq=False)
class _FetchJob:
    """A fetch, and the installs: of a delta, of the full bundle. The fetching thread writes `progress`.

    `model` ("" for any) and `wanted` are expected. The fetch has `begun` as soon as a thread is free;
    `cancelled` is the reason of a cancellation.
    """

    url: str
    job: Job
    fetcher: Fetcher
    inbound: InboundVersion
    operator: bool
    model: str
    wanted: Wanted
    task: asyncio.Task[None] | None = None
    begun: bool = False
    cancelled: str = ""
    installs: list[Job] = field(default_factory=list)
    progress: JobItemAnswer | None = None

    @property
    def installing(self) -> bool:
        """True while the complete file is with the updater."""
        return any(not each.ended.is_set() for each in self.installs)

    def cancel(self, reason: str) -> None:
        """End the fetch, except during the install. Received bytes are kept."""
        if not self.installing:
            self.cancelled = reason
            self.fetcher.cancel()
            if self.task and not self.begun:  # a task without its first step would not see the cancellation
                self.job.end("failed", reason)
                self.task.cancel()

    def refuse_other(self, head: Head) -> None:
        """Raise BundleError for an unexpected model or version."""
        name, version = head.manifest.name, head.manifest.version
        if self.model not in ("", name):
            raise _UnwantedError(f"the file is for {name}, not for {self.model}", hint="check the URL")
        if self.wanted.version not in ("", version):
            raise _UnwantedError(f"the file is version {version}, not {self.wanted.version}", hint="check the URL")
        self._refuse_digest(head.digest)

    def refuse_other_file(self, file: Path) -> None:
        """Raise BundleError for any other file than the expected .tflite file."""
        with file.open("rb") as opened:
            if not is_bare(opened.read(8)):
                raise BundleError("not a .tflite file: no TFL3 in the head", hint="check the URL")
            opened.seek(0)
            self._refuse_digest(hashlib.file_digest(opened, "sha256").hexdigest())

    def _refuse_digest(self, digest: str) -> None:
        if self.wanted.digest not in ("", digest):
            raise _UnwantedError(f"the file has the digest {digest}, not {self.wanted.digest}", hint="check the URL")

    def set_progress(self, received: int, total: int | None, rate: float) -> None:
        """Set the bytes received, the size of the file, and the bytes per second."""
        self.progress = {"id": "job.progress", "bytes": received, "total": total, "rate": rate}


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request for a fetch, kept beside the transfer for the next run of the daemon."""

    url: str
    options: InstallOptions
    model: str
    operator: bool = False
    wanted: Wanted = ANY


class _UnwantedError(BundleError):
    """The file at the URL is not the expected version."""


class _BaseMissingError(BundleError):
    """The delta builds on an absent version."""


class _UnusedError(BundleError):
    """The version is installed, and no pipeline uses it."""


class _PresentError(BundleError):
    """The version serves already."""


def _may_start_version(start: bytes) -> bool:
    """Return True for possible first bytes of a container, a delta or a bare model file."""
    return is_bare(start) or any(magic.startswith(start[:4]) for magic in (container.MAGIC, delta.MAGIC))


def _public_words(error: EdgedError) -> str:
    """Return the few words for publication about a failed desired version: the author may not learn more."""
    match error:
        case PolicyError():
            return "refused by policy"
        case NotFoundError():
            return "not found"
        case _UnwantedError():
            return "not the desired version"
        case BundleError() | WrongFileError():
            return "not a bundle"
        case FetchError() | ConfigError():
            return "unreachable"
    return error.message


def _refuse_other_terms(job: Job, asked: InstallOptions) -> None:
    """Raise ControlError for an operator who would wrongly expect to have to confirm the version, or a downgrade."""
    known = job.options
    if asked.confirm_within not in (0.0, known.confirm_within) or asked.allow_downgrade > known.allow_downgrade:
        raise ControlError(
            f"the URL is already being fetched with --confirm-within {known.confirm_within:g} and "
            f"{'with' if known.allow_downgrade else 'without'} --allow-downgrade",
            hint=f"wait for the end of the fetch: edgectl job wait {job.id}",
        )


def _bundle_beside(url: str) -> str | None:
    """Return the URL of the full bundle beside a delta, with .edgm for .edgd; None for any other URL.

    Raises:
        FetchError: the URL is not an HTTP URL.
    """
    parts = parse_url(url)
    path, suffix = parts.path.removesuffix(delta.SUFFIX), container.SUFFIX
    return urlunsplit(parts._replace(path=path + suffix)) if path != parts.path else None
