"""Models on the accelerators of this board: which variant goes where, in a process of the device's own, and proven.

A model is loaded and proven on the CPU first; `put` then has an accelerator take it over, where there is one for it,
and the CPU takes it back whenever that fails: see backends/accelerated.py. All models of a delegate share its process
and its record of faults, which is a `_Unit` here; it is made when the first model needs it.

`candidates` says in which ways a model could be accelerated, before anybody looks whether the device is there. Of those
the first is taken whose device is ready, in the order of the manifest, or of what `edgectl tune` has measured; where
that says that the CPU is the fastest, none is.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

import msgspec
import numpy as np

from edged.api import Backend, ControlError, DeviceError, EdgedError, ModelError, Runner
from edged.backends.delegates import Delegate, DelegateOptions, Survey, delegates, identity, resolve, survey
from edged.backends.tflite import DelegatedTflite, TfliteBackend
from edged.core.acceleration import MISSING, AcceleratorStatus, Rules
from edged.core.manifest import Manifest
from edged.core.tuning import Choice, Environment, Library, Surroundings, TuningRecord, Way, choose, stale
from edged.core.verdict import Verdict, hold_latency
from edged.models.agreement import Agreement, agreement
from edged.models.bundle import Bundle
from edged.models.selftest import shaped
from edged.system.child import ResourceLimits

if TYPE_CHECKING:  # imported when there is something to accelerate, which on most boards there is not
    from edged.backends.accelerated import AcceleratedRunner, Counts
    from edged.backends.isolated import Host, IsolatedRunner

COMPILED = ("edgetpu", "ethosu")
"""Kinds that run no model but those that were compiled for them."""

CACHE_BYTES = 256 << 20
"""The largest file that a vendor's library may write: some keep compiled models."""

TRIAL_RUNS = 50

RESPAWN_SECONDS = 20.0
"""How long a model with `isolate` may take to load: a window waits as it is loaded again, and so does the watchdog."""

Tell = Callable[[str, str, AcceleratorStatus | None], None]
"""Hears of each change: a model, the name of its accelerator, and how that stands, or "" and None if it has none."""


class AccelerationCandidate(NamedTuple):
    """One way to accelerate a model: a variant of it, "" for its own file, on a delegate."""

    delegate: Delegate
    variant: str
    file: str
    signature: str | None
    options: Mapping[str, str]

    @property
    def way(self) -> Way:
        """What it is called in records."""
        return Way(self.delegate.name, self.variant)


def candidates(manifest: Manifest, wanted: str, table: Mapping[str, Delegate]) -> tuple[AccelerationCandidate, ...]:
    """The ways to accelerate a model, best first: for `wanted` "auto" all its variants, for "cpu" none.

    Raises:
        ModelError: a delegate is wanted by name, and the model has nothing that it could run.
    """
    if wanted == "cpu":
        return ()
    found = tuple(
        AccelerationCandidate(delegate, variant.name, variant.file, variant.signature, variant.options)
        for variant in manifest.variants
        for delegate in table.values()
        if delegate.runs(variant.delegate) and wanted in ("auto", delegate.name)
    )
    if found or wanted == "auto":
        return found
    delegate = table[wanted]
    if delegate.kind in COMPILED:
        raise ModelError(
            f"{manifest.name} {manifest.version} has no variant that was compiled for {wanted}",
            hint="compile it, and pack the file with it: edgectl pack --variant",
        )
    return (AccelerationCandidate(delegate, "", manifest.model, manifest.signature, {}),)


def _nothing_measured(_model: str) -> TuningRecord | None:
    return None


