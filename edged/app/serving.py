"""The models that serve: load, prove and swap versions, and answer the updater's questions about them.

A version serves only after passing the golden samples on its final runner, in this process; the former version serves
until then. All pipelines of a model switch together: every runner is ready before the first pipeline switches. For a
version with other windows the flows are built anew, and continue the numbers of the windows.

If two versions do not fit into memory together, the former version is closed first, and windows wait in the mailboxes.
If the new version then fails, the former is loaded again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edged.acceleration.placement import Accelerators
from edged.api import BundleError, DeviceError, EdgedError, ModelError
from edged.app.flow_swap import Build, FlowSwap, runs
from edged.app.model_loader import ModelLoader
from edged.app.state import ModelState, PipelineState, ServiceState
from edged.backends.tflite import TfliteBackend
from edged.config.check import decision_for
from edged.config.options import Swap
from edged.core.manifest import Manifest
from edged.core.model_requirements import require
from edged.core.probation import Observed, delegate_fault
from edged.core.source_match import match_source
from edged.models.bundle import Bundle, names_bare
from edged.models.proofs import Proofs
from edged.models.selftest import Proof, SelfTest
from edged.models.store import BRING, VERSIONS
from edged.system.later import asyncio
from edged.system.memory import available_bytes

if TYPE_CHECKING:  # none of these is needed to serve
    from edged.acceleration.prove import Subject
    from edged.core.verdict import Verdict
    from edged.updates.desired import DesiredVersion

log = logging.getLogger("edged.daemon")


class ServedModels:
    """Loads and swaps the versions of models. `build` makes a pipeline's flow, `feed` gives the flow to the readers.

    `serving`, `answering` and `fit` may be called on any thread, `load` on a thread while the caller waits, and every
    other method on the event loop's thread only.
    """

    def __init__(
        self,
        state: ServiceState,
        accelerators: Accelerators,
        proofs: Proofs,
        build: Build,
        feed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._accelerators = accelerators
        self._proofs = proofs
        self._clock = clock
        self._loader = ModelLoader(state, accelerators)
        self._flows = FlowSwap(state, build, feed)
        self._measured: dict[str, tuple[Path, int]] = {}  # the folder of a version, and its memory in the trial

    # Questions

    def serving(self, model: str) -> str | None:
        """Return the digest of the serving version; "" for no version, None for a model without pipelines."""
        users = self._state.users(model)
        part = self._state.models.get(model)
        if part is None or not users:
            return None
        return part.digest if all(map(runs, users.values())) else ""

    def models(self) -> tuple[str, ...]:
        """Return the configured models, on this board or not."""
        return tuple(self._state.models)

    def named(self, model: str) -> str:
        """Return the version number in [models.<name>]; "" if the table accepts any version."""
        entry = self._state.config.models.get(model)
        return "" if entry is None else entry.version or ""

    def knows(self, model: str) -> bool:
        """Return True for a configured model."""
        return model in self._state.models

    def has(self, model: str, wish: DesiredVersion) -> bool:
        """Return True if the desired version serves already. A wish needs a digest or a number for this answer."""
        manifest = self.answering(model)
        if manifest is None:
            return False
        digest = manifest.files[manifest.model].sha256 if names_bare(wish.url) else self.serving(model)
        identified = wish.digest is not None or wish.version is not None
        return identified and wish.digest in (None, digest) and wish.version in (None, manifest.version)

    def answering(self, model: str) -> Manifest | None:
        """Return the manifest of the serving version, or None."""
        part = self._state.models.get(model)
        bundle = None if part is None else part.bundle
        return bundle.manifest if bundle is not None and self.serving(model) else None

    def fit(self, model: str, manifest: Manifest) -> None:
        """Raise EdgedError if a version cannot serve here: backend, runtime, memory, or the sources of the pipelines.

        Any thread may ask at any time, also while the event loop is blocked. The answer is made from a snapshot: the
        configuration, an immutable struct, and the runner and bundle of the serving version, each read once. A swap or
        a reload on the loop may replace any of these meanwhile. The answer then describes the moment before, and does
        no harm: the updater asks again, on the loop, before installing the version.
        """
        config, part = self._state.config, self._state.models.get(model)
        runner, bundle = (None, None) if part is None else (part.runner, part.bundle)
        entry = config.models.get(model)
        if entry is not None and entry.backend != manifest.backend:
            raise ModelError(
                f"the version is for the backend {manifest.backend!r}, but [models.{model}] has {entry.backend!r}",
                hint=f"change `backend` in [models.{model}], or install a version for {entry.backend!r}",
            )
        delegates = self._accelerators.fit(manifest, "auto" if entry is None else entry.delegate)
        if runner is not None:  # without a loaded version the runtime is unknown until the trial
            freed = self._takes(model, bundle) if bundle and entry and entry.swap != "overlap" else 0
            require(manifest, runner.runtime, delegates, available_bytes() + freed)
        for pipeline in config.pipelines.values():
            if pipeline.model == model:
                source = config.sources[pipeline.source].options.describe()
                match_source(manifest.window, source, pipeline.source, model)
                decision_for(pipeline, manifest)

    def observed(self, model: str) -> Observed:
        """Return the figures of the serving version since the swap, over all pipelines; the worst of each."""
        part = self._state.models[model]
        run_counts = part.run_counts
        return Observed(
            seconds=max((counts.time.seconds for counts in run_counts), default=0.0),
            windows=sum(counts.windows for counts in run_counts),
            errors=sum(counts.errors for counts in run_counts),
            latency_p99=max((counts.latency.percentiles()["p99"] or 0.0 for counts in run_counts), default=0.0),
            constant=max((counts.constant for counts in run_counts), default=0),
            decisions=sum(counts.decisions for counts in run_counts),
            delegate_fault=self._delegate_fault(model, part),
            labels=dict(sum((counts.labels.copy() for counts in run_counts), Counter())),
        )

    def subjects(self) -> dict[str, Subject]:
        """Return the loaded models, for `edgectl prove` and `edgectl tune`."""
        from edged.acceleration.prove import Subject

        return {
            name: Subject(
                name, part.bundle, self._loader.delegate(name), self._loader.backend(name, part.bundle.manifest)
            )
            for name, part in self._state.models.items()
            if part.bundle is not None and part.served
        }

    # Commands

    def load(self, model: str) -> bool:
        """Load a model for all pipelines without a flow. Failures are shown in the states of model and pipelines.

        Returns False, and loads nothing, if the bundle is new to this board: call `prove` first.
        """
        part = self._state.models[model]
        idle = self._idle(model)
        if part.bundle is None:
            why = part.status.health
            for each in idle.values():
                each.status.set(why.state, f"its model {model!r}: {why.reason}", why.hint)
            return True
        backend, test = self._loader.backend(model, part.bundle.manifest), SelfTest(part.bundle)
        is_proven = False
        for name, each in idle.items():  # one at a time, so that the others run if one fails
            try:
                is_proven = is_proven or self._proofs.holds(part.bundle, backend)
                if not is_proven:
                    part.status.set("starting", "new to this board, and tried in a separate process first")
                    for waiting in idle.values():
                        waiting.status.set("starting", f"its model {model!r} is tried in a separate process first")
                    return False
                ready, proof = self._loader.load_each(model, part.bundle, {name: each}, test)
                self._flows.offer(ready, {name: each})
                self._enter(model, part.bundle, proof)
            except EdgedError as error:
                each.status.set("failed", error.message, error.hint)
                if isinstance(error, ModelError | BundleError):
                    part.status.set("failed", error.message, error.hint)
        if idle and not part.served and part.status.health.state == "starting":
            part.status.set(
                "failed", f"no pipeline can use the model: {', '.join(idle)}", "see the reasons: edgectl pipelines"
            )
        return True

    async def prove(self, model: str) -> bool:
        """Load, run and close the bundle of a model in a child process. Returns True if `load` may follow."""
        part = self._state.models[model]
        assert part.bundle is not None  # else `load` has returned True
        try:
            await self._proofs.ensure(part.bundle, self._loader.backend(model, part.bundle.manifest))
        except EdgedError as error:
            if self._state.models.get(model) is part:
                for each in self._idle(model).values():
                    each.status.set("failed", f"its model {model!r}: {error.message}", error.hint)
                if not part.served:  # an update may have brought another version meanwhile
                    part.status.set("failed", error.message, error.hint)
            return False
        return True

    async def try_out(self, model: str, bundle: Bundle) -> Verdict:
        """Try a version in a child process and, for a version with an accelerator, in the accelerator's process.

        Raises:
            EdgedError: no child could be started, or the accelerator does not work and the CPU alone is not allowed.
        """
        from edged.core.verdict import Verdict
        from edged.models.trial import Allowance, try_out

        manifest = bundle.manifest
        backend = self._loader.backend(model, manifest)
        verdict = await try_out(bundle.folder, manifest, backend, Allowance())
        self._measured[model] = (bundle.folder, verdict.rss_bytes)
        if verdict.failure in ("", "slow"):
            await self._proofs.remember(bundle, backend)
        if verdict.failure not in ("", "slow") or not isinstance(backend, TfliteBackend):
            return verdict
        required = self._loader.requires_accelerator(model, manifest)
        try:
            accelerated = await asyncio.to_thread(
                self._accelerators.try_out, bundle, self._loader.delegate(model), backend
            )
        except DeviceError as error:
            if required or not verdict.ok:
                raise
            accelerated = Verdict(failure="unfit", reason=error.message, hint=error.hint)
        if accelerated is None:
            return verdict
        if accelerated.ok:  # then the version may be slow on the CPU
            return replace(accelerated, rss_bytes=verdict.rss_bytes, seconds=verdict.seconds + accelerated.seconds)
        if required:
            return accelerated
        log.warning("%s %s will serve on the CPU: %s", model, manifest.version, accelerated.reason)
        return verdict

    async def swap(self, model: str, bundle: Bundle | None) -> None:
        """Have all pipelines of a model serve this version, or close the serving version if `bundle` is None.

        Raises:
            EdgedError: the version does not answer correctly; the former version serves where it did.
        """
        part = self._state.models.get(model)
        if part is None:
            return
        if bundle is None:
            self._close(model, part)
            return
        await self._proofs.ensure(bundle, self._loader.backend(model, bundle.manifest))
        users = self._state.users(model)
        running = {name: each for name, each in users.items() if runs(each)}
        if running and part.bundle is not None and self._needs_handover(model, bundle, len(users)):
            await self._hand_over(model, part.bundle, bundle, running)
        else:
            await self._serve(model, bundle, users)

    async def apply_tuning(self, model: str) -> None:
        """Load the serving version again, with the choices of `edgectl tune`. Raises EdgedError like `swap`."""
        part = self._state.models.get(model)
        if part is not None and part.bundle is not None:
            await self.swap(model, part.bundle)

    def notice_lost_files(self) -> None:
        """Show lost files in a model's state: the version serves from memory, and not after a restart."""
        for name, part in self._state.models.items():
            if part.bundle is None:
                continue
            state, version = part.status.health.state, part.bundle.manifest.version
            if state == "running" and not part.bundle.is_there:
                reason = f"{part.bundle.folder} is gone: version {version} serves from memory, until a restart"
                part.status.set("degraded", reason, f"install it again: edgectl update-model {name}-{version}.edgm")
                part.files_lost = True
            elif state == "degraded" and part.files_lost and part.bundle.is_there:
                part.status.set("running", f"version {version}")
                part.files_lost = False

    # Details

    async def _serve(self, model: str, bundle: Bundle, users: dict[str, PipelineState]) -> None:
        """Have these pipelines serve a version, like `load`, while the event loop runs on."""
        ready, proof = await asyncio.to_thread(self._loader.load_each, model, bundle, users, SelfTest(bundle))
        await asyncio.to_thread(self._flows.offer, ready, users)
        self._enter(model, bundle, proof)

    def _enter(self, model: str, bundle: Bundle, proof: Proof) -> None:
        """Enter a version that serves in the state of the model."""
        part = self._state.models[model]
        part.bundle, part.digest, part.since = bundle, bundle.digest, self._clock()
        part.origin = self._origin(model, bundle)
        part.served = tuple(each.served for each in self._state.users(model).values() if each.served is not None)
        part.proof = proof
        part.status.set("running", f"version {bundle.manifest.version}")
        for fact in bundle.derived:
            log.info("%s: derived from %s: %s", model, bundle.manifest.model, fact, extra={"model": model})

    async def _hand_over(self, model: str, before: Bundle, bundle: Bundle, running: dict[str, PipelineState]) -> None:
        """Close the serving version, and load the next; if the next does not answer, load the former again.

        The former version is loaded in the `running` pipelines only: elsewhere it may not load.
        """
        users = self._state.users(model)
        for each in users.values():
            self._loader.match(model, bundle.manifest, each)  # before anything is closed
        log.info("%s: version %s makes room before the next is loaded", model, before.manifest.version)
        try:
            await self._flows.make_room(running, before.manifest, bundle.manifest)
            await self._serve(model, bundle, users)
        except BaseException:
            self._flows.end_handover(users, back=True)
            try:
                await self._serve(model, before, running)
            except EdgedError as error:
                log.error("%s: version %s does not load any more: %s", model, before.manifest.version, error)
                self._close(model, self._state.models[model])
            raise
        self._flows.end_handover(users, back=False)

    def _close(self, model: str, part: ModelState) -> None:
        reason, hint = "no sound version is on this board", BRING
        users = self._state.users(model)
        self._flows.stop(users)
        for each in users.values():
            each.status.set("failed", f"its model {model!r}: {reason}", hint)
        self._accelerators.forget(model)
        part.bundle, part.digest, part.served, part.proof = None, "", (), None
        part.status.set("failed", reason, hint)

    def _delegate_fault(self, model: str, part: ModelState) -> str:
        """Return the fault of the version's accelerator, or "". A missing device is no fault if the CPU is allowed."""
        bundle = part.bundle
        if bundle is None:
            return ""
        required = self._loader.requires_accelerator(model, bundle.manifest)
        if not required and not self._accelerators.has_proven(model, bundle):
            return ""
        name, status = self._accelerators.statuses().get(model, ("", None))
        fault = "" if status is None else delegate_fault(status, part.since, self._clock())
        return f"{name}: {fault}" if fault else ""

    def _needs_handover(self, model: str, bundle: Bundle, pipelines: int) -> bool:
        needed = self._takes(model, bundle) * pipelines
        return is_handover(self._state.config.models[model].swap, needed=needed, available=available_bytes())

    def _takes(self, model: str, bundle: Bundle) -> int:
        """Return the memory of a version in bytes: the larger figure of manifest and trial."""
        folder, measured = self._measured.get(model, (None, 0))
        return max(bundle.manifest.needs.memory_bytes or 0, measured if folder == bundle.folder else 0)

    def _idle(self, model: str) -> dict[str, PipelineState]:
        """Return the pipelines of a model without a flow."""
        return {name: each for name, each in self._state.users(model).items() if each.flow is None}

    def _origin(self, model: str, bundle: Bundle) -> str:
        """Return the origin of a version: "installed", "factory", or the path in the configuration."""
        if bundle.folder.parent.name == VERSIONS:
            return "installed"
        path = self._state.config.models[model].path
        return "factory" if path is None else str(path)


def is_handover(swap: Swap, *, needed: int, available: int) -> bool:
    """Return True to close the former version before the next is loaded: as configured, or for lack of memory.

    An accelerator is no reason: both versions share one process there, and run on the CPU meanwhile.
    """
    return swap == "handover" or (swap == "auto" and needed > available)
