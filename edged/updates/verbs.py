"""The way in for new versions, and what an operator may ask about them: verbs for the socket.

However a container comes, from a file on the board, over SSH or from a URL, it ends in `PartialFiles` and then with the
updater, which alone decides whether it may serve. A delta may come in place of any container, and so may a bare model
file of which it is said what it is for.

A container is sent in chunks that say where they belong, to a transfer that is called after what is in it. So it does
not matter who sends a chunk, nor how often: senders of the same container help each other along, and one that has lost
its connection goes on where the container ends now. What was taken outlives the connection at once, and a power cut
but for the last window of `PartialFiles`, unless a chunk was to be durable; `receive-open` always tells where to go on.

One thread does all the work on the files that are sent. What the daemon fetches by itself is in fetches.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from msgspec import Meta

from edged.api import BundleError, ControlError, EdgedError
from edged.core.container import Head
from edged.core.manifest import MAX_BUNDLE_BYTES, Digest, Name, Version
from edged.models.bare_file import Bare, BareCheck
from edged.models.delta import VersionCheck
from edged.transfer.http_fetch import FetchOptions
from edged.transfer.http_response import MAX_URL, mask
from edged.transfer.partial_files import ArrivalCheck, PartialFiles, Transfer
from edged.updates.fetch_jobs import FetchJobs
from edged.updates.intake import AdmissionRules, InboundVersion, Installer, ModelsSnapshot
from edged.updates.jobs import NAME_IT, Event, InstallOptions, Job, Report

IDLE_SECONDS = 60.0
"""A transfer that nobody sends to for so long is put to rest; what has come of it is kept."""

STOP_SECONDS = 2.0
"""How long the end of a run may wait for what comes to be put down, for results wait to be saved."""

TELL_SECONDS = 5.0
MAX_CHUNK = 45 << 10
"""Bytes in a chunk: with them a request stays below the protocol's limit."""

_POLL_SECONDS = 0.2
_SIGN_OF_LIFE_SECONDS = 15.0

T = TypeVar("T")


class WallClock(Protocol):
    """Tells the time of day."""

    def at(self, monotonic: float) -> float:
        """Unix seconds at a moment of CLOCK_MONOTONIC."""


