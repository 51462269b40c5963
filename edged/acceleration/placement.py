"""Models on the accelerators of this board: a variant for each, proven, in a process of the device's own.

A model is loaded and proven on the CPU first. Then `put` has an accelerator take over, if the board has one for the
model, and the CPU takes back whenever the accelerator fails: see backends/accelerated.py. All models of a delegate
share a process and a record of faults, a `_Unit`, made for the first such model.

`candidates` lists the ways to accelerate a model, whatever devices are plugged in. The first way with a ready
device is taken, in the order of the manifest, or by the speeds measured by `edgectl tune`; no way is taken if the
CPU was the fastest.
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

import msgspec
import numpy as np

from edged.acceleration.cpu_processes import CpuProcesses, stopped
from edged.api import Backend, ControlError, DeviceError, EdgedError, ModelError, Runner
from edged.backends.delegates import Delegate, DelegateOptions, Survey, delegates, identity, resolve, survey
from edged.backends.tflite import DelegatedTflite, TfliteBackend
from edged.core.acceleration import MISSING, AcceleratorStatus, Rules
from edged.core.manifest import Manifest
from edged.core.ways import Choice, Way, as_in_manifest
from edged.models.bundle import Bundle
from edged.models.selftest import shaped
from edged.system.child import ResourceLimits

if TYPE_CHECKING:  # imported with the first accelerated model: most boards have none
    from edged.backends.accelerated import AcceleratedRunner, AcceleratorCounts
    from edged.backends.isolated import IsolatedRunner
    from edged.core.tuning import Environment, Library, Surroundings, TuningRecord
    from edged.core.verdict import Verdict
    from edged.models.agreement import Agreement

COMPILED = ("edgetpu", "ethosu")
"""Kinds of delegates for specially compiled models only."""

CACHE_BYTES = 256 << 20
"""Largest file of a vendor's library: some libraries keep compiled models."""

TRIAL_RUNS = 50

Report = Callable[[str, str, AcceleratorStatus | None], None]
"""Receives each change: a model, the name and the status of the accelerator, or "" and None for a model on the CPU."""


class AccelerationCandidate(NamedTuple):
    """A way to accelerate a model: a variant, "" for the model's own file, on a delegate."""

    delegate: Delegate
    variant: str
    file: str
    signature: str | None
    options: Mapping[str, str]

    @property
    def way(self) -> Way:
        """Return the name of this way in records."""
        return Way(self.delegate.name, self.variant)