class Accelerators:
    """All of them. Any thread may ask; `put` and `configure` belong to one at a time.

    Units and hosts come and go under the lock. What only looks at them takes a copy, which needs none.

    `tell` must neither wait nor raise. `records` gives what was measured of a model, by name. Devices are looked for
    below `root`.
    """

    def __init__(
        self,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        *,
        records: Callable[[str], TuningRecord | None] = _nothing_measured,
        root: Path = Path("/"),
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._records = records
        self._root = root
        self._lock = threading.Lock()
        self._rules = Rules()
        self._table: dict[str, Delegate] = delegates({})
        self._units: dict[str, _Unit] = {}
        self._on_cpu: WeakSet[Host] = WeakSet()
        self._closed = False
        self._standings: dict[str, tuple[str, AcceleratorStatus]] = {}
        self._shares: dict[str, float] = {}
        self._proven: dict[str, Path] = {}
        self._choices: dict[str, str] = {}

    def configure(self, tables: Mapping[str, DelegateOptions], rules: Rules) -> None:
        """Go by another configuration; no model that it concerns is served meanwhile."""
        table = delegates(tables)
        with self._lock:
            for name, unit in list(self._units.items()):
                if rules != self._rules or table.get(name) != unit.delegate:
                    del self._units[name]
                    unit.close()
            self._table, self._rules = table, rules

    def put(
        self, model: str, bundle: Bundle, wanted: str, backend: TfliteBackend, twin: Runner, priority: int
    ) -> Runner:
        """What is to serve: the twin, or where an accelerator is to be had, and worth it, one that takes over the twin.

        `priority` is the model's where several wait for one device. Where a delegate is wanted by name, and there is no
        variant for it, the twin serves, and that is told as a fault.

        Raises:
            EdgedError: the twin fails.
        """
        try:
            order = self.choice(model, bundle, wanted, backend).order
        except ModelError as error:
            self._withdraw(model)
            self._stands(model, wanted, AcceleratorStatus("degraded", error.message, error.hint, self._clock()))
            return twin
        found = {each.way: each for each in candidates(bundle.manifest, wanted, self._table)}
        chosen = self._first([found[way] for way in order])
        if chosen is None:
            self._withdraw(model)
            self._standings.pop(model, None)
            self._tell(model, "", None)
            return twin
        agreed = agreement(bundle, twin)
        unit = self._unit(chosen.delegate)

        def load() -> Runner:
            runner = self._load(unit, chosen, bundle, backend, priority)
            try:
                check(runner, agreed.prove)
            except BaseException:
                runner.close()
                raise
            if unit.has(model):
                self._proven[model] = bundle.folder
            return runner

        def check(runner: Runner, hold: Callable[[Runner], object] = agreed.check) -> None:
            hold(runner)
            if unit.has(model):  # it may have gone while this was being loaded
                self._shares[model] = runner.spent.off_processor  # type: ignore[attr-defined]  # `load` gave it

        self._withdraw(model)  # and not before: where the twin fails, what served goes on
        file = bundle.manifest.files[chosen.file].sha256
        return unit.put(model, file, twin, load, check, pinned=wanted != "auto")

    def isolate(self, model: str, bundle: Bundle, backend: Backend) -> Runner:
        """A model on the CPU in a process of its own, which is started again whenever it dies.

        It is not proven: whoever is to serve it proves it once, and not while a window waits for the next process.

        Raises:
            EdgedError: it does not load.
        """
        from edged.backends.respawned import RespawnedRunner

        load = partial(self.load_on_cpu, f"the model {model}", bundle, backend)
        return RespawnedRunner(load, self._rules, self._clock)

    def try_out(self, bundle: Bundle, wanted: str, backend: TfliteBackend) -> Verdict | None:
        """What a version that works on the CPU does on its accelerator; None where it has none that is ready.

        It is loaded where it would serve. Should that process die of it, the models in it go on with their twins.

        Raises:
            DeviceError: that cannot be told, for what is wrong is the device, or this board, and not the version.
            EdgedError: it does not load on the CPU, in this process.
        """
        from edged.backends.isolated import LostError

        chosen = self._first(candidates(bundle.manifest, wanted, self._table))
        if chosen is None or survey(chosen.delegate, self._root).state != "ready":
            return None
        agreed = agreement_on_cpu(bundle, backend)
        unit = self._unit(chosen.delegate)
        at_fault = unit.accelerator.is_at_fault()  # before it was given this version
        try:
            runner = self._load(unit, chosen, bundle, backend, priority=0)
            try:
                return _judge(bundle.manifest, runner, agreed)
            finally:
                runner.close()
        except EdgedError as error:
            crashed = isinstance(error, LostError)
            its_own = crashed or not isinstance(error, DeviceError)
            if at_fault or not its_own or survey(chosen.delegate, self._root).state != "ready":  # as once unplugged
                raise DeviceError(error.message, hint=error.hint, retryable=True) from error
            return Verdict(failure="crashed" if crashed else "wrong", reason=error.message, hint=error.hint)

    def fit(self, manifest: Manifest, wanted: str) -> set[str]:
        """Names of what a version could run on here, "cpu" among them.

        Raises:
            ModelError: a delegate is wanted by name, and the version has nothing that it could run.
        """
        found = candidates(manifest, wanted, self._table)
        ready = [each.delegate for each in found if survey(each.delegate, self._root).state == "ready"]
        return {"cpu"} | {name for each in ready for name in (each.name, each.kind)}

    # What was measured, and what can be

    def ways(self, manifest: Manifest, wanted: str) -> tuple[tuple[AccelerationCandidate, Survey], ...]:
        """The ways to accelerate a model, and how the delegate of each stands. Raises ModelError as `candidates`."""
        found = candidates(manifest, wanted, self._table)
        return tuple((each, survey(each.delegate, self._root)) for each in found)

    def load(self, way: AccelerationCandidate, bundle: Bundle, backend: TfliteBackend) -> IsolatedRunner:
        """A model on its accelerator, as it would serve there, but not proven.

        Raises:
            EdgedError: it does not load, or the device is not ready.
        """
        return self._load(self._unit(way.delegate), way, bundle, backend, priority=0)

    def load_on_cpu(self, name: str, bundle: Bundle, backend: Backend) -> IsolatedRunner:
        """A model on the CPU, in a process of its own that is called `name` and ends with it.

        Raises:
            EdgedError: it does not load.
        """
        from edged.backends.isolated import Host

        rules = self._rules
        host = Host(name, ResourceLimits(memory=rules.memory, niceness=rules.niceness))
        with self._lock:
            self._refuse_if_closed()
            self._on_cpu.add(host)
        return host.load(
            backend,
            bundle.model,
            signature=bundle.manifest.signature,
            deadline=rules.deadline,
            load_seconds=min(rules.load_seconds, RESPAWN_SECONDS),
        )

    def environment(self, manifest: Manifest, wanted: str, backend: TfliteBackend) -> Environment:
        """All that a measurement of a model depends on, as it is now.

        Raises:
            ModelError: as `candidates`, or there is no runtime.
        """
        return Environment(
            runtime=backend.title(),
            kernel=os.uname().release,
            processors=len(os.sched_getaffinity(0)),
            delegates={way.delegate.name: _surroundings(found) for way, found in self.ways(manifest, wanted)},
        )

    def choice(self, model: str, bundle: Bundle, wanted: str, backend: TfliteBackend) -> Choice:
        """In which order to try the ways there are, with how many threads to run on the CPU, and why.

        Raises:
            ModelError: as `environment`.
        """
        manifest = bundle.manifest
        ways = [each.way for each in candidates(manifest, wanted, self._table)]
        record, why_not = self._records(model), ""
        if record is not None:
            why_not = stale(record, bundle.digest, self.environment(manifest, wanted, backend))
        found = choose(record, ways, pinned=wanted != "auto", stale=why_not)
        if ways or record is not None:
            self._choices[model] = found.why
        else:
            self._choices.pop(model, None)
        return found

    def threads(self, model: str, bundle: Bundle, wanted: str, backend: TfliteBackend) -> int:
        """How many threads a model is to have on the CPU: as its backend says, or where it does not as was measured."""
        if backend.threads:
            return backend.threads
        try:
            return self.choice(model, bundle, wanted, backend).threads
        except EdgedError:  # whatever it is, it is said where the model is loaded
            return 1

    def choices(self) -> dict[str, str]:
        """Of each model that has several ways to run, why it runs as it does."""
        return dict(self._choices)

    # How they stand

    def standings(self) -> dict[str, tuple[str, AcceleratorStatus]]:
        """The models that have an accelerator, or should: its name, and how it stands."""
        return dict(self._standings)

    def shares(self) -> dict[str, float]:
        """Of each model that was accelerated, the share of the time that its process was off the processor, 0 to 1."""
        return dict(self._shares)

    def has_proven(self, model: str, bundle: Bundle) -> bool:
        """Whether this version of a model is the last that computed on an accelerator what it should."""
        return self._proven.get(model) == bundle.folder

    def counts(self) -> dict[str, Counts]:
        """What was done so far, by accelerator."""
        return {name: unit.accelerator.counts() for name, unit in list(self._units.items())}

    def forget(self, model: str) -> None:
        """Tell of a model no more: it has gone."""
        self._withdraw(model)
        self._proven.pop(model, None)
        if self._standings.pop(model, None) is not None:
            self._tell(model, "", None)

    def release(self, name: str) -> None:
        """Try again what is quarantined. Raises ControlError for what no model uses."""
        unit = self._units.get(name)
        if unit is None:
            used = ", ".join(sorted(self._units)) or "none"
            raise ControlError(f"no model runs on {name!r}", hint=f"accelerators in use: {used}")
        unit.accelerator.release()

    def close(self) -> None:
        """End all processes, and start no more; what somebody still has of them raises DeviceError."""
        with self._lock:
            self._closed = True
            there: list[_Unit | Host] = [*self._units.values(), *self._on_cpu]
            self._units.clear()
        for each in there:
            each.close()

    def _first(self, found: Sequence[AccelerationCandidate]) -> AccelerationCandidate | None:
        """The first whose device is ready; where none is, the one to wait for."""
        ready = (each for each in found if survey(each.delegate, self._root).state == "ready")
        return next(ready, found[0] if found else None)

    def _unit(self, delegate: Delegate) -> _Unit:
        with self._lock:
            self._refuse_if_closed()
            if self._table.get(delegate.name) != delegate:  # what began before `configure` must not bring it back
                raise DeviceError(f"{delegate.name} is configured otherwise by now", hint="ask again", retryable=True)
            if delegate.name not in self._units:
                self._units[delegate.name] = _Unit(delegate, self._rules, self._stands, self._clock, self._root)
            return self._units[delegate.name]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise DeviceError("no process is started any more", hint="ask again when edged is back", retryable=True)

    def _withdraw(self, model: str) -> None:
        """Have no unit tell of a model any more, from now on."""
        for unit in list(self._units.values()):
            unit.withdraw(model)
        self._shares.pop(model, None)

    def _stands(self, model: str, name: str, standing: AcceleratorStatus) -> None:
        self._standings[model] = (name, standing)
        self._tell(model, name, standing)

    def _load(
        self, unit: _Unit, chosen: AccelerationCandidate, bundle: Bundle, backend: TfliteBackend, priority: int
    ) -> IsolatedRunner:
        delegation = resolve(chosen.delegate, chosen.options, root=self._root)
        return unit.host.load(
            DelegatedTflite(
                threads=backend.threads,
                runtime=backend.runtime,
                delegate=delegation.name,
                library=delegation.library,
                options=delegation.options,
            ),
            bundle.file(chosen.file),
            signature=chosen.signature,
            deadline=self._rules.deadline,
            load_seconds=self._rules.load_seconds,
            priority=priority,
        )


def _surroundings(found: Survey) -> Surroundings:
    return Surroundings(
        library=_library(found.library),
        devices=tuple(each.id for each in found.devices if each.state == "ready"),
        options=found.delegate.options,
    )


def _library(path: str | None) -> Library | None:
    if path is None:
        return None
    try:
        status = Path(path).stat()
    except OSError:  # it went a moment ago
        return None
    return Library(path=path, bytes=status.st_size, mtime_ns=status.st_mtime_ns)


class _Unit:
    """A delegate in use: its process, its record of faults, and the models that it serves or is to serve.

    Which those are, and what was told of them, is under a lock of its own, taken after the accelerator's.
    """

    def __init__(
        self,
        delegate: Delegate,
        rules: Rules,
        tell: Callable[[str, str, AcceleratorStatus], None],
        clock: Callable[[], float],
        root: Path,
    ) -> None:
        from edged.backends.accelerated import Accelerator
        from edged.backends.isolated import Host

        self.delegate = delegate
        leash = ResourceLimits(memory=rules.memory, niceness=rules.niceness, file=CACHE_BYTES)
        self.host = Host(delegate.name, leash)
        self.accelerator = Accelerator(
            delegate.name,
            rules,
            identity=partial(identity, delegate, root),
            renew=self.host.renew,
            busy=lambda: self.host.is_loading,
            tell=self._look,
            clock=clock,
            jitter=random.random,
        )
        self._telling = threading.Lock()
        self._pinned: dict[str, bool] = {}
        self._told: dict[str, tuple[str, str]] = {}
        self._clock = clock
        self._files: dict[str, str] = {}
        self._tell = tell
        self.accelerator.start()

    def put(
        self,
        model: str,
        file: str,
        twin: Runner,
        load: Callable[[], Runner],
        check: Callable[[Runner], None],
        *,
        pinned: bool,
    ) -> AcceleratedRunner:
        """A runner for a model, which is `pinned` where it is told to run here and nowhere else.

        `file` is the digest of what runs. Another than before may be what cures the device: its past is forgotten.
        """
        if self._files.setdefault(model, file) != file:
            self._files[model] = file
            self.accelerator.release()
        with self._telling:
            self._told.pop(model, None)
            self._pinned[model] = pinned
        return self.accelerator.runner(model, twin, load, check)

    def has(self, model: str) -> bool:
        """Whether it serves a model, or is to."""
        return model in self._pinned

    def withdraw(self, model: str) -> None:
        """Tell of a model no more; whoever is telling of it has done so."""
        with self._telling:
            self._pinned.pop(model, None)

    def _stands(self, model: str, pinned: bool) -> AcceleratorStatus | None:
        """How a model stands: that the device was never there is a fault only where it is asked for by name."""
        now = self.accelerator.standing_of(model)
        if now is not None and now.reason == MISSING and not pinned and not self.accelerator.counts().promotions:
            return AcceleratorStatus("cpu", now.reason, now.hint, now.since)
        return now

    def close(self) -> None:
        """End the process, and the thread that brings runners back."""
        self.accelerator.close()
        self.host.close()

    def _look(self, _device: AcceleratorStatus) -> None:
        """Tell of the models that stand otherwise than was told. Under the accelerator's lock."""
        with self._telling:
            for model, pinned in self._pinned.items():
                now = self._stands(model, pinned)
                if now is not None and (now.state, now.reason) != self._told.get(model):
                    self._told[model] = now.state, now.reason
                    self._tell(model, self.delegate.name, msgspec.structs.replace(now, since=self._clock()))


def agreement_on_cpu(bundle: Bundle, backend: Backend) -> Agreement:
    """What the model says on the CPU, in this process.

    Raises:
        EdgedError: it does not load there, or fails.
    """
    twin = shaped(backend, bundle.manifest).load(bundle.model, signature=bundle.manifest.signature)
    try:
        return agreement(bundle, twin)
    finally:
        twin.close()


def _judge(manifest: Manifest, runner: Runner, agreed: Agreement) -> Verdict:
    """What is measured on an accelerator, held against the manifest's limits. Raises EdgedError where it fails."""
    proof = agreed.prove(runner)
    p50, p99 = (float(each) for each in np.percentile(agreed.times(runner, TRIAL_RUNS), (50, 99)))
    info, limits = runner.info, manifest.limits
    measured = Verdict(samples=proof.samples, worst=proof.worst, latency_p50=p50, latency_p99=p99, runner=info)
    share = info.delegated / info.nodes if info.nodes else 0.0
    if limits.delegated_share is not None and share < limits.delegated_share:
        return msgspec.structs.replace(
            measured,
            failure="unfit",
            reason=f"{info.delegate} takes {info.delegated} of its {info.nodes} nodes, and "
            f"{limits.delegated_share:.0%} of them are asked for",
            hint="another version of the delegate or of the model is needed: edgectl prove",
        )
    return hold_latency(measured, limits, f" on {info.delegate}")
