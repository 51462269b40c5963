"""Verbs of the control socket about versions: send, fetch, watch, roll back, confirm, pin.

Every way in, from a file on the board, over SSH or from a URL, ends in `PartialFiles` and then with the updater, the
only judge of versions. receive.py takes the files sent by clients, fetch_jobs.py fetches the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator

from edged.api import ControlError, WallClock
from edged.core import update_answers
from edged.core.answers import ModelVersionsAnswer, VersionAnswer
from edged.core.protocol import Args
from edged.core.update_answers import JobAnswer, JobDetailsAnswer, JobItemAnswer, ServingAnswer, TransferAnswer
from edged.system.urls import mask
from edged.transfer.options import FetchOptions
from edged.transfer.partial_files import PartialFiles
from edged.updates.fetch_jobs import FetchJobs
from edged.updates.intake import InboundChecks, InstallControl
from edged.updates.jobs import Event, Job, ModelReport
from edged.updates.receive import Receiver
from edged.updates.requests import (
    FetchRequest,
    JobRequest,
    ModelRequest,
    PinRequest,
    RejectionRequest,
    RollbackRequest,
    WatchRequest,
    parse,
)

IDLE_SECONDS = 60.0
"""Seconds of silence until a transfer from a client is closed. The received bytes are kept."""

STOP_SECONDS = 2.0
"""Longest time, in seconds, to put received bytes on disk at the end of a run. Results wait to be saved, too."""

PROGRESS_SECONDS = 5.0
"""Seconds between two published figures of the progress of an inbound version."""

_POLL_SECONDS = 0.2
_ALIVE_SECONDS = 5.0


class Updates:
    """The verbs: `calls` have one answer, `streams` many until the client leaves, and `changes` are logged."""

    def __init__(
        self,
        partial_files: PartialFiles,
        updater: InstallControl,
        *,
        checks: InboundChecks,
        clock: WallClock,
        publish: Callable[[Event], None] = lambda event: None,
        fetch: FetchOptions | None = None,
        urls: Collection[str] = (),
        idle: float = IDLE_SECONDS,
        progress_every: float = PROGRESS_SECONDS,
    ) -> None:
        """Create the verbs. `publish` is called with the progress of inbound versions, and with failed fetches.

        `urls` are the models' URLs in the configuration, and `idle` is the time until a silent transfer is closed.
        """
        self._updater = updater
        self._clock = clock
        self._publish = publish
        self._progress_every = progress_every
        self.fetch_jobs = FetchJobs(partial_files, updater, checks, publish, fetch or FetchOptions(), urls)
        self._receiver = Receiver(partial_files, updater, checks, self.fetch_jobs.job_of, idle)
        self._progress_task: asyncio.Task[None] | None = None
        self._stopping = False

        self.calls = {
            **self._receiver.calls,
            **dict(
                (
                    update_answers.FETCH.by(self._fetch),
                    update_answers.JOB.by(self._job),
                    update_answers.JOBS.by(self._jobs),
                    update_answers.ROLLBACK.by(self._rollback),
                    update_answers.CONFIRM.by(self._confirm),
                    update_answers.PIN.by(self._pin),
                    update_answers.CLEAR_REJECTION.by(self._clear_rejection),
                )
            ),
        }
        self.streams = dict([update_answers.JOB_WATCH.by(self._job_watch)])
        self.changes = frozenset({"receive-done", "fetch", "rollback", "confirm", "pin", "clear-rejection"})

    async def start(self) -> None:
        """Discard obsolete files, and continue the fetches of an earlier run."""
        self._progress_task = asyncio.get_running_loop().create_task(self._publish_progress())
        await self._receiver.start()
        self.fetch_jobs.resume()

    async def stop(self) -> None:
        """End every transfer. Received bytes are kept for the next run, and clients are told to ask again later.

        A disk or a look-up of a name gets at most STOP_SECONDS. Stop the updater afterwards, or a client would take the
        end of the run for the end of an update.
        """
        self._stopping = True
        if self._progress_task:
            self._progress_task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(self.fetch_jobs.stop(), self._receiver.stop())

    async def versions(self) -> dict[str, ModelVersionsAnswer]:
        """Return the installed and the rejected versions of each model. Raises StoreError."""
        return {
            report.name: {"pinned": report.ledger.pinned, "versions": list(_versions(report))}
            for report in await self._updater.models()
        }

    # Fetching

    async def _fetch(self, args: Args) -> TransferAnswer:
        request = parse(args, FetchRequest)
        options = request.options(mask(request.url), request.bare)
        model = request.bare.model if request.bare else ""
        return {"job": self.fetch_jobs.fetch(request.url, options, model, operator=True).id}

    async def _publish_progress(self) -> None:
        """Publish the progress of every known inbound version since the last time."""
        published: dict[int, int] = {}
        while True:
            await asyncio.sleep(self._progress_every)
            inbound = [*self._receiver.inbound, *self.fetch_jobs.inbound]
            known = [each for each in inbound if each.model and not each.quiet]
            grown = [each for each in known if each.received > published.get(id(each), 0)]
            published = {id(each): each.received for each in inbound}
            for each in grown:
                text = f"{each.received} of {each.total or 'unknown'} bytes"
                self._publish(each.event(f"update.{each.phase}", text))

    # Jobs

    async def _jobs(self, args: Args) -> list[JobAnswer]:
        return [self._job_answer(job) for job in self._all_jobs().values()]

    async def _job(self, args: Args) -> JobDetailsAnswer:
        job = self._find(parse(args, JobRequest).id)
        return {**self._job_answer(job), "events": [self._step_answer(event) for event in job.events]}

    async def _job_watch(self, args: Args) -> AsyncGenerator[JobItemAnswer, None]:
        """Yield the steps of a job after the moment `after`, and then the end.

        In between, a fetch yields the progress, and every job a sign of life. With a `digest`, a job of another version
        with the same number since a restart of the daemon is refused.
        """
        request = parse(args, WatchRequest)
        job, progress, silent = self._find(request.id, request.digest), None, 0.0
        last = request.after if request.after <= time.monotonic() else 0.0  # else a moment before a reboot
        while True:
            self._refuse_when_stopping()
            ended = job.ended.is_set()
            items = [self._step_answer(event) for event in job.events if event.time > last]
            if (now := self.fetch_jobs.progress(job)) and now != progress:
                items.append(now)
                progress = now
            if ended:
                items.append(_ended(self._job_answer(job)))
            silent = 0.0 if items else silent + _POLL_SECONDS
            if silent >= _ALIVE_SECONDS:
                items.append({"id": "job.alive", "text": self._updater.probation(job)})
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
        """Return the jobs by id. A fetch and the install afterwards are the same job."""
        installs = [job for job in self._updater.jobs() if self.fetch_jobs.job_of(job) is job]
        return {job.id: job for job in [*self.fetch_jobs.jobs, *installs]}

    def _find(self, name: str, digest: str = "") -> Job:
        jobs = self._all_jobs()
        # A fetch gets a digest on the way; until then, the digest known to a client is no reason to refuse.
        unnamed = "" if jobs.get(name) in self._updater.jobs() else digest
        if name not in jobs or (digest and jobs[name].digest not in (unnamed, digest)):
            raise ControlError(
                f"there is no job {name!r} since the start of the daemon",
                hint="list the jobs with `edgectl jobs`, or the versions with `edgectl models`",
            )
        return jobs[name]

    def _job_answer(self, job: Job) -> JobAnswer:
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

    def _step_answer(self, event: Event) -> JobItemAnswer:
        time = self._clock.at(event.time)
        return {"id": event.id, "model": event.model, "text": event.text, "time": time, "at": event.time}

    # An operator's decisions

    async def _rollback(self, args: Args) -> ServingAnswer:
        request = parse(args, RollbackRequest)
        await self._updater.rollback(request.model, request.to)
        return await self._model_answer(request.model)

    async def _confirm(self, args: Args) -> ServingAnswer:
        request = parse(args, ModelRequest)
        await self._updater.confirm(request.model)
        return await self._model_answer(request.model)

    async def _pin(self, args: Args) -> ServingAnswer:
        request = parse(args, PinRequest)
        was = {report.name: report.ledger.pinned for report in await self._updater.models()}.get(request.model)
        await self._updater.pin(request.model, request.pinned)
        return {**await self._model_answer(request.model), "changed": was != request.pinned}

    async def _clear_rejection(self, args: Args) -> ServingAnswer:
        request = parse(args, RejectionRequest)
        await self._updater.forget_rejection(request.model, request.digest)
        return await self._model_answer(request.model)

    async def _model_answer(self, model: str) -> ServingAnswer:
        """Return the version in service after an operator's decision."""
        report = next(report for report in await self._updater.models() if report.name == model)
        return {
            "model": model,
            "serving": report.serving,
            "version": _number(report, report.serving or ""),
            "factory": report.serving in report.factory,
            "pinned": report.ledger.pinned,
            "under_way": report.ledger.candidate is not None,
        }

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise ControlError("the daemon is stopping", hint="watch the job again after the restart", retryable=True)


