"""Run a model on an accelerator, with a twin of the model on the CPU to take over when the accelerator fails.

Read `AcceleratedRunner.run`, the hot path, then `Accelerator.poll`. Decisions are made in core/acceleration.py and
carried out in this module.

Ownership:

- The twin belongs to the worker thread calling `run`.
- An accelerated runner is loaded, checked and finally closed by the Accelerator's own thread, since loading and closing
  may take long and no window may wait. In between, the runner belongs to the worker. The worker takes the runner
  between two windows, as flow/slot.py does, and hands the runner back after a fault of its own, before the next window
  after a fault of another worker, or on `close`. A runner still on offer at a fault has never been used by a worker.
- All other state is under the Accelerator's lock. The lock is held for short times, and no runner is called under it.

No window is lost: after any exception of the accelerated runner, the twin runs the same inputs at once, and only the
twin's exceptions are raised. An input refused by both runners with ModelError is the input's fault, and does not count
against the accelerator.

While a model is being loaded in a device's process, the other models of the process would wait for their turns, as long
as the load takes or hangs. So the other models run on their twins until the end of the load; no fault is counted.

A model with memory starts from rest at each change between accelerator and twin, as at a gap in the stream, because
one runner's memory cannot be given to the other. `reset`, called by a pipeline at a gap, resets the serving runner; the
other runner is reset at the next change, so neither runner keeps older memory. A check against a golden sample clears
the memory as well. State in tensors, fed back by the pipeline, is in no runner and survives all changes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, RLock, Thread

import msgspec

from edged.api import Arrays, DeviceError, EdgedError, ModelError, Runner, RunnerInfo
from edged.core.acceleration import (
    POLL_SECONDS,
    AcceleratorFacts,
    AcceleratorFault,
    AcceleratorRecord,
    AcceleratorStatus,
    FaultKind,
    LoadWaiting,
    Quarantine,
    Release,
    Rules,
    Settle,
    Wait,
    decide,
    device_status,
    failed,
    model_status,
    pardoned,
    quarantined,
    settled,
)

log = logging.getLogger("edged.backends")


class AcceleratorCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts so far: windows run on accelerator and twin, promotions of a model to the accelerator, faults by kind."""

    accelerated: int
    on_twin: int
    promotions: int
    faults: dict[str, int]


@dataclass(eq=False)
class _Model:
    """A model of a device, shared by a worker and the Accelerator.

    All fields are under the lock, but the worker reads `turned` without the lock, and the counters are the worker's.
    `up`: the model runs on the device, or will from the next window. `turned`: the worker shall replace the runner in
    use by `offered`, or go back to the twin if `offered` is None.
    """

    name: str
    load: Callable[[], Runner]
    up: bool = False
    turned: bool = False
    offered: Runner | None = None
    accelerated: int = 0
    on_twin: int = 0


