"""Facts about a model for `decide` (core/decide.py), read from the disk and from the host of the model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import msgspec
from msgspec.structs import replace

from edged.core import manifest as manifests
from edged.core import probation
from edged.core.decide import CandidateAnswer, Keep, ModelFacts, ModelStep, VersionFault, in_use
from edged.core.errors import BundleError, ControlError, some
from edged.core.ledger import Candidate, Ledger
from edged.core.manifest import Manifest, Probation, version_key
from edged.core.probation import Observed, Watch
from edged.core.verdict import Verdict
from edged.models.bundle import MANIFEST, Bundle
from edged.models.store import FactoryVersion, ModelFolder, Store
from edged.updates.blocking import on_thread
from edged.updates.update_state import UpdateStates


class ModelHost(Protocol):
    """The host of the models in the daemon. Versions go by digest. Called on the event loop."""

    def serving(self, model: str) -> str | None:
        """Return the version in service: "" for no version, None for a model without a pipeline."""

    def models(self) -> Collection[str]:
        """Return the models in the configuration, installed or not."""

    def named(self, model: str) -> str:
        """Return the number of the version in the configuration of a model; "" for any."""

    def fit(self, model: str, manifest: Manifest) -> None:
        """Raise EdgedError if a version cannot serve here, because of runtime, memory or the pipelines' sources."""

    async def try_out(self, model: str, bundle: Bundle) -> Verdict:
        """Run a version's self-test in a child process. Raises ModelError if no child could be started."""

    async def swap(self, model: str, bundle: Bundle | None) -> None:
        """Switch all pipelines of a model to a version, and return after the first answer; None unloads the model.

        Raises EdgedError if the version does not answer. The old version then serves on if possible.
        """

    def observed(self, model: str) -> Observed:
        """Return observations of the version in service since the swap."""


class FactsReader:
    """Reads the facts about models. `run` identifies the run of the daemon."""

    def __init__(
        self,
        store: Store,
        host: ModelHost,
        states: UpdateStates,
        *,
        run: str,
        keep: Keep,
        clock: Callable[[], float],
    ) -> None:
        self.keep = keep
        self._store = store
        self._host = host
        self._states = states
        self._run = run
        self._clock = clock

    def names(self) -> list[str]:
        """Return the names of all models: configured, installed, or in the factory folder."""
        return sorted({*self._store.names(), *self._store.installed(), *self._host.models()})

    def require(self, name: str) -> str:
        """Return the name of an existing model. Raises ControlError for any other."""
        if name not in self.names():
            raise ControlError(f"there is no model {name!r}", hint=f"choose one of: {some(self.names()) or '(none)'}")
        return name

    async def inspect(self, name: str, barred: frozenset[type[ModelStep]] = frozenset(), room: int = 0) -> ModelFacts:
        """Return the facts about a model. Old versions may be removed to have `room` bytes free.

        Raises:
            StoreError: the disk cannot be read.
        """
        model = self._states[name]
        disk = await on_thread(self._read, name)
        # If the caller does not hold the lock, another step may have replaced the ledger since.
        model.ledger = model.ledger or disk.ledger
        candidate = disk.ledger.candidate
        serving = self._host.serving(name)
        watched: CandidateAnswer = "open"
        if candidate is None or candidate.phase != "probation" or serving not in (candidate.digest, None):
            model.serving_since, model.watched, model.answered = None, 0.0, 0
        elif model.serving_since is None:
            model.serving_since = self._clock()
        if model.serving_since is not None and serving is not None:
            observed = self._host.observed(name)
            model.observe(observed)
            watched = _answer(probation.judge(disk.limits, observed, disk.usual))
        model.factory, model.limits = disk.factory, disk.limits
        facts = ModelFacts(
            ledger=disk.ledger,
            run=self._run,
            factory=tuple(disk.factory),
            present=disk.present,
            unfit=dict(model.unfit),
            serving=serving,
            named=self._named(name, disk),
            trial=model.trial,
            watched=watched,
            waited=0.0 if model.serving_since is None else self._clock() - model.serving_since,
            current=disk.current,
            litter=disk.litter,
            keep=self.keep,
            barred=barred,
        )
        return replace(facts, keep=_with_room(facts, disk.free, room)) if room else facts

    def _read(self, name: str) -> _DiskFacts:
        folder = self._store.model(name)
        ledger = self._states[name].ledger or folder.read()
        limits, usual = _limits(folder, ledger.candidate)
        return _DiskFacts(
            ledger=ledger,
            factory=self._store.factory(name),
            present=folder.present(),
            current=folder.current(),
            litter=folder.litter(),
            limits=limits,
            usual=usual,
            free=folder.free(),
        )

    def _named(self, name: str, disk: _DiskFacts) -> frozenset[str] | None:
        """Return the versions with the number in the configuration; None without a number there."""
        number = self._host.named(name)
        if not number:
            return None
        versions = [(digest, each.version) for digest, each in (disk.ledger.versions | disk.factory).items()]
        return frozenset(digest for digest, version in versions if version_key(version) == version_key(number))


class _DiskFacts(msgspec.Struct, frozen=True):
    """Facts from the disk."""

    ledger: Ledger
    factory: dict[str, FactoryVersion]
    present: dict[str, int]
    current: str | None
    litter: tuple[str, ...]
    limits: Probation
    usual: dict[str, float]
    free: int


def _limits(folder: ModelFolder, candidate: Candidate | None) -> tuple[Probation, dict[str, float]]:
    """Return the limits of probation and the usual shares of labels, from the candidate's manifest."""
    if candidate is None:
        return Probation(), {}
    try:
        manifest = manifests.decode((folder.version(candidate.digest) / MANIFEST).read_bytes())
    except (OSError, BundleError):  # loading will show the damage
        return Probation(), {}
    return manifest.probation, manifest.reference.shares if manifest.reference else {}


def _answer(watch: Watch) -> CandidateAnswer:
    match watch.state:
        case "watching":
            return "open"
        case "good":
            return "good"
        case "failed":
            return VersionFault("rejected", watch.reason)


def _with_room(facts: ModelFacts, free: int, room: int) -> Keep:
    """Return rules to keep fewer bytes, if those make `room` bytes free; else the present rules."""
    held = {digest: size for digest, size in facts.present.items() if digest in facts.ledger.versions}
    spare = sum(size for digest, size in held.items() if digest not in in_use(facts))
    if free + spare < room:
        return facts.keep
    return replace(facts.keep, bytes=min(facts.keep.bytes, sum(held.values()) + free - room))