def _ended(job: JobAnswer) -> JobItemAnswer:
    return {
        "id": "job.ended",
        "job": job["job"],
        "model": job["model"],
        "version": job["version"],
        "digest": job["digest"],
        "origin": job["origin"],
        "state": job["state"],
        "text": job["text"],
        "hint": job["hint"],
        "began": job["began"],
        "last": job["last"],
    }


def _number(report: ModelReport, digest: str) -> str:
    known = report.ledger.versions.get(digest)
    return known.version if known else report.factory.get(digest, "")


def _versions(report: ModelReport) -> Iterator[VersionAnswer]:
    """Yield the versions of a model with roles, installed versions first."""
    ledger = report.ledger
    for digest in dict.fromkeys((*reversed(ledger.versions), *report.factory, *ledger.rejected)):
        rejection, known = ledger.rejected.get(digest), ledger.versions.get(digest)
        roles = {
            "serves": digest == report.serving,
            "under way": ledger.candidate is not None and digest == ledger.candidate.digest,
            "suspended": report.suspended and ledger.candidate is not None and digest == ledger.candidate.digest,
            "active": digest == ledger.active != report.serving,
            "previous": digest == ledger.previous,
            "factory": digest in report.factory,
            "rejected": rejection is not None,
            "reverted": known is not None and known.reverted != "",
            "out of order": digest in report.unfit,
        }
        if known and not any(roles.values()):
            roles["former" if known.confirmed else "unconfirmed"] = True
        if digest in report.unfit:
            reason = report.unfit[digest].reason
        elif rejection:
            reason = rejection.reason
        else:
            reason = known.reverted if known else ""
        yield {
            "version": _number(report, digest) or (rejection.version if rejection else ""),
            "digest": digest,
            "roles": [role for role, plays in roles.items() if plays],
            "reason": reason,
        }