def candidates(manifest: Manifest, wanted: str, table: Mapping[str, Delegate]) -> tuple[AccelerationCandidate, ...]:
    """Return the ways to accelerate a model, best first: for `wanted` "auto" all variants, for "cpu" an empty tuple.

    Raises:
        ModelError: a delegate is wanted by name, and can run no file of the model.
        DeviceError: the wanted delegate is not in the table, as in the middle of a reload.
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
    delegate = table.get(wanted)
    if delegate is None:
        raise _reconfigured(wanted)
    if delegate.kind in COMPILED:
        raise ModelError(
            f"{manifest.name} {manifest.version} has no variant compiled for {wanted}",
            hint="compile the model, and add the file to the bundle: edgectl pack --variant",
        )
    return (AccelerationCandidate(delegate, "", manifest.model, manifest.signature, {}),)


def _nothing_measured(_model: str) -> TuningRecord | None:
    return None


class Accelerators:
    """The accelerators of a board. Any thread may call, but `put` and `configure` only from a single thread at a time.

    Units are added and removed under the lock, and read from a copy without the lock.

    `report` must neither block nor raise. `records` returns the measurements of a model, by name. Devices are searched
    below `root`. `on_cpu` has models in separate processes without an accelerator.
    """

    def __init__(
        self,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
        *,
        records: Callable[[str], TuningRecord | None] = _nothing_measured,
        root: Path = Path("/"),
    ) -> None:
        self.on_cpu = CpuProcesses(clock)
        self._report = report
        self._clock = clock
        self._records = records
        self._root = root
        self._lock = threading.Lock()
        self._rules = Rules()
        self._table: dict[str, Delegate] = delegates({})
        self._units: dict[str, _Unit] = {}
        self._closed = False
        self._statuses: dict[str, tuple[str, AcceleratorStatus]] = {}
        self._shares: dict[str, float] = {}
        self._proven: dict[str, Path] = {}
        self._choices: dict[str, str] = {}

    def configure(self, tables: Mapping[str, DelegateOptions], rules: Rules) -> None:
        """Apply another configuration. The caller has taken down the affected models."""
        table = delegates(tables)
        with self._lock:
            for name, unit in list(self._units.items()):
                if rules != self._rules or table.get(name) != unit.delegate:
                    del self._units[name]
                    unit.close()
            self._table, self._rules = table, rules
        self.on_cpu.configure(rules)

    def put(
        self, model: str, bundle: Bundle, wanted: str, backend: TfliteBackend, twin: Runner, priority: int
    ) -> Runner:
        """Return the runner to serve with: `twin`, the CPU runner, or an accelerated runner with fallback.

        `priority` orders the models waiting for a device. If a delegate is wanted by name, and the model has no
        suitable variant, the twin serves and the missing variant is reported as a fault.

        Raises:
            EdgedError: the twin fails.
        """
        try:
            order = self.choice(model, bundle, wanted, backend).order
        except ModelError as error:
            self._withdraw(model)
            self._change(model, wanted, AcceleratorStatus("degraded", error.message, error.hint, self._clock()))
            return twin
        found = {each.way: each for each in candidates(bundle.manifest, wanted, self._table)}
        chosen = self._first([found[way] for way in order])
        if chosen is None:
            self._withdraw(model)
            self._statuses.pop(model, None)
            self._report(model, "", None)
            return twin
        from edged.models.agreement import agreement  # most boards have no accelerator

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
            if unit.has(model):  # else the model was taken down meanwhile
                self._shares[model] = runner.run_times.off_processor  # type: ignore[attr-defined]  # `load` gave it

        self._withdraw(model)  # not before the twin has succeeded: until then the former runner serves
        file = bundle.manifest.files[chosen.file].sha256
        return unit.put(model, file, twin, load, check, pinned=wanted != "auto")

    def try_out(self, bundle: Bundle, wanted: str, backend: TfliteBackend) -> Verdict | None:
        """Return the verdict on a version on an accelerator, or None if no accelerator is ready for the version.

        The later serving process loads the version. If the process dies, the models go on with the CPU twins.

        Raises:
            DeviceError: the device or the board is at fault, and not the version.
            EdgedError: the version does not load on the CPU, in this process.
        """
        from edged.backends.isolated import LostError
        from edged.core.verdict import Verdict

        chosen = self._first(candidates(bundle.manifest, wanted, self._table))
        if chosen is None or survey(chosen.delegate, self._root).state != "ready":
            return None
        agreed = agreement_on_cpu(bundle, backend)
        unit = self._unit(chosen.delegate)
        at_fault = unit.accelerator.is_at_fault()  # already, before this version is loaded
        try:
            runner = self._load(unit, chosen, bundle, backend, priority=0)
            try:
                return _judge(bundle.manifest, runner, agreed)
            finally:
                runner.close()
        except EdgedError as error:
            crashed = isinstance(error, LostError)
            its_own = crashed or not isinstance(error, DeviceError)
            if at_fault or not its_own or survey(chosen.delegate, self._root).state != "ready":  # unplugged meanwhile
                raise DeviceError(error.message, hint=error.hint, retryable=True) from error
            return Verdict(failure="crashed" if crashed else "wrong", reason=error.message, hint=error.hint)

    def fit(self, manifest: Manifest, wanted: str) -> set[str]:
        """Return the names and kinds of ready delegates for a version, with "cpu". Any thread may ask.

        Raises:
            EdgedError: like `candidates`.
        """
        found = candidates(manifest, wanted, self._table)
        ready = [each.delegate for each in found if survey(each.delegate, self._root).state == "ready"]
        return {"cpu"} | {name for each in ready for name in (each.name, each.kind)}

    # Ways to run a model, and measurements

    def ways(self, manifest: Manifest, wanted: str) -> tuple[tuple[AccelerationCandidate, Survey], ...]:
        """Return the ways to accelerate a model, with a survey of each device. Raises EdgedError like `candidates`."""
        found = candidates(manifest, wanted, self._table)
        return tuple((each, survey(each.delegate, self._root)) for each in found)

    def load(self, way: AccelerationCandidate, bundle: Bundle, backend: TfliteBackend) -> IsolatedRunner:
        """Return a runner on an accelerator, loaded for service but not proven.

        Raises:
            EdgedError: the model does not load, or the device is not ready.
        """
        return self._load(self._unit(way.delegate), way, bundle, backend, priority=0)

    def environment(self, manifest: Manifest, wanted: str, backend: TfliteBackend) -> Environment:
        """Return the present state of all influences on a measurement of a model.

        Raises:
            EdgedError: like `candidates`, or the runtime is not installed.
        """
        from edged.core.tuning import Environment

        return Environment(
            runtime=backend.title(),
            kernel=os.uname().release,
            processors=len(os.sched_getaffinity(0)),
            delegates={way.delegate.name: _surroundings(found) for way, found in self.ways(manifest, wanted)},
        )

    def choice(self, model: str, bundle: Bundle, wanted: str, backend: TfliteBackend) -> Choice:
        """Return the order of ways to try, the number of threads on the CPU, and the reason for both.

        Raises:
            EdgedError: like `environment`.
        """
        manifest = bundle.manifest
        ways = [each.way for each in candidates(manifest, wanted, self._table)]
        record = self._records(model)
        if record is None:
            found = as_in_manifest(ways)
        else:
            from edged.core.tuning import choose, stale  # few models are tuned

            why_not = stale(record, bundle.digest, self.environment(manifest, wanted, backend))
            found = choose(record, ways, pinned=wanted != "auto", stale=why_not)
        if ways or record is not None:
            self._choices[model] = found.why
        else:
            self._choices.pop(model, None)
        return found

    def threads(self, model: str, bundle: Bundle, wanted: str, backend: TfliteBackend) -> int:
        """Return the number of threads of a model on the CPU: as configured, or else as measured."""
        if backend.threads:
            return backend.threads
        try:
            return self.choice(model, bundle, wanted, backend).threads
        except EdgedError:  # raised again when the model is loaded
            return 1

    def choices(self) -> dict[str, str]:
        """Return the reason for the order of ways, for each model with several ways to run."""
        return dict(self._choices)

    # State

    def statuses(self) -> dict[str, tuple[str, AcceleratorStatus]]:
        """Return the name and the status of each model's accelerator, present or missing."""
        return dict(self._statuses)

    def shares(self) -> dict[str, float]:
        """Return the share of time, 0 to 1, of each accelerated model's process off the processor."""
        return dict(self._shares)

    def has_proven(self, model: str, bundle: Bundle) -> bool:
        """Return True if this version of a model was the last to agree with the CPU on an accelerator."""
        return self._proven.get(model) == bundle.folder

    def counts(self) -> dict[str, AcceleratorCounts]:
        """Return the counts of windows, faults and promotions, by accelerator."""
        return {name: unit.accelerator.counts() for name, unit in list(self._units.items())}

    def forget(self, model: str) -> None:
        """Remove the status of a model taken down."""
        self._withdraw(model)
        self._proven.pop(model, None)
        if self._statuses.pop(model, None) is not None:
            self._report(model, "", None)

    def release(self, name: str) -> None:
        """End the quarantine of an accelerator. Raises ControlError if no model uses an accelerator of this name."""
        unit = self._units.get(name)
        if unit is None:
            used = ", ".join(sorted(self._units)) or "none"
            raise ControlError(f"no model runs on {name!r}", hint=f"name an accelerator in use: {used}")
        unit.accelerator.release()

    def close(self) -> None:
        """End all processes, and start no more. The runners raise DeviceError from now on."""
        with self._lock:
            self._closed = True
            units = list(self._units.values())
            self._units.clear()
        for unit in units:
            unit.close()
        self.on_cpu.close()

    def _first(self, found: Sequence[AccelerationCandidate]) -> AccelerationCandidate | None:
        """Return the first candidate with a ready device, or else the first of all: a device may come."""
        ready = (each for each in found if survey(each.delegate, self._root).state == "ready")
        return next(ready, found[0] if found else None)

    def _unit(self, delegate: Delegate) -> _Unit:
        with self._lock:
            if self._closed:
                raise stopped()
            if self._table.get(delegate.name) != delegate:  # a caller began before `configure` removed the delegate
                raise _reconfigured(delegate.name)
            if delegate.name not in self._units:
                self._units[delegate.name] = _Unit(delegate, self._rules, self._change, self._clock, self._root)
            return self._units[delegate.name]

    def _withdraw(self, model: str) -> None:
        """Have no unit report a model from now on."""
        for unit in list(self._units.values()):
            unit.withdraw(model)
        self._shares.pop(model, None)

    def _change(self, model: str, name: str, status: AcceleratorStatus) -> None:
        self._statuses[model] = (name, status)
        self._report(model, name, status)

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


