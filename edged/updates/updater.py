"""The hands of the update machine: look at disk and board, have `decide` say what is next, do that, look again.

core/decide.py is how to think about updates; nothing here has an opinion. `Updater` has one loop, `_settle`, which an
install, an operator's request and the passing of time all end in, and which is also how a daemon begins. One thing at
a time is done to a model, under its lock; what blocks is done on another thread.

An install goes: the head of the container, or of what stands for one, is read, its signature verified, and
the ledger asked whether this version may come in; it is unpacked and read back; the board says whether it fits; then it
is put in its place and recorded as the candidate. From there on `decide` has it, in this run of the daemon or the next.
Until there a power cut leaves nothing but litter, and the sender offers it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from edged.core import ledger as ledgers
from edged.core import manifest as manifests
from edged.core import probation
from edged.core.container import Head
from edged.core.decide import (
    Answer,
    Keep,
    ModelFacts,
    PointLink,
    Remove,
    ReplaceLedger,
    Serve,
    Step,
    Try,
    VersionFault,
    decide,
    in_use,
    is_suspended,
    target,
)
from edged.core.errors import BundleError, ControlError, EdgedError, ModelError, StoreError, some
from edged.core.ledger import Candidate, Installed, Ledger
from edged.core.manifest import Manifest, Probation, version_key
from edged.core.probation import Observed, Watch
from edged.core.record import Phase
from edged.core.verdict import Failure, Verdict
from edged.models.atomic_files import ASIDE, Disk
from edged.models.bare_file import nothing_to_inherit, own_parts
from edged.models.bundle import MANIFEST, Bundle
from edged.models.signatures import AHEAD_SECONDS, Trust
from edged.models.store import BRING, FactoryVersion, ModelFolder, Store, open_version
from edged.updates import unpack as arrivals
from edged.updates.jobs import NAME_IT, Ending, Event, InstallOptions, Job, Outcome, Report
from edged.updates.unpack import Submission

log = logging.getLogger("edged.models")

P = ParamSpec("P")
T = TypeVar("T")

INTERVAL = 1.0
"""How often, in seconds, what is under way is looked at."""

AGAIN_SECONDS = 60.0
"""How long a board on which nothing serves waits before it tries again what is no version's fault and may pass.

It waits for twice as long from one time to the next, for what serves in one of several pipelines may be disturbed.
"""

MAX_AGAIN_SECONDS = 3600.0

START_SECONDS = 60.0
"""How long the start of the daemon waits for what an earlier run has left: the service manager waits for the daemon."""

STOP_SECONDS = 4.0
"""How long the end of a run may wait for what is being done on other threads."""

MAX_JOBS = 50
MAX_STEPS = 100
"""So many at a time are far more than any update takes."""


class ServingModels(Protocol):
    """What the daemon does for the updater, on the event loop. Models go by name, versions by digest."""

    def serving(self, model: str) -> str | None:
        """The version that answers now; "" for none, None where no pipeline uses the model."""

    def models(self) -> Collection[str]:
        """The models that pipelines or the configuration name; not all of them need be here."""

    def named(self, model: str) -> str:
        """The number of the version that the configuration has a model stay with; "" for any."""

    def fit(self, model: str, manifest: Manifest) -> None:
        """Raises EdgedError where a version cannot serve here: runtime, memory, or the pipelines' sources."""

    async def try_out(self, model: str, bundle: Bundle) -> Verdict:
        """Have a version prove itself in a child process. Raises ModelError if none could be started."""

    async def swap(self, model: str, bundle: Bundle | None) -> None:
        """Have all pipelines that use a model switch to this version, or let go of what they have where it is None.

        Returns when the new one has answered. Raises EdgedError if it does not, and then the old one goes on serving
        where it still can.
        """

    def observed(self, model: str) -> Observed:
        """What the version that serves did since the swap."""


