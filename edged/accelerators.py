"""Models on the accelerators of this board: which variant goes where, in a process of the device's own, and proven.

A model is loaded and proven on the CPU first; `put` then has an accelerator take it over, where there is one for it,
and the CPU takes it back whenever that fails: see backends/accelerated.py. All models of a delegate share its process
and its record of faults, which is a `_Unit` here; it is made when the first model needs it.

`candidates` says in which ways a model could be accelerated, before anybody looks whether the device is there. Of those
the first is taken whose device is ready, in the order of the manifest, or of what `edgectl tune` has measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from edged.api import Backend, ControlError, DeviceError, EdgedError, ModelError, Runner
from edged.backends.delegates import Delegate, DelegateOptions, delegates, devices, resolve, survey
from edged.backends.tflite import DelegatedTflite, TfliteBackend
from edged.child import Leash
from edged.core.acceleration import MISSING, Rules, Standing
from edged.core.manifest import Manifest
from edged.core.verdict import Verdict
from edged.models.agreement import Agreement, agreement
from edged.models.bundle import Bundle
from edged.models.selftest import prove

if TYPE_CHECKING:  # imported when there is something to accelerate, which on most boards there is not
    from edged.backends.accelerated import AcceleratedRunner, Counts
    from edged.backends.isolated import IsolatedRunner

COMPILED = ("edgetpu", "ethosu")
"""Kinds that run no model but those that were compiled for them."""

TRIAL_RUNS = 50

Tell = Callable[[str, str, Standing | None], None]
"""Hears of each change: a model, the name of its accelerator, and how that stands, or "" and None if it has none."""


class Candidate(NamedTuple):
    """One way to accelerate a model: a variant of it, "" for its own file, on a delegate."""

    delegate: Delegate
    variant: str
    file: str
    signature: str | None
    options: Mapping[str, str]


def candidates(manifest: Manifest, wanted: str, table: Mapping[str, Delegate]) -> tuple[Candidate, ...]:
    """The ways to accelerate a model, best first: for `wanted` "auto" all its variants, for "cpu" none.

    Raises:
        ModelError: a delegate is wanted by name, and the model has nothing that it could run.
    """
    if wanted == "cpu":
        return ()
    found = tuple(
        Candidate(delegate, variant.name, variant.file, variant.signature, variant.options)
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
    return (Candidate(delegate, "", manifest.model, manifest.signature, {}),)


class Accelerators:
    """All of them. Any thread may ask; `put` and `configure` belong to one at a time.

    `tell` must neither wait nor raise. Devices are looked for below `root`.
    """

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic, *, root: Path = Path("/")) -> None:
        self._tell = tell
        self._clock = clock
        self._root = root
        self._rules = Rules()
        self._table: dict[str, Delegate] = delegates({})
        self._units: dict[str, _Unit] = {}
        self._standings: dict[str, tuple[str, Standing]] = {}
        self._shares: dict[str, float] = {}

    def configure(self, tables: Mapping[str, DelegateOptions], rules: Rules) -> None:
        """Go by another configuration; no model that it concerns is served meanwhile."""
        table = delegates(tables)
        for name, unit in list(self._units.items()):
            if rules != self._rules or table.get(name) != unit.delegate:
                del self._units[name]
                unit.close()
        self._table, self._rules = table, rules

    def put(
        self, model: str, bundle: Bundle, wanted: str, backend: TfliteBackend, twin: Runner, priority: int
    ) -> Runner:
        """What is to serve: the twin, or where there is an accelerator for the model a runner that takes over the twin.

        `priority` is the model's where several wait for one device. Where a delegate is wanted by name, and there is no
        variant for it, the twin serves, and that is told as a fault.

        Raises:
            EdgedError: the twin fails.
        """
        self._withdraw(model)
        try:
            chosen = self._choose(bundle.manifest, wanted)
        except ModelError as error:
            self._stands(model, wanted, Standing("degraded", error.message, error.hint, self._clock()))
            return twin
        if chosen is None:
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
            return runner

        def check(runner: Runner, hold: Callable[[Runner], object] = agreed.check) -> None:
            hold(runner)
            self._shares[model] = runner.spent.off_processor  # type: ignore[attr-defined]  # it is what `load` gave

        return unit.put(model, twin, load, check, pinned=wanted != "auto")

    def isolate(self, model: str, bundle: Bundle, backend: Backend) -> Runner:
        """A model on the CPU in a process of its own, which is started again whenever it dies.

        Raises:
            EdgedError: it does not load, or does not compute what it should.
        """
        from edged.backends.isolated import Host
        from edged.backends.respawned import RespawnedRunner

        rules = self._rules
        host = Host(f"the model {model}", Leash(memory=rules.memory, niceness=rules.niceness))

        def load() -> Runner:
            runner = host.load(
                backend,
                bundle.model,
                signature=bundle.manifest.signature,
                deadline=rules.deadline,
                load_seconds=rules.load_seconds,
            )
            try:
                prove(bundle, runner)
            except BaseException:
                runner.close()
                raise
            return runner

        return RespawnedRunner(load, rules, self._clock)

    def try_out(self, bundle: Bundle, wanted: str, backend: TfliteBackend) -> Verdict | None:
        """What a version that works on the CPU does on its accelerator; None where it has none that is ready.

        It is loaded where it would serve. Should that process die of it, the models in it go on with their twins.

        Raises:
            EdgedError: it does not load on the CPU, in this process.
        """
        chosen = self._choose(bundle.manifest, wanted)
        if chosen is None or survey(chosen.delegate, self._root).state != "ready":
            return None
        agreed = _agreement_of(bundle, backend)
        try:
            runner = self._load(self._unit(chosen.delegate), chosen, bundle, backend, priority=0)
            try:
                return _judge(bundle.manifest, runner, agreed)
            finally:
                runner.close()
        except DeviceError as error:
            return Verdict(failure="crashed", reason=error.message, hint=error.hint)
        except EdgedError as error:
            return Verdict(failure="wrong", reason=error.message, hint=error.hint)

    def fit(self, manifest: Manifest, wanted: str) -> set[str]:
        """Names of what a version could run on here, "cpu" among them.

        Raises:
            ModelError: a delegate is wanted by name, and the version has nothing that it could run.
        """
        found = candidates(manifest, wanted, self._table)
        ready = [each.delegate for each in found if survey(each.delegate, self._root).state == "ready"]
        return {"cpu"} | {name for each in ready for name in (each.name, each.kind)}

    def standings(self) -> dict[str, tuple[str, Standing]]:
        """The models that have an accelerator, or should: its name, and how it stands."""
        return dict(self._standings)

    def shares(self) -> dict[str, float]:
        """Of each model that was accelerated, the share of the time that its process was off the processor, 0 to 1."""
        return dict(self._shares)

    def counts(self) -> dict[str, Counts]:
        """What was done so far, by accelerator."""
        return {name: unit.accelerator.counts() for name, unit in self._units.items()}

    def forget(self, model: str) -> None:
        """Tell of a model no more: it has gone."""
        self._withdraw(model)
        self._shares.pop(model, None)
        if self._standings.pop(model, None) is not None:
            self._tell(model, "", None)

    def release(self, name: str) -> None:
        """Try again what is quarantined. Raises ControlError for what no model uses."""
        if name not in self._units:
            used = ", ".join(sorted(self._units)) or "none"
            raise ControlError(f"no model runs on {name!r}", hint=f"accelerators in use: {used}")
        self._units[name].accelerator.release()

    def close(self) -> None:
        """End all processes; the runners are closed already."""
        for unit in self._units.values():
            unit.close()
        self._units.clear()

    def _choose(self, manifest: Manifest, wanted: str) -> Candidate | None:
        found = candidates(manifest, wanted, self._table)
        ready = (each for each in found if survey(each.delegate, self._root).state == "ready")
        return next(ready, found[0] if found else None)

    def _unit(self, delegate: Delegate) -> _Unit:
        if delegate.name not in self._units:
            self._units[delegate.name] = _Unit(delegate, self._rules, self._stands, self._clock, self._root)
        return self._units[delegate.name]

    def _withdraw(self, model: str) -> None:
        """Have no unit tell of a model any more."""
        for unit in self._units.values():
            unit.models.pop(model, None)

    def _stands(self, model: str, name: str, standing: Standing) -> None:
        self._standings[model] = (name, standing)
        self._tell(model, name, standing)

    def _load(
        self, unit: _Unit, chosen: Candidate, bundle: Bundle, backend: TfliteBackend, priority: int
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


class _Unit:
    """A delegate in use: its process, its record of faults, and the models that it serves or is to serve."""

    def __init__(
        self,
        delegate: Delegate,
        rules: Rules,
        tell: Callable[[str, str, Standing], None],
        clock: Callable[[], float],
        root: Path,
    ) -> None:
        from edged.backends.accelerated import Accelerator
        from edged.backends.isolated import Host

        self.delegate = delegate
        self.host = Host(delegate.name, Leash(memory=rules.memory, niceness=rules.niceness))
        self.accelerator = Accelerator(
            delegate.name, rules, identity=self._identity, tell=self._changed, clock=clock, jitter=random.random
        )
        self.models: dict[str, bool] = {}
        self._tell = tell
        self._root = root
        self.accelerator.start()

    def put(
        self, model: str, twin: Runner, load: Callable[[], Runner], check: Callable[[Runner], None], *, pinned: bool
    ) -> AcceleratedRunner:
        """A runner for a model, which is `pinned` where it is told to run here and nowhere else."""
        self.models[model] = pinned
        runner = self.accelerator.runner(twin, load, check)
        self._tell(model, self.delegate.name, self.stands(model))
        return runner

    def stands(self, model: str) -> Standing:
        """How the device stands for a model: that it was never there is a fault only where it is asked for by name."""
        now = self.accelerator.standing
        hoped_for = not self.models.get(model, True) and not self.accelerator.counts().promotions
        if now.reason == MISSING and hoped_for:
            return Standing("cpu", now.reason, now.hint, now.since)
        return now

    def close(self) -> None:
        """End the process, and the thread that brings runners back."""
        self.accelerator.close()
        self.host.close()

    def _changed(self, _standing: Standing) -> None:
        for model in list(self.models):
            self._tell(model, self.delegate.name, self.stands(model))

    def _identity(self) -> str:
        """What is plugged in and ready; a delegate that needs no device is always there."""
        if not self.delegate.known.rules:
            return self.delegate.name
        ready = (each.identity for each in devices(self.delegate, self._root) if each.state == "ready")
        return next(ready, "")


def _agreement_of(bundle: Bundle, backend: TfliteBackend) -> Agreement:
    """What the model says on the CPU."""
    twin = backend.load(bundle.model, signature=bundle.manifest.signature)
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
    if limits.latency_p99 is not None and p99 > limits.latency_p99:
        return msgspec.structs.replace(
            measured,
            failure="slow",
            reason=f"one inference takes {p99 * 1e3:.3g} ms at the 99th percentile on {info.delegate}, and "
            f"{limits.latency_p99 * 1e3:.3g} ms are allowed",
            hint="a smaller model, or another delegate, is needed",
        )
    return measured
