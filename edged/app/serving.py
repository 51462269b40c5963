"""Which model serves in which pipeline: loading, proving, swapping and watching, for the daemon and for the updater.

A version serves only after it has proved itself on the very runner that will serve, in this process, and until then
the old one does. All pipelines that use a model switch together: every one has its runner before any is offered it.
Where a version wants other windows than the one before, its pipelines are built anew around it and go on counting.

Where two versions do not fit beside each other the old one is let go of first, and windows wait in the mailboxes
meanwhile; if the new one does not answer, the old one is loaded again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from edged import plugins
from edged.acceleration.prove import Subject
from edged.api import Backend, BundleError, DeviceError, EdgedError, ModelError, Runner
from edged.app.state import ModelState, PipelineState, ServiceState
from edged.backends.tflite import TfliteBackend
from edged.config.check import decision_for
from edged.config.options import Swap
from edged.core.manifest import Manifest
from edged.core.model_requirements import require
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.probation import AnsweredTime, Observed, delegate_fault
from edged.core.source_match import match_source
from edged.core.verdict import Verdict
from edged.flow.pipeline import Pipeline
from edged.flow.slot import RunCounts, Served
from edged.models.bare_file import names_bare
from edged.models.bundle import Bundle
from edged.models.proofs import Proofs
from edged.models.selftest import Proof, prove, shaped
from edged.models.store import BRING, VERSIONS
from edged.models.trial import Allowance, available_bytes, try_out
from edged.updates.desired import DesiredVersion

log = logging.getLogger("edged.daemon")

LET_GO_SECONDS = 30.0
"""How long a worker may take for the window in hand before it lets go of what serves."""

CHUNK_SECONDS = 1.0
"""How long a reader may take for the chunk in hand before flows are changed beside it."""

Build = Callable[[str, Manifest], Pipeline]
"""Makes the flow of a pipeline, by name, around a manifest. Raises ConfigError if source and model do not fit."""


class ServedModels:
    """Has models serve in the daemon's pipelines. `build` makes a pipeline's flow, `feed` has the readers follow."""

    def __init__(
        self, parts: ServiceState, proofs: Proofs, build: Build, feed: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._parts = parts
        self._proofs = proofs
        self._build = build
        self._feed = feed
        self._clock = clock
        self._measured: dict[str, tuple[Path, int]] = {}  # the memory that the version in a folder took on trial

    # What the daemon asks

    async def load(self, model: str) -> bool:
        """Have the bundle that a model has serve in all its pipelines that do not run yet. What fails says so.

        False, and nothing is loaded, where the model is new to this board: `prove` it first.
        """
        part = self._parts.models[model]
        idle = self._idle(model)
        if part.bundle is None:
            why = part.status.health
            for each in idle.values():
                each.status.set(why.state, f"its model {model!r}: {why.reason}", why.hint)
            return True
        for name, each in idle.items():  # one that does not fit its source is no reason for the others not to run
            try:
                if not await asyncio.to_thread(
                    self._proofs.holds, part.bundle, self._backend(model, part.bundle.manifest)
                ):
                    self._await_proof(model, part, idle)
                    return False
                await self._serve(model, part.bundle, {name: each})
            except EdgedError as error:
                each.status.set("failed", error.message, error.hint)
                if isinstance(error, ModelError | BundleError):
                    part.status.set("failed", error.message, error.hint)
        if idle and not part.served and part.status.health.state == "starting":
            part.status.set("failed", f"no pipeline can use it: {', '.join(idle)}", "see why: edgectl pipelines")
        return True

    async def prove(self, model: str) -> bool:
        """Have a child process load, run and close the bundle that a model has; whether it may be loaded here then."""
        part = self._parts.models[model]
        assert part.bundle is not None  # or `load` would have had nothing to prove
        try:
            await self._proofs.ensure(part.bundle, self._backend(model, part.bundle.manifest))
        except EdgedError as error:
            if self._parts.models.get(model) is part:
                for each in self._idle(model).values():
                    each.status.set("failed", f"its model {model!r}: {error.message}", error.hint)
                if not part.served:  # else another version of it serves by now
                    part.status.set("failed", error.message, error.hint)
            return False
        return True

    # What the updater asks: see models/updater.py

    def serving(self, model: str) -> str | None:
        """The version that answers now; "" for none, None where no pipeline uses the model."""
        users = self._users(model)
        part = self._parts.models.get(model)
        if part is None or not users:
            return None
        return part.digest if all(map(_runs, users.values())) else ""

    def models(self) -> tuple[str, ...]:
        """The models that are configured; not all of them need be here."""
        return tuple(self._parts.models)

    def named(self, model: str) -> str:
        """The number of the version that the configuration has a model stay with; "" for any."""
        entry = self._parts.config.models.get(model)
        return "" if entry is None else entry.version or ""

    def knows(self, model: str) -> bool:
        """Whether a model of this name is configured."""
        return model in self._parts.models

    def has(self, model: str, wish: DesiredVersion) -> bool:
        """Return whether what is wished for answers already, as far as the wish says what it is."""
        manifest = self.answering(model)
        if manifest is None:
            return False
        digest = manifest.files[manifest.model].sha256 if names_bare(wish.url) else self.serving(model)
        said = wish.digest is not None or wish.version is not None
        return said and wish.digest in (None, digest) and wish.version in (None, manifest.version)

    def notice_lost_files(self) -> None:
        """Have a model that serves say so where its files are gone: it will not serve after a restart."""
        for name, part in self._parts.models.items():
            if part.bundle is None:
                continue
            state, version = part.status.health.state, part.bundle.manifest.version
            if state == "running" and not part.bundle.is_there:
                reason = f"{part.bundle.folder} is gone: version {version} serves from memory, until a restart"
                part.status.set("degraded", reason, f"bring it again: edgectl update-model {name}-{version}.edgm")
                part.files_lost = True
            elif state == "degraded" and part.files_lost and part.bundle.is_there:
                part.status.set("running", f"version {version}")
                part.files_lost = False

    def answering(self, model: str) -> Manifest | None:
        """The manifest of the version that answers now, None where none does."""
        part = self._parts.models.get(model)
        return part.bundle.manifest if part is not None and part.bundle is not None and self.serving(model) else None

    def fit(self, model: str, manifest: Manifest) -> None:
        """Raises EdgedError where a version cannot serve here: backend, runtime, memory, or its pipelines' sources."""
        config = self._parts.config
        entry = config.models.get(model)
        if entry is not None and entry.backend != manifest.backend:
            raise ModelError(
                f"it is a model for the backend {manifest.backend!r}, and [models.{model}] says {entry.backend!r}",
                hint="change `backend` there, or install a version for it",
            )
        part = self._parts.models.get(model)
        delegates = self._parts.accelerators.fit(manifest, self._wanted(model))
        if part is not None and part.runner is not None:  # else nobody knows what it would run on: the trial will show
            require(manifest, part.runner.runtime, delegates, available_bytes() + self._given_up(model, part))
        for each in self._users(model).values():
            self._match(model, manifest, each)
            decision_for(each.entry, manifest)

    async def try_out(self, model: str, bundle: Bundle) -> Verdict:
        """Have a version prove itself in a child process, and on its accelerator, if that is there, in that one's.

        Raises:
            EdgedError: no child could be started, or its accelerator does not work, and the CPU will not do.
        """
        backend = self._backend(model, bundle.manifest)
        verdict = await try_out(bundle.folder, bundle.manifest, backend, Allowance())
        self._measured[model] = (bundle.folder, verdict.rss_bytes)
        if verdict.failure in ("", "slow"):
            await self._proofs.remember(bundle, backend)
        if verdict.failure not in ("", "slow") or not isinstance(backend, TfliteBackend):
            return verdict
        needed = self._is_needed(model, bundle.manifest)
        try:
            accelerated = await asyncio.to_thread(
                self._parts.accelerators.try_out, bundle, self._wanted(model), backend
            )
        except DeviceError as error:
            if needed or not verdict.ok:
                raise
            accelerated = Verdict(failure="unfit", reason=error.message, hint=error.hint)
        if accelerated is None:
            return verdict
        if accelerated.ok:  # its twin on the CPU may be as slow as it is
            return _together(verdict, accelerated)
        if needed:
            return accelerated
        log.warning("%s %s will serve on the CPU: %s", model, bundle.manifest.version, accelerated.reason)
        return verdict

    async def swap(self, model: str, bundle: Bundle | None) -> None:
        """Have all pipelines of a model switch to this version, or let go of what they have where it is None.

        Raises:
            EdgedError: it does not answer as it should; what served before goes on where it did.
        """
        part = self._parts.models.get(model)
        if part is None:
            return
        if bundle is None:
            self._let_go(model, part)
            return
        await self._proofs.ensure(bundle, self._backend(model, bundle.manifest))
        users = self._users(model)
        running = {name: each for name, each in users.items() if _runs(each)}
        if running and part.bundle is not None and self._hands_over(model, bundle):
            await self._hand_over(model, part.bundle, bundle, running)
        else:
            await self._serve(model, bundle, users)

    def observed(self, model: str) -> Observed:
        """What the version that serves did since the swap, in all its pipelines together; the worst of each figure."""
        part = self._parts.models[model]
        tallies = part.tallies
        return Observed(
            seconds=max((tally.time.seconds for tally in tallies), default=0.0),
            windows=sum(tally.windows for tally in tallies),
            errors=sum(tally.errors for tally in tallies),
            latency_p99=max((tally.latency.percentiles()["p99"] or 0.0 for tally in tallies), default=0.0),
            constant=max((tally.constant for tally in tallies), default=0),
            decisions=sum(tally.decisions for tally in tallies),
            delegate_fault=self._delegate_fault(model, part.since),
            labels=dict(sum((tally.labels.copy() for tally in tallies), Counter())),
        )

    # What whoever proves and tunes asks: see proving.py

    def subjects(self) -> dict[str, Subject]:
        """The models that are loaded, as they are configured."""
        return {
            name: Subject(name, part.bundle, self._wanted(name), self._backend(name, part.bundle.manifest))
            for name, part in self._parts.models.items()
            if part.bundle is not None and part.served
        }

    async def serve_anew(self, model: str) -> None:
        """Have the version that serves do so as was measured since. Raises EdgedError as `swap`."""
        part = self._parts.models.get(model)
        if part is not None and part.bundle is not None:
            await self.swap(model, part.bundle)

    # How it is done

    async def _serve(self, model: str, bundle: Bundle, users: dict[str, PipelineState]) -> None:
        part = self._parts.models[model]
        backend = self._backend(model, bundle.manifest)
        ready: dict[str, Served] = {}
        proof = Proof(0, 0.0)
        try:
            for name, each in users.items():
                self._match(model, bundle.manifest, each)
                ready[name], proof = await asyncio.to_thread(self._prepare, model, bundle, backend, each)
        except BaseException:
            for served in ready.values():
                served.runner.close()
            raise
        try:
            await asyncio.to_thread(self._offer, ready, users)
        except Exception:
            for served in ready.values():
                served.runner.close()
            raise
        part.bundle, part.digest, part.since = bundle, bundle.digest, self._clock()
        part.origin = self._origin(model, bundle)
        part.served = tuple(each.served for each in self._users(model).values() if each.served is not None)
        part.proof = proof
        part.status.set("running", f"version {bundle.manifest.version}")
        for fact in bundle.derived:
            log.info("%s: derived from %s: %s", model, bundle.manifest.model, fact, extra={"model": model})

    def _prepare(self, model: str, bundle: Bundle, backend: Backend, each: PipelineState) -> tuple[Served, Proof]:
        """Load a version for one pipeline and have it prove itself. Raises EdgedError, whatever a backend raises."""
        manifest = bundle.manifest
        decision = decision_for(each.entry, manifest)
        try:
            runner = self._load(model, bundle, self._threaded(model, bundle, backend))
            try:
                proof = prove(bundle, runner)
                if isinstance(backend, TfliteBackend):
                    wanted, priority = self._wanted(model), each.entry.priority
                    runner = self._parts.accelerators.put(model, bundle, wanted, backend, runner, priority)
                tally = RunCounts(time=AnsweredTime(self._period(manifest, each)))
                served = Served(manifest, runner, Preprocessor(manifest), Postprocessor(manifest, decision), tally)
            except BaseException:
                runner.close()
                raise
        except EdgedError:
            raise
        except Exception as error:
            log.exception("loading %s met a bug", manifest.name, extra={"model": manifest.name})
            scarce = isinstance(error, MemoryError)
            raise ModelError(
                f"{type(error).__name__}: {error}", hint="see the log's traceback", retryable=scarce
            ) from error
        return served, proof

    def _load(self, model: str, bundle: Bundle, backend: Backend) -> Runner:
        backend = shaped(backend, bundle.manifest)
        if self._parts.config.models[model].isolate:
            return self._parts.accelerators.isolate(model, bundle, backend)
        return backend.load(bundle.model, signature=bundle.manifest.signature)

    def _threaded(self, model: str, bundle: Bundle, backend: Backend) -> Backend:
        """The backend with as many threads as were measured as the best, where it is not told how many."""
        if not isinstance(backend, TfliteBackend):
            return backend
        return replace(backend, threads=self._parts.accelerators.threads(model, bundle, self._wanted(model), backend))

    def _wanted(self, model: str) -> str:
        """The delegate that the configuration has for a model."""
        entry = self._parts.config.models.get(model)
        return "auto" if entry is None else entry.delegate

    def _is_needed(self, model: str, manifest: Manifest) -> bool:
        """Whether a version must not serve here without its accelerator."""
        named = manifest.needs.delegates
        return (
            self._wanted(model) != "auto"
            or bool(named and "cpu" not in named)
            or manifest.limits.delegated_share is not None
        )

    def _delegate_fault(self, model: str, since: float) -> str:
        """What is wrong with a version's accelerator; that it never ran there is no fault where the CPU will do."""
        bundle = self._parts.models[model].bundle
        if bundle is None:
            return ""
        if not self._is_needed(model, bundle.manifest) and not self._parts.accelerators.has_proven(model, bundle):
            return ""
        name, standing = self._parts.accelerators.standings().get(model, ("", None))
        fault = "" if standing is None else delegate_fault(standing, since, self._clock())
        return f"{name}: {fault}" if fault else ""

    def _hands_over(self, model: str, bundle: Bundle) -> bool:
        """Whether what serves has to go before this version is loaded."""
        needed = self._takes(model, bundle) * len(self._users(model))
        return hands_over(self._parts.config.models[model].swap, needed=needed, available=available_bytes())

    def _given_up(self, model: str, part: ModelState) -> int:
        """Bytes of memory that what serves makes free for the next version, where it can go before that is loaded."""
        if part.bundle is None or self._parts.config.models[model].swap == "overlap":
            return 0
        return self._takes(model, part.bundle)

    def _takes(self, model: str, bundle: Bundle) -> int:
        """Bytes of memory that a version takes: what it says, or more where it took that on trial."""
        folder, measured = self._measured.get(model, (None, 0))
        return max(bundle.manifest.needs.memory_bytes or 0, measured if folder == bundle.folder else 0)

    async def _hand_over(self, model: str, before: Bundle, bundle: Bundle, running: dict[str, PipelineState]) -> None:
        """Let go of what serves, and then load a version; where that does not answer, load again what served.

        That is loaded where it was `running`: elsewhere it may be what does not load.
        """
        users = self._users(model)
        for each in users.values():
            self._match(model, bundle.manifest, each)  # before anything is given away
        log.info("%s: version %s makes room before the next is loaded", model, before.manifest.version)
        try:
            await self._make_room(running, before.manifest, bundle.manifest)
            await self._serve(model, bundle, users)
        except BaseException:
            self._end_gathering(users, back=True)
            try:
                await self._serve(model, before, running)
            except EdgedError as error:
                log.error("%s: version %s does not load any more: %s", model, before.manifest.version, error)
                self._let_go(model, self._parts.models[model])
            raise
        self._end_gathering(users, back=False)

    async def _make_room(self, running: dict[str, PipelineState], before: Manifest, manifest: Manifest) -> None:
        """Have the pipelines close what serves, and keep windows for either version; returns once all is closed.

        Raises:
            ModelError: one did not come round to it.
        """
        closing: list[Callable[[float], bool]] = []
        for name, each in running.items():
            assert each.flow is not None
            if each.flow.window == manifest.window:
                closing.append(each.flow.let_go().wait)
            else:  # what waits are windows of the old version: it finishes them, while those of both gather
                closing.append(each.flow.join)
                await asyncio.to_thread(self._change, each, partial(self._gather, name, each, before, manifest))
        for closed in closing:
            if not await asyncio.to_thread(closed, LET_GO_SECONDS):
                raise ModelError(
                    "what serves cannot be let go of: it is at a window", hint="see edgectl pipelines", retryable=True
                )

    def _gather(self, name: str, each: PipelineState, before: Manifest, manifest: Manifest) -> None:
        """Have windows for either version gather in place of what serves. Between two chunks."""
        old = each.flow
        assert old is not None
        old.retire()
        flow, spare = self._build(name, manifest), self._build(name, before)
        spare.go_on_from(old)
        each.flow, each.spare = flow, spare

    def _end_gathering(self, users: dict[str, PipelineState], *, back: bool) -> None:
        """Of the windows that gathered for either version, keep the new one's, or those of the one that is back."""
        for each in users.values():
            if each.flow is not None and each.spare is not None:
                kept, other = (each.spare, each.flow) if back else (each.flow, each.spare)
                each.flow, each.spare = kept, None
                other.retire()
        self._feed()

    def _offer(self, ready: dict[str, Served], users: dict[str, PipelineState]) -> None:
        """Have the pipelines serve from what is ready, which is theirs then: where one fails, the rest is left."""
        for name, served in list(ready.items()):
            each = users[name]
            if each.flow is None:
                each.status.set("starting")
            if each.flow is None or not _runs(each) or each.flow.window != served.manifest.window:
                self._change(each, partial(self._succeed, name, each, served.manifest))
            assert each.flow is not None
            each.served = ready.pop(name)
            each.flow.serve(served)

    def _succeed(self, name: str, each: PipelineState, manifest: Manifest) -> None:
        """Have a flow around this manifest in place of what there is. Between two chunks."""
        if each.flow is not None:
            each.flow.retire()  # before the next one asks where it has come to: two windows never share a number
        each.flow = self._build(name, manifest)

    def _change(self, each: PipelineState, change: Callable[[], None]) -> None:
        """Change a pipeline's flow between two chunks: each is in a window of the old one, or one of the new."""

        def change_and_feed() -> None:
            change()
            self._feed()

        reader = self._parts.sources.get(each.entry.source)
        if reader is None:
            change_and_feed()
        else:
            reader.between_chunks(change_and_feed, CHUNK_SECONDS)

    def _period(self, manifest: Manifest, each: PipelineState) -> float | None:
        """The seconds from one window to the next, None where neither model nor source states a rate."""
        rate = manifest.window.rate or self._parts.config.sources[each.entry.source].options.describe().rate
        return manifest.window.hop / rate if rate else None

    def _match(self, model: str, manifest: Manifest, each: PipelineState) -> None:
        """Raises ConfigError where the source of a pipeline cannot give what a version needs."""
        info = self._parts.config.sources[each.entry.source].options.describe()
        match_source(manifest.window, info, each.entry.source, model)

    def _let_go(self, model: str, part: ModelState) -> None:
        reason, hint = "no version of it is sound", BRING
        for each in self._users(model).values():
            if each.flow is not None:
                each.flow.stop()
                each.begins_at = each.next_seq
                each.flow = each.served = None
            each.status.set("failed", f"its model {model!r}: {reason}", hint)
        self._feed()
        self._parts.accelerators.forget(model)
        part.bundle, part.digest, part.served, part.proof = None, "", (), None
        part.status.set("failed", reason, hint)

    def _await_proof(self, model: str, part: ModelState, idle: dict[str, PipelineState]) -> None:
        part.status.set("starting", "it is new to this board, and is tried in a process of its own first")
        for each in idle.values():
            each.status.set("starting", f"its model {model!r} is tried in a process of its own first")

    def _idle(self, model: str) -> dict[str, PipelineState]:
        """The pipelines of a model that have no flow yet."""
        return {name: each for name, each in self._users(model).items() if each.flow is None}

    def _users(self, model: str) -> dict[str, PipelineState]:
        return {name: each for name, each in list(self._parts.pipelines.items()) if each.entry.model == model}

    def _backend(self, model: str, manifest: Manifest) -> Backend:
        entry = self._parts.config.models.get(model)
        if entry is not None:
            return entry.options
        standard: Backend = plugins.load("backends", manifest.backend)()  # no pipeline uses it: as if one did
        return standard

    def _origin(self, model: str, bundle: Bundle) -> str:
        """Return the origin of a version: "installed", "factory", or the path that the configuration gives."""
        if bundle.folder.parent.name == VERSIONS:
            return "installed"
        path = self._parts.config.models[model].path
        return "factory" if path is None else str(path)


def _runs(each: PipelineState) -> bool:
    """Whether a pipeline has a flow; one that was stopped, and that no other could take the place of, is none."""
    return each.flow is not None and not each.flow.stopped


def hands_over(swap: Swap, *, needed: int, available: int) -> bool:
    """Whether this is a handover: it is told to be one, or the `needed` bytes are not `available`.

    An accelerator is no reason for one: the two versions share its process, and each has a twin on the CPU meanwhile.
    """
    return swap == "handover" or (swap == "auto" and needed > available)


def _together(on_cpu: Verdict, accelerated: Verdict) -> Verdict:
    """The verdict of a version that works in both places: as it is where it will serve."""
    return replace(accelerated, rss_bytes=on_cpu.rss_bytes, seconds=on_cpu.seconds + accelerated.seconds)