class Accelerator:
    """A device, its models and its faults. `status` is the device's status, and `status_of` returns a model's.

    `identity()` names the device plugged in, with another text after each replugging, and "" if no device is plugged
    in; a device without detection has a constant identity. The function never raises, and is called after each event,
    and every second while the device is quarantined or missing. `renew()` makes the next load start a fresh process,
    and is called after a fault survived by the process, since the library may be in any state. `busy()` tells if turns
    have to wait for something other than turns, and is called by any thread before each window. `tell` receives the
    status whenever the status of the device or of a model may have changed. `tell` is called on any thread, under the
    lock, and must neither block nor raise. `clock` is monotonic, and `jitter()` returns numbers from 0 to 1.
    """

    def __init__(
        self,
        name: str,
        rules: Rules,
        *,
        identity: Callable[[], str],
        renew: Callable[[], None],
        busy: Callable[[], bool],
        tell: Callable[[AcceleratorStatus], None],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self.name = name
        self.rules = rules
        self.clock = clock
        self.busy = busy
        self.status = device_status(rules, AcceleratorRecord(), name=name, missing=False, now=clock())
        self._identity = identity
        self._renew = renew
        self._tell = tell
        self._jitter = jitter
        self._lock = RLock()
        self._record = AcceleratorRecord()
        self._models: list[_Model] = []
        self._done_with: list[Runner] = []
        self._outlived = False
        self._faults: Counter[str] = Counter()
        self._promotions = 0
        self._windows_of_closed: Counter[str] = Counter()
        self._news = Event()
        self._closed = False
        self._thread = Thread(target=self._keep, name=f"accelerator-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread for loading models and for bringing models back after faults."""
        self._thread.start()

    def runner(
        self, name: str, twin: Runner, load: Callable[[], Runner], check: Callable[[Runner], None]
    ) -> AcceleratedRunner:
        """Return a runner of a model. The runner owns the twin, and uses the twin until the device has the model.

        Several runners may have the same `name`. `load` loads the model on the accelerator, checks the loaded runner,
        and returns the runner at rest. `check` compares a runner with a golden sample, starting from rest, leaves the
        runner at rest, and raises ModelError for a wrong answer.
        """
        model = _Model(name, load)
        with self._lock:
            self._models.append(model)
            before, self._record = self._record, pardoned(self.rules, self._record)
            if self._record == before:
                self._tell(self.status)
            else:
                self._stand()
        self._news.set()
        return AcceleratedRunner(self, model, twin, check)

    def release(self) -> None:
        """Forget all faults, and try again at once, by order of the operator."""
        with self._lock:
            self._record = AcceleratorRecord(settled=self._record.settled)
            self._stand()
        self._news.set()

    def status_of(self, name: str) -> AcceleratorStatus | None:
        """Return a model's status, None for a closed model. Faults of other models do not affect a running model."""
        with self._lock:
            up = [model.up for model in self._models if model.name == name]
            return model_status(self.status, all(up)) if up else None

    def is_at_fault(self) -> bool:
        """Return whether the device fails all models; while a model runs, the faults belong to the other models."""
        with self._lock:
            return self.status.is_fault and not any(model.up for model in self._models)

    def counts(self) -> AcceleratorCounts:
        """Return the counts so far, closed runners included."""
        with self._lock:
            return AcceleratorCounts(
                accelerated=self._windows_of_closed["accelerated"] + sum(model.accelerated for model in self._models),
                on_twin=self._windows_of_closed["on_twin"] + sum(model.on_twin for model in self._models),
                promotions=self._promotions,
                faults=dict(self._faults),
            )

    def close(self) -> None:
        """Stop loading. The runner of a load in progress, and runners handed back from now on, are closed."""
        with self._lock:
            self._closed = True
        self._news.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; return whether the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def poll(self) -> float | None:
        """Do all work due, on the Accelerator's thread or in a test without the thread.

        Returns the time for the next call, None for the next event.
        """
        while True:
            self._close_done_with()
            if self._closed:
                return None
            identity = self._identity()
            with self._lock:
                waiting = [model for model in self._models if not model.up]
                facts = AcceleratorFacts(
                    record=self._record,
                    waiting=bool(waiting),
                    serving=len(waiting) < len(self._models),
                    identity=identity,
                    now=self.clock(),
                )
                step = decide(self.rules, facts)
                match step:
                    case Settle():
                        self._record = settled(self._record, facts.now)
                    case Quarantine():
                        self._record = quarantined(self._record, identity)
                    case Release():
                        self._record = AcceleratorRecord()
                self._stand(missing=isinstance(step, Wait) and step.missing)
                faults = self._faults.total()
            if isinstance(step, Wait):
                return step.until
            if isinstance(step, LoadWaiting):
                self._load(waiting[0], faults)

    def _keep(self) -> None:
        while not self._closed:
            self._news.clear()
            try:
                due = self.poll()
            except Exception:  # without this thread, no model would return to the accelerator
                log.exception("the thread of the accelerator %s met a bug", self.name)
                due = self.clock() + POLL_SECONDS
            self._news.wait(None if due is None else max(0.0, due - self.clock()))
        self._close_done_with()

    def _load(self, model: _Model, faults: int) -> None:
        """Load a model and offer the runner to the worker; `faults` is the number of faults before the load."""
        with self._lock:
            outlived, self._outlived = self._outlived, False
        if outlived:
            self._renew()
        try:
            loaded = model.load()
        except Exception as error:  # a vendor's library may raise any exception
            fault = _fault("load", error, self.clock())
            with self._lock:
                if self._faults.total() == faults:  # else a worker has reported the same fault meanwhile
                    self._fail(fault)
                if model in self._models:  # try the other models before trying this model again
                    self._models.remove(model)
                    self._models.append(model)
            return
        with self._lock:
            if model in self._models and self._faults.total() == faults:
                model.up, model.offered, model.turned = True, loaded, True
                self._tell(self.status)
            else:
                self._done_with.append(loaded)

    def _close_done_with(self) -> None:
        while self._done_with:
            with self._lock:
                runner = self._done_with.pop()
            runner.close()

    # On the workers' threads

    def take(self, model: _Model) -> Runner | None:
        """Return the runner for a model to use from now on; None for the twin."""
        with self._lock:
            taken, model.offered, model.turned = model.offered, None, False
            self._promotions += taken is not None
            return taken

    def failed(self, model: _Model, kind: FaultKind, error: Exception) -> None:
        """Count a model's fault, unless a fault of another model has already turned this model back to the twin."""
        fault = _fault(kind, error, self.clock())
        with self._lock:
            if not model.turned:
                self._fail(fault)
        self._news.set()

    def hand_back(self, runner: Runner) -> None:
        """Close a runner no longer used by a worker, on the Accelerator's thread if that is running."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._done_with.append(runner)
        self._news.set()
        if closed:
            runner.close()

    def leave(self, model: _Model) -> None:
        """Remove a closed model. May be called twice."""
        with self._lock:
            if model in self._models:
                self._models.remove(model)
                self._windows_of_closed.update(accelerated=model.accelerated, on_twin=model.on_twin)
            untaken, model.offered = model.offered, None
            self._tell(self.status)
        self._news.set()
        if untaken is not None:
            self.hand_back(untaken)

    # Under the lock

    def _fail(self, fault: AcceleratorFault) -> None:
        self._faults[fault.kind] += 1
        self._outlived = self._outlived or fault.kind in ("run", "wrong")
        self._record = failed(self.rules, self._record, fault, self._jitter())
        if fault.kind != "load":
            for model in self._models:
                if model.offered is not None:
                    self._done_with.append(model.offered)
                model.up, model.offered, model.turned = False, None, True
        self._stand()

    def _stand(self, *, missing: bool = False) -> None:
        """Update and report the status, even if unchanged for the device, since a model's status may have changed."""
        now = device_status(self.rules, self._record, name=self.name, missing=missing, now=self.clock())
        if (now.state, now.reason) != (self.status.state, self.status.reason):
            self.status = now
        self._tell(self.status)


class AcceleratedRunner:
    """A Runner on an accelerator or, while the accelerator is faulty or busy, on the twin."""

    def __init__(self, accelerator: Accelerator, model: _Model, twin: Runner, check: Callable[[Runner], None]) -> None:
        self.inputs = twin.inputs
        self.outputs = twin.outputs
        self._accelerator = accelerator
        self._model = model
        self._twin = twin
        self._check = check
        self._clock = accelerator.clock
        self._check_every = accelerator.rules.check_every or math.inf
        self._check_at = math.inf
        self._accelerated: Runner | None = None
        self._aside = False

    @property
    def info(self) -> RunnerInfo:
        """Return the info of the serving runner."""
        accelerated = self._accelerated
        return self._twin.info if accelerated is None else accelerated.info

    def run(self, inputs: Arrays) -> Arrays:
        """Run once, on the accelerator if serving and working, else on the twin.

        Raises:
            ModelError: the twin failed on this input.
        """
        if self._model.turned:
            self._take()
        accelerated = self._serving()
        if accelerated is not None and self._clock() >= self._check_at:
            accelerated = self._hold_to_sample(accelerated)
        if accelerated is None:
            self._model.on_twin += 1
            return self._twin.run(inputs)
        try:
            outputs = accelerated.run(inputs)
        except Exception as error:  # a vendor's library may raise any exception
            return self._run_again(accelerated, inputs, error)
        self._model.accelerated += 1
        return outputs

    def reset(self) -> None:
        """Reset the serving runner."""
        accelerated = self._serving()
        if accelerated is None or not self._forgets(accelerated):
            self._twin.reset()

    def close(self) -> None:
        """Close the twin, and hand back the accelerated runner."""
        self._accelerator.leave(self._model)
        if self._accelerated is not None:
            self._accelerator.hand_back(self._accelerated)
            self._accelerated = None
        self._twin.close()

    def _take(self) -> None:
        """Replace the accelerated runner by the runner on offer, or go back to the twin."""
        aside, self._aside = self._aside, False
        before, self._accelerated = self._accelerated, self._accelerator.take(self._model)
        if before is not None:
            self._accelerator.hand_back(before)
        if self._accelerated is not None:
            self._check_at = self._clock() + self._check_every
        elif before is not None and not aside:
            self._twin.reset()

    def _serving(self) -> Runner | None:
        """Return the accelerated runner if the accelerator is not busy; None if the twin serves."""
        accelerated = self._accelerated
        if accelerated is None or self._accelerator.busy() == self._aside:
            return None if self._aside else accelerated
        self._aside = not self._aside
        if self._aside:
            self._twin.reset()
            return None
        return accelerated if self._forgets(accelerated) else None

    def _forgets(self, accelerated: Runner) -> bool:
        """Reset the accelerated runner; return whether the reset succeeded. A failed reset is a fault."""
        try:
            accelerated.reset()
        except Exception as error:  # a vendor's library may raise any exception
            self._turn_back(accelerated, "run", error)
            return False
        return True

    def _hold_to_sample(self, accelerated: Runner) -> Runner | None:
        """Check the accelerated runner between two windows; return the runner, None after a wrong answer."""
        self._check_at = self._clock() + self._check_every
        try:
            self._check(accelerated)
        except Exception as error:  # a vendor's library may raise any exception
            self._turn_back(accelerated, "wrong", error)
            self._twin.reset()
            return None
        return accelerated

    def _run_again(self, accelerated: Runner, inputs: Arrays, error: Exception) -> Arrays:
        """Run the inputs on the twin first, then report the accelerator's fault."""
        self._model.on_twin += 1
        self._twin.reset()
        at_fault = True
        try:
            return self._twin.run(inputs)
        except ModelError:
            at_fault = not isinstance(error, ModelError)
            raise
        finally:
            if at_fault:
                self._turn_back(accelerated, "run", error)

    def _turn_back(self, accelerated: Runner, kind: FaultKind, error: Exception) -> None:
        """Report a fault, and hand back the accelerated runner."""
        self._accelerated, self._aside = None, False
        self._accelerator.failed(self._model, kind, error)
        self._accelerator.hand_back(accelerated)


def _fault(kind: FaultKind, error: Exception, now: float) -> AcceleratorFault:
    """Return an exception as a fault; `kind` is the action that failed."""
    if isinstance(error, DeviceError):
        return AcceleratorFault(now, "device", error.message, error.hint)
    if isinstance(error, EdgedError):
        wrongly = "answers wrongly: " if kind == "wrong" else ""
        return AcceleratorFault(now, kind, wrongly + error.message, error.hint)
    log.error("an accelerator's runner raised an unexpected exception", exc_info=error)
    return AcceleratorFault(now, kind, f"{type(error).__name__}: {error}", "report this with the log's traceback")
