"""Load a version of a model for one pipeline, with the configured backend, threads and accelerator."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msgspec.structs import replace

from edged import plugins
from edged.acceleration.placement import Accelerators
from edged.api import Backend, EdgedError, ModelError, Runner, SourceInfo
from edged.app.state import PipelineState, ServiceState
from edged.backends.tflite import TfliteBackend
from edged.config.check import decision_for
from edged.core.manifest import Manifest
from edged.core.postprocess import Postprocessor
from edged.core.preprocess import Preprocessor
from edged.core.probation import AnsweredTime
from edged.core.source_match import match_source
from edged.flow.slot import RunCounts, Served
from edged.models.bundle import Bundle
from edged.models.selftest import Proof, SelfTest, shaped

log = logging.getLogger("edged.daemon")


class ModelLoader:
    """Loads versions, for minutes. Any thread may call."""

    def __init__(self, state: ServiceState, accelerators: Accelerators) -> None:
        self._state = state
        self._accelerators = accelerators

    def backend(self, model: str, manifest: Manifest) -> Backend:
        """Return the backend in [models.<name>], or the manifest's with default options for a model without users."""
        entry = self._state.config.models.get(model)
        if entry is not None:
            return entry.options
        default: Backend = plugins.load("backends", manifest.backend)()
        return default

    def delegate(self, model: str) -> str:
        """Return the `delegate` in [models.<name>]: a name, "cpu" or "auto"."""
        entry = self._state.config.models.get(model)
        return "auto" if entry is None else entry.delegate

    def requires_accelerator(self, model: str, manifest: Manifest) -> bool:
        """Return whether a version must not serve on the CPU alone."""
        named = manifest.needs.delegates
        return (
            self.delegate(model) != "auto"
            or bool(named and "cpu" not in named)
            or manifest.limits.delegated_share is not None
        )

    def match(self, model: str, manifest: Manifest, part: PipelineState) -> SourceInfo:
        """Return the source of a pipeline. Raises ConfigError if channels, units or a rate of a version's window are
        missing there.
        """
        source = self._state.config.sources[part.entry.source].options.describe()
        match_source(manifest.window, source, part.entry.source, model)
        return source

    def load_each(
        self, model: str, bundle: Bundle, users: Mapping[str, PipelineState], test: SelfTest
    ) -> tuple[dict[str, Served], Proof]:
        """Return the version, ready to serve, for each of these pipelines. Raises EdgedError, and closes the others."""
        backend = self.backend(model, bundle.manifest)
        ready: dict[str, Served] = {}
        proof = Proof(0, 0.0)
        try:
            for name, each in users.items():
                source = self.match(model, bundle.manifest, each)
                ready[name], proof = self._load_one(model, bundle, backend, each, source, test)
        except BaseException:
            for served in ready.values():
                served.runner.close()
            raise
        return ready, proof

    def _load_one(
        self,
        model: str,
        bundle: Bundle,
        backend: Backend,
        pipeline: PipelineState,
        source: SourceInfo,
        test: SelfTest,
    ) -> tuple[Served, Proof]:
        """Load a version for a pipeline of a source, run the golden samples, and return the version ready to serve.

        Raises:
            EdgedError: the version does not load or fails a sample. Every exception of a backend is wrapped.
        """
        manifest = bundle.manifest
        decision = decision_for(pipeline.entry, manifest)
        try:
            twin = runner = self._load(model, bundle, self._with_threads(model, bundle, backend))
            try:
                proof = test.prove(runner)
                if isinstance(backend, TfliteBackend):
                    delegate, priority = self.delegate(model), pipeline.entry.priority
                    runner = self._accelerators.put(model, bundle, delegate, backend, twin, priority)
                isolated = runner is not twin or self._state.config.models[model].isolate
                counts = RunCounts(time=AnsweredTime(_period(manifest, source)))
                rules = Preprocessor(manifest), Postprocessor(manifest, decision, bundle.references)
                served = Served(manifest, runner, *rules, counts, isolated)
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
        if self._state.config.models[model].isolate:
            return self._accelerators.on_cpu.isolate(model, bundle, backend)
        return backend.load(bundle.model, signature=bundle.manifest.signature)

    def _with_threads(self, model: str, bundle: Bundle, backend: Backend) -> Backend:
        """Return the backend with the measured best number of threads, unless the configuration gives a number."""
        if not isinstance(backend, TfliteBackend):
            return backend
        return replace(backend, threads=self._accelerators.threads(model, bundle, self.delegate(model), backend))


def _period(manifest: Manifest, source: SourceInfo) -> float | None:
    """Return the seconds from one window to the next, or None if neither model nor source states a rate."""
    rate = manifest.window.rate or source.rate
    return manifest.window.hop / rate if rate else None