def _reconfigured(name: str) -> DeviceError:
    return DeviceError(f"the configuration of {name} has just changed", hint="ask again", retryable=True)


def _surroundings(found: Survey) -> Surroundings:
    from edged.core.tuning import Surroundings

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
    except OSError:  # the file was deleted a moment ago
        return None
    from edged.core.tuning import Library

    return Library(path=path, bytes=status.st_size, mtime_ns=status.st_mtime_ns)


class _Unit:
    """A delegate in use: the process, the record of faults, and the models.

    The models, and the last reported status of each, have a separate lock, taken after the accelerator's lock.
    """

    def __init__(
        self,
        delegate: Delegate,
        rules: Rules,
        report: Callable[[str, str, AcceleratorStatus], None],
        clock: Callable[[], float],
        root: Path,
    ) -> None:
        from edged.backends.accelerated import Accelerator
        from edged.backends.isolated import Host

        self.delegate = delegate
        limits = ResourceLimits(memory=rules.memory, niceness=rules.niceness, file=CACHE_BYTES)
        self.host = Host(delegate.name, limits)
        self.accelerator = Accelerator(
            delegate.name,
            rules,
            identity=partial(identity, delegate, root),
            renew=self.host.renew,
            busy=lambda: self.host.is_loading,
            tell=self._report_changes,
            clock=clock,
            jitter=random.random,
        )
        self._lock = threading.Lock()
        self._pinned: dict[str, bool] = {}
        self._reported: dict[str, tuple[str, str]] = {}
        self._clock = clock
        self._files: dict[str, str] = {}
        self._report = report
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
        """Return a runner for a model, `pinned` if the configuration names this delegate.

        `file` is the digest of the model file. Another file than before clears the record of faults, since the
        former file may have caused the faults.
        """
        if self._files.setdefault(model, file) != file:
            self._files[model] = file
            self.accelerator.release()
        with self._lock:
            self._reported.pop(model, None)
            self._pinned[model] = pinned
        return self.accelerator.runner(model, twin, load, check)

    def has(self, model: str) -> bool:
        """Return True for a model assigned to this delegate."""
        return model in self._pinned

    def withdraw(self, model: str) -> None:
        """Report a model no more. A report in progress is finished when this returns."""
        with self._lock:
            self._pinned.pop(model, None)

    def _status_of(self, model: str, pinned: bool) -> AcceleratorStatus | None:
        """Return the status of a model. A device never seen is a fault only if the model is `pinned`."""
        now = self.accelerator.status_of(model)
        if now is not None and now.reason == MISSING and not pinned and not self.accelerator.counts().promotions:
            return AcceleratorStatus("cpu", now.reason, now.hint, now.since)
        return now

    def close(self) -> None:
        """End the process, and the thread of the accelerator."""
        self.accelerator.close()
        self.host.close()

    def _report_changes(self, _device: AcceleratorStatus) -> None:
        """Report models with a new status. Called under the accelerator's lock."""
        with self._lock:
            for model, pinned in self._pinned.items():
                now = self._status_of(model, pinned)
                if now is not None and (now.state, now.reason) != self._reported.get(model):
                    self._reported[model] = now.state, now.reason
                    self._report(model, self.delegate.name, msgspec.structs.replace(now, since=self._clock()))