class Updates:
    """The verbs.

    `calls` are answered once, `streams` until the client leaves, and `changes` are worth a line in the log.
    """

    def __init__(
        self,
        incoming: PartialFiles,
        updater: Installer,
        *,
        door: AdmissionRules,
        clock: WallClock,
        say: Callable[[Event], None] = lambda event: None,
        fetch: FetchOptions | None = None,
        urls: Collection[str] = (),
        idle: float = IDLE_SECONDS,
        tell_every: float = TELL_SECONDS,
    ) -> None:
        """`say` hears how far what comes is, every `tell_every` seconds; `idle` is when a sender counts as gone.

        `urls` are those of models in the configuration.
        """
        self._incoming = incoming
        self._updater = updater
        self._door = door
        self._clock = clock
        self._say = say
        self._tell_every = tell_every
        self._idle = idle
        self.fetches = FetchJobs(incoming, updater, door, say, fetch or FetchOptions(), urls)
        self._receiving: dict[str, _Receiving] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="receive")
        self._stopping = False

        self.calls: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "receive-open": self._receive_open,
            "receive-chunk": self._receive_chunk,
            "receive-done": self._receive_done,
            "fetch": self._fetch,
            "job": self._job,
            "jobs": self._jobs,
            "rollback": self._rollback,
            "confirm": self._confirm,
            "pin": self._pin,
            "clear-rejection": self._clear_rejection,
        }
        self.streams: dict[str, Callable[[dict[str, Any]], AsyncGenerator[Any, None]]] = {"job-watch": self._job_watch}
        self.changes = frozenset({"receive-done", "fetch", "rollback", "confirm", "pin", "clear-rejection"})

    async def start(self) -> None:
        """Throw away what has done its duty, and go on with the fetches that an earlier run has left."""
        self._spawn(self._tell_progress())
        for name in self._incoming.ids():
            if await self._updater.knows(self._incoming.part(name)):
                with contextlib.suppress(EdgedError):  # it goes with its age, then
                    await self._on_thread(lambda name=name: self._incoming.open(name).discard())
        self.fetches.resume()

    async def stop(self) -> None:
        """End every transfer. What has come is kept, and can be gone on with; who asks meanwhile is to ask again.

        What takes longer than STOP_SECONDS is left behind: a disk that hangs, or the look-up of a name.

        Stop the updater after this: nobody is to take the end of this run of the daemon for the end of an update.
        """
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(self.fetches.stop(), self._rest_all())

    async def _rest_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._receiving):
            await self._rest(name)
        await asyncio.to_thread(self._thread.shutdown)

    # Receiving

    async def _receive_open(self, args: dict[str, Any]) -> dict[str, Any]:
        """Where to go on with a container or a delta, or what makes that unnecessary.

        {"offset": so many bytes are here}, {"job": which installs it, and the terms it was begun with},
        {"present": true} as it serves already or, with what to do about that, is `unused` by any pipeline, or
        {"missing": the base} where a delta would be of no use.
        """
        self._refuse_when_stopping()
        ask = _understood(args, _Open)
        if known := await self._known(ask):
            return known
        receiving = self._receiving.get(ask.id)
        if receiving is None:
            coming = InboundVersion("receiving", ask.bare.model if ask.bare else "")
            opening = self._on_thread(self._open, ask, coming)
            receiving = self._receiving[ask.id] = _Receiving(opening, coming, ask.bare)
        try:
            transfer = await asyncio.shield(receiving.opening)
        except EdgedError:
            self._receiving.pop(ask.id, None)
            raise
        self._rest_later(ask.id)
        return {"offset": transfer.received}

    async def _receive_chunk(self, args: dict[str, Any]) -> dict[str, Any]:
        """Take bytes, and say how many there are. Those that were there before are not taken again."""
        self._refuse_when_stopping()
        chunk = _understood(args, _Chunk)
        receiving = self._get(chunk.id)
        self._rest_later(chunk.id)
        try:
            offset = await self._on_thread(_take, receiving.transfer, chunk)
        except EdgedError as error:
            if not error.retryable and receiving.job is None:  # nothing that could follow would make it better
                await self._discard(chunk.id)
            raise
        return {"offset": offset}

    async def _receive_done(self, args: dict[str, Any]) -> dict[str, Any]:
        """All of it has been sent: install it, on these terms. Whoever says so again is told the same job."""
        self._refuse_when_stopping()
        ask = _understood(args, _Done)
        receiving = self._get(ask.id)
        self._rest_later(ask.id)
        if receiving.job is None:
            path = await self._on_thread(receiving.transfer.complete)
        if receiving.job is None:
            receiving.job = self._updater.install(path, ask.options(ask.origin, receiving.bare))
            self._spawn(self._let_go_when_released(ask.id, receiving, receiving.job))
        return _begun(receiving.job)

    async def _known(self, ask: _Open) -> dict[str, Any]:
        """Return what makes sending a container unnecessary, if anything. Raises BundleError if it may not come in."""
        receiving = self._receiving.get(ask.id)
        if receiving and receiving.job:
            return _begun(receiving.job)
        if ask.bare:
            self._door.admit_bare()
            if self._door.serves_file(ask.bare, ask.digest):
                return {"present": True}
        for job in self._updater.jobs():
            if job.digest == ask.digest and not job.ended.is_set():
                return _begun(self.fetches.job_of(job))
        standing = ModelsSnapshot(await self._updater.models())
        if ask.bare:
            standing.admit_bare(ask.bare, allow_downgrade=ask.allow_downgrade)
            return {}
        standing.refuse_rejected(ask.digest)
        if any(ask.digest == model.serving and not self._door.lost(model.name) for model in standing.models):
            return {"present": True}
        if standing.is_unused(ask.digest):
            return {"present": True, "unused": NAME_IT}
        if ask.name and ask.number:
            standing.admit(ask.name, ask.digest, ask.number, allow_downgrade=ask.allow_downgrade)
        return {"missing": ask.base} if ask.base and ask.base not in standing.bases else {}

    def _open(self, ask: _Open, coming: InboundVersion) -> Transfer:
        """On the thread: begin or go on with a transfer, in which a check reads along from the first byte."""

        def approve(head: Head, transfer: str, _base: str) -> None:
            if transfer != ask.id:
                raise BundleError("this is not the container that was announced", hint="send it again")
            self._door.approve(head)
            coming.name(head)

        check: Callable[[], ArrivalCheck] = partial(VersionCheck, approve)
        if ask.bare:
            check = partial(BareCheck, ask.size, ask.digest)
        coming.transfer = self._incoming.open(ask.id, total=ask.size, check=check)
        return coming.transfer

    def _get(self, name: str) -> _Receiving:
        receiving = self._receiving.get(name)
        if receiving is None or not receiving.opening.done():
            raise ControlError("no such transfer is open", hint="begin with receive-open", retryable=True)
        return receiving

    def _rest_later(self, name: str) -> None:
        """Somebody sends: put the transfer to rest only when that has not happened for a while."""
        if receiving := self._receiving.get(name):
            receiving.stay()
            loop = asyncio.get_running_loop()
            receiving.timer = loop.call_later(self._idle, lambda: self._spawn(self._rest(name)))

    async def _rest(self, name: str) -> None:
        """Close a transfer, and keep what has come."""
        receiving = self._receiving.get(name)
        if receiving is None or receiving.job is not None:  # it is gone meanwhile, or needed
            return
        del self._receiving[name]
        receiving.stay()
        with contextlib.suppress(EdgedError):  # nothing is left of it then, and whoever sends it begins anew
            await self._on_thread((await receiving.opening).close)

    async def _discard(self, name: str) -> None:
        if receiving := self._receiving.pop(name, None):
            receiving.stay()
            await self._on_thread(receiving.transfer.discard)

    async def _let_go_when_released(self, name: str, receiving: _Receiving, job: Job) -> None:
        """It is not needed any more, but where this device is at fault, and it may be installed at another time."""
        await job.released.wait()
        if job.state == "failed":
            receiving.job = None
            await self._rest(name)
        else:
            await self._discard(name)

    # Fetching

    async def _fetch(self, args: dict[str, Any]) -> dict[str, Any]:
        ask = _understood(args, _Url)
        options = ask.options(mask(ask.url), ask.bare)
        return {"job": self.fetches.fetch(ask.url, options, ask.bare.model if ask.bare else "", operator=True).id}

    async def _tell_progress(self) -> None:
        """Say how far everything is that comes, of which it is known what it is, and that has got further."""
        told: dict[int, int] = {}
        while True:
            await asyncio.sleep(self._tell_every)
            coming = [
                *(each.coming for each in self._receiving.values() if each.job is None),
                *self.fetches.coming,
            ]
            known = [each for each in coming if each.model and not each.quiet]
            news = [each for each in known if each.received > told.get(id(each), 0)]
            told = {id(each): each.received for each in coming}
            for each in news:
                self._say(each.event(f"update.{each.phase}", f"{each.received} of {each.total or 'unknown'} bytes"))

    # Jobs

    async def _jobs(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        return [self._told(job) for job in self._all_jobs().values()]

    async def _job(self, args: dict[str, Any]) -> dict[str, Any]:
        job = self._find(_understood(args, _JobId).id)
        return {**self._told(job), "events": [self._item(event) for event in job.events]}

    async def _job_watch(self, args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """The steps of a job after the moment `after`, as they are taken, and then how it ended.

        Meanwhile a fetch tells how far it is, and every job that it is alive. Who says what `digest` it should install
        is not shown another that happens to have the same number, after the daemon has begun anew.
        """
        ask = _understood(args, _Watch)
        job, progress, silent = self._find(ask.id, ask.digest), None, 0.0
        last = ask.after if ask.after <= time.monotonic() else 0.0  # that was before the board began anew
        while True:
            self._refuse_when_stopping()
            ended = job.ended.is_set()
            items = [self._item(event) for event in job.events if event.time > last]
            if (now := self.fetches.progress(job)) and now != progress:
                items.append({"id": "job.progress", **now})
                progress = now
            if ended:
                items.append({"id": "job.ended", **self._told(job)})
            silent = 0.0 if items else silent + _POLL_SECONDS
            if silent >= _SIGN_OF_LIFE_SECONDS:
                items.append({"id": "job.alive"})
                silent = 0.0
            for item in items:
                yield item
                last = item.get("at", last)
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await job.ended.wait()

    def _all_jobs(self) -> dict[str, Job]:
        """By id. A fetch and the install it ends in are one job."""
        installs = [job for job in self._updater.jobs() if self.fetches.job_of(job) is job]
        return {job.id: job for job in [*self.fetches.jobs, *installs]}

    def _find(self, name: str, digest: str = "") -> Job:
        jobs = self._all_jobs()
        unnamed = "" if jobs.get(name) in self._updater.jobs() else digest  # who was shown a fetch knew what it brings
        if name not in jobs or (digest and jobs[name].digest not in (unnamed, digest)):
            raise ControlError(
                f"there is no job {name!r} since the daemon began",
                hint="edgectl jobs lists those there are, and edgectl models says what serves",
            )
        return jobs[name]

    def _told(self, job: Job) -> dict[str, Any]:
        return {
            "job": job.id,
            "model": job.model,
            "version": job.version,
            "digest": job.digest,
            "origin": job.options.origin,
            "state": job.state,
            "text": job.text,
            "hint": job.hint,
            "began": self._clock.at(job.events[0].time) if job.events else None,
            "last": job.events[-1].text if job.events else "",
        }

    def _item(self, event: Event) -> dict[str, Any]:
        time = self._clock.at(event.time)
        return {"id": event.id, "model": event.model, "text": event.text, "time": time, "at": event.time}

    # What an operator decides

    async def _rollback(self, args: dict[str, Any]) -> dict[str, Any]:
        ask = _understood(args, _Rollback)
        await self._updater.rollback(ask.model, ask.to)
        return await self._standing(ask.model)

    async def _confirm(self, args: dict[str, Any]) -> dict[str, Any]:
        ask = _understood(args, _Model)
        await self._updater.confirm(ask.model)
        return await self._standing(ask.model)

    async def _pin(self, args: dict[str, Any]) -> dict[str, Any]:
        ask = _understood(args, _Pin)
        was = {report.name: report.ledger.pinned for report in await self._updater.models()}.get(ask.model)
        await self._updater.pin(ask.model, ask.pinned)
        return {**await self._standing(ask.model), "changed": was != ask.pinned}

    async def _clear_rejection(self, args: dict[str, Any]) -> dict[str, Any]:
        ask = _understood(args, _Rejection)
        await self._updater.forget_rejection(ask.model, ask.digest)
        return await self._standing(ask.model)

    async def _standing(self, model: str) -> dict[str, Any]:
        """What serves, after what was decided."""
        report = next(report for report in await self._updater.models() if report.name == model)
        return {
            "model": model,
            "serving": report.serving,
            "version": _number(report, report.serving or ""),
            "factory": report.serving in report.factory,
            "pinned": report.ledger.pinned,
            "under_way": report.ledger.candidate is not None,
        }

    async def versions(self) -> dict[str, dict[str, Any]]:
        """The versions of each model that are here or were rejected. Raises StoreError."""
        return {
            report.name: {"pinned": report.ledger.pinned, "versions": list(_versions(report))}
            for report in await self._updater.models()
        }

    # Threads and tasks

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise ControlError(
                "the daemon is stopping", hint="what is under way goes on when it is back", retryable=True
            )

    def _on_thread(self, do: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, do, *args)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(eq=False)
class _Receiving:
    """A transfer that is sent to: open, or about to be; `job` once it is complete."""

    opening: asyncio.Future[Transfer]
    coming: InboundVersion
    bare: Bare | None = None
    job: Job | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def transfer(self) -> Transfer:
        return self.opening.result()

    def stay(self) -> None:
        if self.timer:
            self.timer.cancel()


def _begun(job: Job) -> dict[str, Any]:
    """What whoever brings something is told of the job that installs it: not all have asked for the same."""
    return {"job": job.id, "confirm_within": job.options.confirm_within}


def _take(transfer: Transfer, chunk: _Chunk) -> int:
    """On the thread: append what is new of a chunk; how many bytes there are."""
    there = transfer.received
    if chunk.offset > there:
        raise ControlError(
            f"the chunk begins at {chunk.offset}, and there are {there} bytes", hint="open it again", retryable=True
        )
    if chunk.offset + len(chunk.data) > there:
        transfer.append(chunk.data[there - chunk.offset :])
    if chunk.durable:
        transfer.sync()
    return transfer.received


def _number(report: Report, digest: str) -> str:
    known = report.ledger.versions.get(digest)
    return known.version if known else report.factory.get(digest, "")


def _versions(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the versions of a model with their roles, the installed ones first."""
    ledger = report.ledger
    for digest in dict.fromkeys((*reversed(ledger.versions), *report.factory, *ledger.rejected)):
        rejection = ledger.rejected.get(digest)
        roles = {
            "serves": digest == report.serving,
            "under way": ledger.candidate is not None and digest == ledger.candidate.digest,
            "active": digest == ledger.active != report.serving,
            "previous": digest == ledger.previous,
            "factory": digest in report.factory,
            "rejected": rejection is not None,
            "out of order": digest in report.unfit,
        }
        reason = report.unfit[digest].reason if digest in report.unfit else rejection.reason if rejection else ""
        yield {
            "version": _number(report, digest) or (rejection.version if rejection else ""),
            "digest": digest,
            "roles": [role for role, plays in roles.items() if plays],
            "reason": reason,
        }


# What is asked, as it must be


class _Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of a verb. `asked_by` is who asks, as the control socket's server says."""

    asked_by: str = ""


def _bare(model: str | None, version: str | None) -> Bare | None:
    """It is a bare file where it is said which model it is for."""
    return None if model is None else Bare(model=model, version=version)


class _Open(_Ask, frozen=True, kw_only=True):
    """`digest` is that of a version's manifest, or of the file if that is `bare`.

    The `name` and `number` of a version that is no bare file, and `allow_downgrade`, are what the daemon refuses it by
    before it is sent. All of it is looked at again when it is here.
    """

    id: Digest
    size: Annotated[int, Meta(ge=1, le=2 * MAX_BUNDLE_BYTES)]
    digest: Digest
    base: Digest | None = None
    name: Name | None = None
    number: Version | None = None
    allow_downgrade: bool = False
    model: Name | None = None
    version: Version | None = None

    @property
    def bare(self) -> Bare | None:
        return _bare(self.model, self.version)


class _Chunk(_Ask, frozen=True, kw_only=True):
    id: Digest
    offset: Annotated[int, Meta(ge=0)]
    data: Annotated[bytes, Meta(min_length=1, max_length=MAX_CHUNK)]
    durable: bool = False


class _Install(_Ask, frozen=True, kw_only=True):
    allow_downgrade: bool = False
    confirm_within: Annotated[float, Meta(ge=0, le=30 * 86400)] = 0.0

    def options(self, origin: str, bare: Bare | None) -> InstallOptions:
        """For the updater."""
        return InstallOptions(
            origin=origin,
            asked_by=self.asked_by,
            bare=bare,
            allow_downgrade=self.allow_downgrade,
            confirm_within=self.confirm_within,
        )


class _Done(_Install, frozen=True, kw_only=True):
    id: Digest
    origin: Annotated[str, Meta(max_length=200)] = ""


class _Url(_Install, frozen=True, kw_only=True):
    url: Annotated[str, Meta(max_length=MAX_URL)]
    model: Name | None = None
    version: Version | None = None

    @property
    def bare(self) -> Bare | None:
        return _bare(self.model, self.version)


class _JobId(_Ask, frozen=True, kw_only=True):
    id: Annotated[str, Meta(max_length=50)]


class _Watch(_JobId, frozen=True, kw_only=True):
    after: float = 0.0
    digest: Annotated[str, Meta(max_length=64)] = ""


class _Model(_Ask, frozen=True, kw_only=True):
    model: Name


class _Rollback(_Model, frozen=True, kw_only=True):
    to: Annotated[str, Meta(max_length=64)] = ""


class _Pin(_Model, frozen=True, kw_only=True):
    pinned: bool


class _Rejection(_Model, frozen=True, kw_only=True):
    digest: Annotated[str, Meta(min_length=1, max_length=64)]


def _understood(args: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(args, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise ControlError(f"the request cannot be understood: {error}", hint="is edgectl of this version?") from error