class Updater:
    """Keeps the models of a board up to date, and never without one that works, if there is any.

    `run` names this run of the daemon, and no other. `say` hears every event, on the event loop.
    """

    def __init__(
        self,
        store: Store,
        board: ServingModels,
        *,
        trust: Trust,
        run: str,
        say: Callable[[Event], None],
        keep: Keep | None = None,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        synchronised: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._board = board
        self._trust = trust
        self._run = run
        self._tell = say
        self._keep = keep or Keep()
        self._disk = disk or Disk()
        self._clock = clock
        self._wall = wall
        self._synchronised = synchronised
        self._memories: dict[str, _Memory] = {}
        self._jobs: deque[Job] = deque(maxlen=MAX_JOBS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = count(1)
        self._stopping = False

    # Its life

    async def start(self) -> None:
        """Go on with whatever an earlier run has left; when this returns, the best there is serves.

        What takes longer than START_SECONDS, as trials of models that hang do, goes on meanwhile.
        """
        resuming = self._spawn(self._resume_all())
        done, _ = await asyncio.wait([resuming], timeout=START_SECONDS)
        for task in done:
            task.result()

    async def run(self) -> None:
        """Keep watching what is under way, until cancelled; what is being done then is for `stop` to wait for."""
        while True:
            unsettled = [name for name, each in self._memories.items() if each.unsettled]
            await asyncio.gather(*(asyncio.shield(self._spawn(self.settle(name))) for name in unsettled))
            await asyncio.sleep(INTERVAL)

    async def stop(self) -> None:
        """End this run, without holding it against any candidate. What is under way goes on in the next.

        What takes longer than STOP_SECONDS is left behind, for results wait to be saved: then a run is spent.

        Whoever runs `run` has cancelled that before.
        """
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                if self._tasks:
                    await asyncio.wait(self._tasks)  # not gather, which would have to see them ended
                for name, memory in list(self._memories.items()):
                    async with memory.lock:
                        await self._give_back(name)

    async def settle(self, name: str) -> None:
        """Take all the steps there are to take about a model now."""
        async with self._memory(name).lock:
            await self._settle(name)

    async def keep_ledgers(self) -> None:
        """Write again what somebody else has changed or deleted of the ledgers: what this run knows is the truth."""
        for name, memory in list(self._memories.items()):
            async with memory.lock:
                ledger = memory.ledger
                if self._stopping or ledger is None or await _on_thread(self._store.shelf(name).holds, ledger):
                    continue
                text = f"{self._store.shelf(name).folder}: somebody changed or deleted the ledger; it is written again"
                log.warning("%s: %s", name, text, extra={"model": name})
                try:
                    await _on_thread(self._write, name, ledger)
                except StoreError as error:
                    self._say(name, "update.hindered", str(error))
                await self._settle(name)

    @asynccontextmanager
    async def held(self, names: Collection[str]) -> AsyncIterator[None]:
        """Take no step about these models while whoever is inside changes what serves them; and then see to them.

        What did not serve as things were has another chance as they are then.
        """
        held = [name for name in self._names() if name in names]
        async with AsyncExitStack() as locks:
            for name in held:
                await locks.enter_async_context(self._memory(name).lock)
            yield
            for name in held:
                self._memory(name).unfit.clear()
                await self._settle(name)

    def abide_by(self, trust: Trust, keep: Keep) -> None:
        """From now on, trust these and keep so much."""
        self._trust, self._keep = trust, keep

    async def knows(self, file: Path) -> bool:
        """Whether what is in a file that came in is installed, under way or rejected: then it has done its duty."""
        try:
            digest = (await _on_thread(arrivals.read, file)).head.digest
        except EdgedError:  # not even its head is there, or it is a bare file, and nobody knows of what
            return False
        try:
            known = [(await self._look(name)).ledger for name in self._store.installed()]
        except StoreError:  # nobody knows now
            return False
        return any(
            digest in ledger.rejected or digest in (ledger.active, ledger.candidate and ledger.candidate.digest)
            for ledger in known
        )

    # What may be asked of it

    def install(self, container: Path, options: InstallOptions) -> Job:
        """Begin to install a version from a file, which must stay until the job has `released` it.

        That is a container, a delta that stands for one, or a bare model if the options say so.
        """
        job = self._new_job(options)
        self._spawn(self._install(job, container))
        return job

    async def rollback(self, name: str, to: str = "") -> None:
        """Go back to what served before, a version confirmed here (its number or digest), or the "factory".

        Raises:
            ControlError: there is nothing of that kind to go back to.
            ModelError: it does not serve, and the best there is serves instead; or the factory's is not sound, and
                nothing has changed.
            StoreError: the disk refuses.
        """
        factory = await _on_thread(self._store.factory, name)
        named = self._board.named(name)

        def rolled_back(ledger: Ledger) -> Ledger:
            if named and (to or ledger.candidate is None):
                raise ledgers.held_by_configuration(name, named)
            has_factory = next(iter(factory), None) not in (None, ledger.active)
            return ledgers.rolled_back(ledger, name, to, has_factory=has_factory)

        ledger = (await self._look(self._known(name))).ledger
        if ledger.active is not None and rolled_back(ledger).active is None:
            await self._require_factory(name, factory)
        await self._change(name, rolled_back, "update.rolled_back", "an operator rolled it back")
        facts = await self._look(name)
        wanted = target(replace(facts, unfit={}))
        if wanted in facts.unfit:
            fault = facts.unfit[wanted]
            raise ModelError(f"{name} {self._number(name, facts, wanted)} does not serve: {fault.reason}")

    async def _require_factory(self, name: str, digests: Iterable[str]) -> None:
        """Raises ModelError where no factory version is sound: what serves would be given up for nothing."""
        problem = "there is none"
        for digest in digests:
            try:
                await _on_thread(self._store.open, name, digest)
            except EdgedError as error:
                problem = str(error)
            else:
                return
        raise ModelError(f"{name} stays as it is, for its factory version cannot be had: {problem}")

    async def confirm(self, name: str) -> None:
        """Confirm the candidate that waits for an operator to do so. Raises ControlError if none does."""
        await self._change(
            name, lambda ledger: ledgers.vouched(ledger, name), "update.vouched", "an operator confirmed it"
        )

    async def pin(self, name: str, pinned: bool) -> None:
        """Have a model stay with what it has, or let go of it.

        Raises:
            ControlError: it has nothing to stay with, or another version is under way.
        """
        if pinned and self._known(name) not in self._store.names():
            raise ControlError(f"{name} has no version that it could stay with", hint=BRING)
        text = "pinned to what it has" if pinned else "not pinned any more"
        await self._change(name, lambda ledger: ledgers.pinned(ledger, name, on=pinned), "update.pinned", text)

    async def forget_rejection(self, name: str, digest: str) -> None:
        """Let a rejected version, by its digest or how that begins, be tried again. Raises ControlError."""
        text = f"an operator lets {digest[:12]} be tried again"
        await self._change(name, lambda ledger: ledgers.forgiven(ledger, name, digest), "update.forgiven", text)

    def jobs(self) -> tuple[Job, ...]:
        """The latest jobs of this run of the daemon, the oldest first."""
        return tuple(self._jobs)

    def verify(self, head: Head) -> tuple[str, ...]:
        """Verify who signed a version. Raises what Trust.verify does. Not on the event loop's thread.

        The time is what the clock says or, as a board may have none, the newest signed time seen. A time that a
        synchronised clock knows to be yet to come is none: some signer's clock was wrong.
        """
        now = self._wall()
        today = now if self._synchronised() else None
        ledgers = [memory.ledger for memory in list(self._memories.values()) if memory.ledger]
        seen = [each.created for ledger in ledgers for each in ledger.versions.values() if each.signers]
        known = [created for created in seen if today is None or created <= today + AHEAD_SECONDS]
        return self._trust.verify(head.data, head.signatures, max([now, *known]), today)

    async def models(self) -> tuple[Report, ...]:
        """How every model stands."""
        looks = [(name, await self._look(name)) for name in self._names()]
        return tuple(
            Report(
                name=name,
                serving=facts.serving,
                active=self._active(name, facts),
                factory={digest: self._number(name, facts, digest) for digest in facts.factory},
                ledger=facts.ledger,
                unfit=facts.unfit,
                named=self._board.named(name),
            )
            for name, facts in looks
        )

    # An install

    async def _install(self, job: Job, container: Path) -> None:
        try:
            bare = job.options.bare
            arrival = None if bare else await _on_thread(arrivals.read, container)
            job.model = self._known(bare.model) if bare else ""
            if arrival:
                job.name(arrival.head)
            async with self._memory(job.model).lock:
                try:
                    await self._bring_in(job, arrival or await self._adopt(job, container))
                except EdgedError as error:
                    self._fail(job, error)
                job.released.set()
                await self._settle(job.model)
        except EdgedError as error:  # it is no container, or cannot be read
            self._fail(job, error)
        except asyncio.CancelledError:
            job.end("failed", "the daemon stopped; what has become a candidate goes on when it is back")
            raise
        except Exception as error:
            log.exception("the update of %s met a bug", job.model)
            self._fail(job, _bug(error))

    async def _bring_in(self, job: Job, arrival: Submission) -> None:
        """Make it the candidate, unless it is that already, or more. Raises EdgedError where it may not be.

        First who vouches for it, then what is known of it, then what is in it, and last whether it fits.
        """
        name = job.model
        facts = await self._look(name)
        ledger, memory = facts.ledger, self._memory(name)
        head = arrival.head
        signers = await _on_thread(self.verify, head)
        self._say(name, "update.verified", f"version {job.version} is signed by {', '.join(signers) or 'nobody'}", job)
        if ledger.candidate is not None and ledger.candidate.digest == job.digest:
            if job.options.confirm_within not in (0.0, ledger.candidate.confirm_within):
                text = "it is under way already, on the terms that it was begun with and not on these"
                self._say(name, "update.joined", text, job)
            memory.jobs.append(job)
            return
        ledgers.refuse_unnamed(name, job.version, self._board.named(name))
        if job.digest == (ledger.active or facts.serving):
            await self._renew(job, arrival, facts)
            return
        active = self._active(name, facts)
        ledgers.admit(ledger, name, job.digest, job.version, active, allow_downgrade=job.options.allow_downgrade)
        if ledgers.is_downgrade(ledger, job.version, active):
            origin, who = job.options.origin or "an unknown place", job.options.asked_by or "nobody who is known"
            text = f"version {job.version} from {origin} is a downgrade, for which --allow-downgrade was given by {who}"
            self._say(name, "update.downgrade", text, job)
        await self._unpack(job, arrival)
        facts = await self._look(name)  # older versions may have had to make room
        offered = ledgers.offered(
            facts.ledger,
            job.digest,
            Installed(
                version=job.version,
                created=arrival.head.manifest.created,
                origin=job.options.origin,
                signers=signers,
                installed=self._wall(),
            ),
            job.options.confirm_within,
            unused=facts.serving is None,
        )
        memory.trial = "open"
        memory.unfit.pop(job.digest, None)
        memory.jobs.append(job)
        text = f"version {job.version} is the candidate"
        await self._do(name, ReplaceLedger(offered, "update.offered", text), facts)

    async def _adopt(self, job: Job, file: Path) -> Submission:
        """A bare file, with the contract of the version it would replace; which that is may change but for the lock."""
        name, bare = job.model, job.options.bare
        assert bare is not None
        self._trust.admit_bare()
        facts = await self._look(name)
        before = target(facts)
        if not before:
            raise nothing_to_inherit(name)
        bundle = await _on_thread(self._store.open, name, before)
        arrival = await _on_thread(arrivals.adopt, file, bare, bundle, facts.ledger.floor)
        job.name(arrival.head)
        if job.digest != before:
            text = f"version {job.version} inherits the contract of {bundle.manifest.version}, but no golden samples: "
            text += "it can only prove that it runs"
            if own := own_parts(arrival.head.manifest, bundle.manifest):
                text += f". The file has its own {' and '.join(own)}, which are taken"
            self._say(name, "update.inherited", text, job)
        return arrival

    async def _renew(self, job: Job, arrival: Submission, facts: ModelFacts) -> None:
        """What is active already is done at once; only where it does not serve, it is put back and has another try."""
        name, memory = job.model, self._memory(job.model)
        if facts.ledger.active is not None:
            await self._unpack(job, arrival)
        memory.unfit.pop(job.digest, None)
        await self._settle(name)
        if job.digest in memory.unfit:
            raise ModelError(f"{name} {job.version} is active, but does not serve: {memory.unfit[job.digest].reason}")
        serving = self._board.serving(name)
        if serving not in (job.digest, None):
            facts = await self._look(name)
            raise ModelError(f"{name} {job.version} is active, but {self._outcome(name, facts)}", hint=_SEE)
        if serving is None:
            job.end("installed", f"{name} {job.version} is installed already; no pipeline uses it", NAME_IT)
        else:
            job.end("done", f"{name} {job.version} serves already")

    async def _unpack(self, job: Job, arrival: Submission) -> None:
        """Have it as a folder in its place, read back and found to fit; what is there already need not be written."""
        name = job.model
        shelf = self._store.shelf(name)
        try:
            bundle = await _on_thread(open_version, shelf.version(job.digest), name)
        except BundleError:
            await self._settle(name, room=arrival.head.size + arrivals.RESERVE)
            bundle = await self._unpacked(job, arrival)
            self._board.fit(name, bundle.manifest)
            await _on_thread(arrivals.place, arrival, self._store, self._disk)
        else:
            self._board.fit(name, bundle.manifest)
        self._say(name, "update.unpacked", f"version {job.version} is unpacked and sound", job)

    async def _unpacked(self, job: Job, arrival: Submission) -> Bundle:
        """It, not in its place yet. Whoever sent a delta in vain is told, by an event, to send all of it."""
        try:
            return await _on_thread(arrivals.unpack_beside, arrival, self._store, self._disk)
        except BundleError as error:
            if not arrival.base:
                raise
            text = f"the full bundle is needed: {error.message}"
            self._say(job.model, "update.full_needed", text, job)
            raise BundleError(text, hint="send the full bundle") from error

    # Look, decide, do

    async def _settle(self, name: str, room: int = 0) -> None:
        """Take steps until none is left. What the disk or the board refuses is said, and not tried again this time."""
        if self._stopping:  # what is under way goes on in the next run, which counts anew
            return
        memory = self._memory(name)
        barred: frozenset[type[Step]] = frozenset()
        complaint = ""
        taken = 0
        if memory.again_at is not None and self._clock() >= memory.again_at:
            memory.unfit = {each: fault for each, fault in memory.unfit.items() if fault.kind != "reverted"}
            memory.again_at, memory.pause = None, min(2 * memory.pause, MAX_AGAIN_SECONDS)
        try:
            while (step := decide(facts := await self._look(name, barred, room))) is not None:
                taken += 1
                if taken > MAX_STEPS:  # what is done does not stay done: somebody else is at work in our folder
                    raise StoreError(f"{self._store.shelf(name).folder}: {MAX_STEPS} steps have not led to an end")
                try:
                    await self._do(name, step, facts)
                except EdgedError as error:
                    complaint = str(error)
                    barred |= {type(step)}
                else:
                    if isinstance(step, Remove) and not step.path.endswith(ASIDE):  # there may be room again
                        barred -= {ReplaceLedger}
            hopeful = facts.serving == "" and any(fault.kind == "reverted" for fault in facts.unfit.values())
            if not hopeful:
                memory.again_at, memory.pause = None, AGAIN_SECONDS
            elif memory.again_at is None:
                memory.again_at = self._clock() + memory.pause
            memory.unsettled = facts.ledger.candidate is not None or bool(barred) or hopeful
            self._note_suspension(name, facts)
            self._end_jobs(name, facts)
        except StoreError as error:  # it could not even be looked at
            complaint = str(error)
            memory.unsettled = True
        if complaint and complaint != memory.complaint:
            self._say(name, "update.hindered", complaint)
        memory.complaint = complaint

    def _note_suspension(self, name: str, facts: ModelFacts) -> None:
        """Say so when the candidate's probation is suspended; that it goes on is told by what serves then."""
        memory, candidate = self._memory(name), facts.ledger.candidate
        suspended = is_suspended(facts)
        if suspended and not memory.suspended and candidate is not None:
            number = self._number(name, facts, candidate.digest)
            text = f"the probation of version {number} is suspended: no pipeline uses {name} any more"
            self._say(name, "update.suspended", f"{text} (have one use it again, or: edgectl rollback {name})")
        memory.suspended = suspended

    async def _look(self, name: str, barred: frozenset[type[Step]] = frozenset(), room: int = 0) -> ModelFacts:
        """What is. `room` is how many bytes are wanted, for which old versions may have to go."""
        memory = self._memory(name)
        disk = await _on_thread(self._read, name)
        memory.ledger = memory.ledger or disk.ledger  # it may have changed since, where somebody only asks
        candidate = disk.ledger.candidate
        serving = self._board.serving(name)
        watched: Answer = "open"
        if candidate is None or candidate.phase != "probation" or serving not in (candidate.digest, None):
            memory.serving_since = None
        elif memory.serving_since is None:
            memory.serving_since = self._clock()
        if memory.serving_since is not None and serving is not None:
            watched = _answer(probation.judge(disk.limits, self._board.observed(name), disk.usual))
        memory.factory = disk.factory
        facts = ModelFacts(
            ledger=disk.ledger,
            run=self._run,
            factory=tuple(disk.factory),
            present=disk.present,
            unfit=dict(memory.unfit),
            serving=serving,
            named=self._named(name, disk),
            trial=memory.trial,
            watched=watched,
            waited=0.0 if memory.serving_since is None else self._clock() - memory.serving_since,
            current=disk.current,
            litter=disk.litter,
            keep=self._keep,
            barred=barred,
        )
        return replace(facts, keep=_with_room(facts, disk.free, room)) if room else facts

    def _read(self, name: str) -> _Seen:
        """On another thread: the disk's part of the facts."""
        shelf, memory = self._store.shelf(name), self._memory(name)
        ledger = memory.ledger or shelf.read()
        limits, usual = _limits(shelf, ledger.candidate)
        return _Seen(
            ledger=ledger,
            factory=self._store.factory(name),
            present=shelf.present(),
            current=shelf.current(),
            litter=shelf.litter(),
            limits=limits,
            usual=usual,
            free=shelf.free(),
        )

    def _write(self, name: str, ledger: Ledger) -> None:
        """On another thread: replace the ledger. If that fails, who knows what is on disk; the old one still counts."""
        self._store.shelf(name).write(ledger, self._disk)
        self._memory(name).ledger = ledger

    async def _do(self, name: str, step: Step, facts: ModelFacts) -> None:
        """Take one step. Raises StoreError where the disk refuses."""
        shelf, memory = self._store.shelf(name), self._memory(name)
        match step:
            case ReplaceLedger():
                await _on_thread(self._write, name, step.ledger)
                self._say(name, step.event, step.text)
                memory.note(facts, step)
            case Try(digest):
                memory.trial = await self._try(name, facts, digest)
            case Serve(""):
                await self._board.swap(name, None)
                self._say(name, "update.nothing", "no version is fit to serve")
            case Serve(digest):
                await self._serve(name, facts, digest)
            case PointLink(digest):
                await _on_thread(self._disk.point, shelf.link, digest and f"versions/{digest}")
            case Remove(path):
                await _on_thread(self._disk.remove, shelf.folder / path)

    async def _try(self, name: str, facts: ModelFacts, digest: str) -> Answer:
        number = self._number(name, facts, digest)
        self._say(name, "update.trying", f"version {number} is on trial")
        try:
            bundle = await _on_thread(self._store.open, name, digest)
        except BundleError as error:
            return _unsound(error)
        try:
            verdict = await self._board.try_out(name, bundle)
        except EdgedError as error:  # there was no trial, and so nothing is held against the version
            return VersionFault("reverted", error.message, error.hint)
        except Exception as error:
            log.exception("the trial of %s met a bug", name)
            return VersionFault("reverted", _bug(error).message, _bug(error).hint)
        if not verdict.ok:
            return VersionFault(_ENDS.get(verdict.failure, "rejected"), verdict.reason, verdict.hint)
        self._say(name, "update.tried", _measured(number, verdict))
        return "good"

    async def _serve(self, name: str, facts: ModelFacts, digest: str) -> None:
        number = self._number(name, facts, digest)
        fault = await self._swap(name, digest)
        if fault is None:
            self._say(name, "update.serving", f"version {number} serves")
        else:
            self._memory(name).unfit[digest] = fault
            self._say(name, "update.unfit", f"version {number} does not serve: {fault.reason}")

    async def _swap(self, name: str, digest: str) -> VersionFault | None:
        """Return what keeps a version from serving, if anything does."""
        try:
            bundle = await _on_thread(self._store.open, name, digest)
        except BundleError as error:
            return _unsound(error)
        try:
            await self._board.swap(name, bundle)
        except EdgedError as error:
            its_own = isinstance(error, ModelError | BundleError) and not error.retryable
            return VersionFault("rejected" if its_own else "reverted", error.message, error.hint)
        except Exception as error:
            log.exception("the swap of %s met a bug", name)
            return VersionFault("rejected", _bug(error).message, _bug(error).hint)
        return None if self._board.serving(name) == digest else VersionFault("rejected", "it does not answer")

    # Odds and ends

    async def _change(self, name: str, change: Callable[[Ledger], Ledger], event: str, text: str) -> None:
        """What an operator asks for: change the ledger, and see to what follows. Everything has another chance then."""
        memory = self._memory(self._known(name))
        async with memory.lock:
            if self._stopping:
                raise ControlError("the daemon is stopping", hint="ask again when it is back", retryable=True)
            facts = await self._look(name)
            await self._do(name, ReplaceLedger(change(facts.ledger), event, text), facts)
            memory.unfit.clear()
            await self._settle(name)

    async def _resume_all(self) -> None:
        for name in self._store.installed():
            await self._resume(name)

    async def _resume(self, name: str) -> None:
        """Begin where an earlier run ended, which may have been killed before what it renamed was durable.

        What the card has lost of the ledger since is written again, as long as there is something to copy it from.
        """
        shelf, memory = self._store.shelf(name), self._memory(name)
        async with memory.lock:
            try:
                ledger = memory.ledger = await _on_thread(shelf.read)
            except StoreError:  # said, and tried again, with all that is looked at
                await self._settle(name)
                return
            if ledger.candidate is not None:
                version = ledger.versions[ledger.candidate.digest]
                job = self._new_job(
                    InstallOptions(origin=version.origin, confirm_within=ledger.candidate.confirm_within)
                )
                job.model, job.version, job.digest = name, version.version, ledger.candidate.digest
                job.released.set()
                memory.jobs.append(job)
            try:
                await _on_thread(self._disk.sync_folder, shelf.folder)
                if not await _on_thread(shelf.holds, ledger):
                    await _on_thread(self._write, name, ledger)
            except StoreError as error:
                self._say(name, "update.hindered", str(error))
            await self._settle(name)

    async def _give_back(self, name: str) -> None:
        ledger = self._memory(name).ledger
        spared = ledger and ledgers.given_back(ledger, self._run)
        try:
            if spared is not None and spared != ledger:
                await _on_thread(self._write, name, spared)
        except StoreError as error:
            self._say(name, "update.hindered", str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin what `stop` ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _new_job(self, options: InstallOptions) -> Job:
        job = Job(str(next(self._numbers)), options)
        self._jobs.append(job)
        return job

    def _fail(self, job: Job, error: EdgedError) -> None:
        state: Ending = "failed" if isinstance(error, StoreError) else "refused"
        memory = self._memory(job.model)
        memory.jobs = [each for each in memory.jobs if each is not job]
        self._say(job.model, f"update.{state}", str(error), job, outcome=state)
        job.end(state, error.message, error.hint)

    def _end_jobs(self, name: str, facts: ModelFacts) -> None:
        """Once the board is as it should be after an update's end, say so to those who wait."""
        memory = self._memory(name)
        if memory.ending is None:
            return
        state, text, hint = memory.ending
        if state == "done" and facts.serving is None:
            state, hint = "installed", NAME_IT
        elif state == "done" and facts.serving != facts.ledger.active:
            state, hint = "failed", _SEE
        text = f"{name}: {text}; {self._outcome(name, facts)}"
        if memory.jobs:
            self._tell(self._event(name, "update.ended", text, memory.jobs[0], state, ""))
        for job in memory.jobs:
            job.end(state, text, hint)
        memory.jobs.clear()
        memory.ending = None

    def _say(self, name: str, event: str, text: str, job: Job | None = None, outcome: Outcome = "") -> None:
        """Tell of a step whoever listens: those who wait for the candidate, or for one job that is not yet one."""
        waiting = self._memory(name).jobs if job is None else [job]
        checking = job is not None and not outcome
        said = self._event(name, event, text, next(iter(waiting), None), outcome, "checking" if checking else "")
        for each in waiting:
            each.events.append(said)
        self._tell(said)

    def _event(self, name: str, event: str, text: str, job: Job | None, outcome: Outcome, phase: Phase) -> Event:
        ledger = self._memory(name).ledger
        return Event(
            id=event,
            model=name,
            text=text,
            time=self._clock(),
            version=job.version if job else "",
            digest=job.digest if job else "",
            phase=ledger.candidate.phase if ledger and ledger.candidate and not outcome and not phase else phase,
            outcome=outcome,
        )

    def _outcome(self, name: str, facts: ModelFacts) -> str:
        """What serves now, for people."""
        if facts.serving is None:
            return "no pipeline uses it"
        return f"version {self._number(name, facts, facts.serving)} serves" if facts.serving else "nothing serves"

    def _active(self, name: str, facts: ModelFacts) -> str:
        """The number of the version that an update would follow."""
        return self._number(name, facts, facts.ledger.active or next(iter(facts.factory), ""))

    def _number(self, name: str, facts: ModelFacts, digest: str) -> str:
        """The version's number, for people."""
        if digest in facts.ledger.versions:
            return facts.ledger.versions[digest].version
        known = self._memory(name).factory.get(digest)
        return known.version if known else "0"

    def _named(self, name: str, seen: _Seen) -> frozenset[str] | None:
        """The versions of the number that the configuration has a model stay with; None for any number."""
        number = self._board.named(name)
        if not number:
            return None
        there = [(digest, each.version) for digest, each in (seen.ledger.versions | seen.factory).items()]
        return frozenset(digest for digest, version in there if version_key(version) == version_key(number))

    def _known(self, name: str) -> str:
        """The name of a model there is. Raises ControlError for any other."""
        if name not in self._names():
            raise ControlError(f"there is no model {name!r}", hint=f"there is {some(self._names()) or 'none'}")
        return name

    def _names(self) -> list[str]:
        return sorted({*self._store.names(), *self._store.installed(), *self._board.models()})

    def _memory(self, name: str) -> _Memory:
        return self._memories.setdefault(name, _Memory())


@dataclass(eq=False)
class _Memory:
    """What is known of a model in this run of the daemon, and need not outlive it.

    `ledger` is the one last read or durably written: once a write has failed, what is on disk proves nothing.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ledger: Ledger | None = None
    unfit: dict[str, VersionFault] = field(default_factory=dict)
    trial: Answer = "open"
    serving_since: float | None = None
    suspended: bool = False
    factory: dict[str, FactoryVersion] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    ending: tuple[Ending, str, str] | None = None
    unsettled: bool = False
    again_at: float | None = None
    pause: float = AGAIN_SECONDS
    complaint: str = ""

    def note(self, before: ModelFacts, step: ReplaceLedger) -> None:
        """Remember how the candidate ended, if this step ends it."""
        candidate = before.ledger.candidate
        if candidate is None or step.ledger.candidate is not None:
            return
        self.trial = "open"
        state: Ending = "rolled_back"
        if step.ledger.active == candidate.digest:
            state = "done"
        elif candidate.phase == "trial" or candidate.digest in before.unfit:
            state = "failed"
        self.ending = (state, step.text, step.hint)


class _Seen(msgspec.Struct, frozen=True):
    """What the disk shows of a model."""

    ledger: Ledger
    factory: dict[str, FactoryVersion]
    present: dict[str, int]
    current: str | None
    litter: tuple[str, ...]
    limits: Probation
    usual: dict[str, float]
    free: int


_ENDS: dict[Failure, Literal["reverted", "damaged"]] = {"damaged": "damaged", "hindered": "reverted"}
"""What becomes of a version whose trial fails otherwise than by a fault of its own."""


_SEE = "see why: edgectl status"


def _unsound(error: BundleError) -> VersionFault:
    """What is wrong with a version whose folder cannot be opened."""
    return VersionFault("reverted" if error.retryable else "damaged", error.message, error.hint)


async def _on_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what blocks on another thread, to its end even when cancelled: no step is left running behind our back."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise


def _bug(error: Exception) -> StoreError:
    return StoreError(f"{type(error).__name__}: {error}", hint="this is a bug: report it with the log's traceback")


def _limits(shelf: ModelFolder, candidate: Candidate | None) -> tuple[Probation, dict[str, float]]:
    """What the candidate's manifest asks of its probation, and the usual shares of its labels."""
    if candidate is None:
        return Probation(), {}
    try:
        manifest = manifests.decode((shelf.version(candidate.digest) / MANIFEST).read_bytes())
    except (OSError, BundleError):  # it is damaged, which is found out when it is loaded
        return Probation(), {}
    return manifest.probation, manifest.reference.shares if manifest.reference else {}


def _answer(watch: Watch) -> Answer:
    match watch.state:
        case "watching":
            return "open"
        case "good":
            return "good"
        case "failed":
            return VersionFault("rejected", watch.reason)


def _measured(number: str, verdict: Verdict) -> str:
    return (
        f"version {number} passed its self-test: {verdict.samples} golden samples, "
        f"{verdict.latency_p99 * 1000:.3g} ms (p99), {verdict.rss_bytes >> 20} MiB, in {verdict.seconds:.3g} s"
    )


def _with_room(facts: ModelFacts, free: int, room: int) -> Keep:
    """Keep less, where that is what it takes to have `room` bytes; no less where even that would not do."""
    held = {digest: size for digest, size in facts.present.items() if digest in facts.ledger.versions}
    spare = sum(size for digest, size in held.items() if digest not in in_use(facts))
    if free + spare < room:
        return facts.keep
    return replace(facts.keep, bytes=min(facts.keep.bytes, sum(held.values()) + free - room))