def agreement_on_cpu(bundle: Bundle, backend: Backend) -> Agreement:
    """Return the outputs of a model for the golden samples on the CPU, in this process.

    Raises:
        EdgedError: the model does not load, or fails.
    """
    from edged.models.agreement import agreement

    twin = shaped(backend, bundle.manifest).load(bundle.model, signature=bundle.manifest.signature)
    try:
        return agreement(bundle, twin)
    finally:
        twin.close()


def _judge(manifest: Manifest, runner: Runner, agreed: Agreement) -> Verdict:
    """Return a runner's measurements, judged by the manifest's limits. Raises EdgedError if the runner fails."""
    from edged.core.verdict import Verdict, hold_latency

    proof = agreed.prove(runner)
    p50, p99 = (float(each) for each in np.percentile(agreed.times(runner, TRIAL_RUNS), (50, 99)))
    info, limits = runner.info, manifest.limits
    measured = Verdict(samples=proof.samples, worst=proof.worst, latency_p50=p50, latency_p99=p99, runner=info)
    share = info.delegated / info.nodes if info.nodes else 0.0
    if limits.delegated_share is not None and share < limits.delegated_share:
        return msgspec.structs.replace(
            measured,
            failure="unfit",
            reason=f"{info.delegate} takes {info.delegated} of its {info.nodes} nodes; "
            f"the manifest requires {limits.delegated_share:.0%}",
            hint="install another version of the delegate or of the model, then: edgectl prove",
        )
    return hold_latency(measured, limits, f" on {info.delegate}")
