"""A model on an accelerator, with a twin of it on the CPU that takes over whenever the accelerator fails.

Read `AcceleratedRunner.run`, the hot path, then `Accelerator.look`. What is done when is decided in
core/acceleration.py; here it is done.

Whose hands may touch what:

- The twin belongs to the worker that calls `run`.
- What runs on the accelerator is loaded, proved and in the end closed by the Accelerator's own thread, for that may
  take long, and no window shall wait for it. In between it belongs to the worker: which takes it between two windows,
  as flow/slot.py does, and hands it back where it meets a fault, before its next window where another worker met one,
  or as it is closed itself. Whatever nobody has taken when a fault comes was never in a worker's hands.
- All else is under the Accelerator's lock, which nobody holds for long: no runner is called under it.

No window is lost: whatever the accelerated runner raises, the twin runs the same inputs at once, and only what the twin
raises is raised. An input that both refuse with ModelError is the input's own fault, and changes nothing.

While a model is loaded in the process of a device, which may take long or hang, the others there would wait for their
turns. So they run on their twins until that is over; it is no fault.

A model that remembers starts from rest at each change of what serves, as it does where the stream has a gap: what one
runner remembers cannot be given to the other. `reset`, which a pipeline calls at a gap, goes to what serves, and the
other is reset when its time comes, so neither ever remembers anything older. To be held to a golden sample costs it
its memory, too. State that travels in tensors, which the pipeline feeds back, is in no runner and survives all this.
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
    """What was done so far: windows by where they ran, promotions of a model to the accelerator, faults by kind."""

    accelerated: int
    on_twin: int
    promotions: int
    faults: dict[str, int]


@dataclass(eq=False)
class _Model:
    """One model of a device, as its worker and the Accelerator share it.

    All under the lock, except that the worker reads `turned` without, and that the counters are the worker's. `up` says
    whether it runs on the device, or will with the next window; `turned` tells the worker to take `offered` in place of
    what it has, None for to go back to the twin.
    """

    name: str
    load: Callable[[], Runner]
    up: bool = False
    turned: bool = False
    offered: Runner | None = None
    accelerated: int = 0
    on_twin: int = 0


class Accelerator:
    """One device as its models see it. `status` is how it stands now, and `status_of` a model how that does.

    `identity()` says what is plugged in, and something else each time it is plugged in anew; "" for nothing. It never
    raises, and is asked when something happens, and each second while the device is quarantined or waited for. What
    cannot be detected has one that never changes. `renew()` has the next load begin in a fresh process: it is asked for
    after a fault that the process outlived, for nobody knows what state its library is in. `busy()` says whether turns
    have to wait for something else than turns; any thread asks, before each window. `tell` hears how it stands
    whenever that may have changed, or how one of its models does: on the thread that found it and under the lock, so it
    must neither wait nor raise. `clock` is monotonic, and `jitter()` gives numbers from 0 to 1.
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
        """Begin to load, and to bring back."""
        self._thread.start()

    def runner(
        self, name: str, twin: Runner, load: Callable[[], Runner], check: Callable[[Runner], None]
    ) -> AcceleratedRunner:
        """A runner of a model that takes the twin over, and is on it until the accelerator has loaded the model.

        A model of one `name` may have several. `load` loads it there, proves it, and gives it at rest. `check` holds it
        against one golden sample, from rest, leaves it at rest, and raises ModelError where its answer is wrong.
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
        """Forget all faults, and try again at once: an operator's word."""
        with self._lock:
            self._record = AcceleratorRecord(settled=self._record.settled)
            self._stand()
        self._news.set()

    def status_of(self, name: str) -> AcceleratorStatus | None:
        """How a model stands, None once it is closed: what runs there is none the worse for what another met."""
        with self._lock:
            up = [model.up for model in self._models if model.name == name]
            return model_status(self.status, all(up)) if up else None

    def is_at_fault(self) -> bool:
        """Whether it fails all its models: while it runs one, the faults are those of the others."""
        with self._lock:
            return self.status.is_fault and not any(model.up for model in self._models)

    def counts(self) -> AcceleratorCounts:
        """What was done so far, by runners that are closed as well."""
        with self._lock:
            return AcceleratorCounts(
                accelerated=self._windows_of_closed["accelerated"] + sum(model.accelerated for model in self._models),
                on_twin=self._windows_of_closed["on_twin"] + sum(model.on_twin for model in self._models),
                promotions=self._promotions,
                faults=dict(self._faults),
            )

    def close(self) -> None:
        """Load no more. What a load in hand brings is thrown away, and so is what is handed back from now on."""
        with self._lock:
            self._closed = True
        self._news.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; whether it did."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def look(self) -> float | None:
        """On its own thread, or in place of it: do all that is due. When to look again, None for once there is news."""
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
                due = self.look()
            except Exception:  # without this thread nothing would ever come back
                log.exception("looking after the accelerator %s met a bug", self.name)
                due = self.clock() + POLL_SECONDS
            self._news.wait(None if due is None else max(0.0, due - self.clock()))
        self._close_done_with()

    def _load(self, model: _Model, faults: int) -> None:
        """Load a model for its worker to take; `faults` is how many there were before."""
        with self._lock:
            outlived, self._outlived = self._outlived, False
        if outlived:
            self._renew()
        try:
            loaded = model.load()
        except Exception as error:  # whatever a vendor's library does
            fault = _fault("load", error, self.clock())
            with self._lock:
                if self._faults.total() == faults:  # else it is what a worker met meanwhile
                    self._fail(fault)
                if model in self._models:  # the others have their turn before it is tried again
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
        """What serves a model from now on; None for its twin."""
        with self._lock:
            taken, model.offered, model.turned = model.offered, None, False
            self._promotions += taken is not None
            return taken

    def failed(self, model: _Model, kind: FaultKind, error: Exception) -> None:
        """A model met a fault; where it was told to turn back since, that is the one it met."""
        fault = _fault(kind, error, self.clock())
        with self._lock:
            if not model.turned:
                self._fail(fault)
        self._news.set()

    def hand_back(self, runner: Runner) -> None:
        """Have a runner closed that no worker touches any more."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._done_with.append(runner)
        self._news.set()
        if closed:
            runner.close()

    def leave(self, model: _Model) -> None:
        """A model is closed. May be called twice."""
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
        """Say how the device stands; where that is as before, its models may stand otherwise all the same."""
        now = device_status(self.rules, self._record, name=self.name, missing=missing, now=self.clock())
        if (now.state, now.reason) != (self.status.state, self.status.reason):
            self.status = now
        self._tell(self.status)


class AcceleratedRunner:
    """A Runner on an accelerator or, while that is not to be trusted, on its twin. `info` is of the one that serves."""

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
        """What the model runs on now."""
        accelerated = self._accelerated
        return self._twin.info if accelerated is None else accelerated.info

    def run(self, inputs: Arrays) -> Arrays:
        """Run once, on the accelerator if it serves and can, else on the twin.

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
        except Exception as error:  # whatever a vendor's library does
            return self._run_again(accelerated, inputs, error)
        self._model.accelerated += 1
        return outputs

    def reset(self) -> None:
        """Have what serves forget."""
        accelerated = self._serving()
        if accelerated is None or not self._forgets(accelerated):
            self._twin.reset()

    def close(self) -> None:
        """Close the twin, and hand back what is on the accelerator."""
        self._accelerator.leave(self._model)
        if self._accelerated is not None:
            self._accelerator.hand_back(self._accelerated)
            self._accelerated = None
        self._twin.close()

    def _take(self) -> None:
        """Turn to what was offered, where that is another."""
        aside, self._aside = self._aside, False
        before, self._accelerated = self._accelerated, self._accelerator.take(self._model)
        if before is not None:
            self._accelerator.hand_back(before)
        if self._accelerated is not None:
            self._check_at = self._clock() + self._check_every
        elif before is not None and not aside:
            self._twin.reset()

    def _serving(self) -> Runner | None:
        """What is on the accelerator, if that has time for it; None where the twin serves."""
        accelerated = self._accelerated
        if accelerated is None or self._accelerator.busy() == self._aside:
            return None if self._aside else accelerated
        self._aside = not self._aside
        if self._aside:
            self._twin.reset()
            return None
        return accelerated if self._forgets(accelerated) else None

    def _forgets(self, accelerated: Runner) -> bool:
        """Whether it could be reset; if not, that is a fault."""
        try:
            accelerated.reset()
        except Exception as error:  # whatever a vendor's library does
            self._turn_back(accelerated, "run", error)
            return False
        return True

    def _hold_to_sample(self, accelerated: Runner) -> Runner | None:
        """Between two windows: it, if it still answers as it should."""
        self._check_at = self._clock() + self._check_every
        try:
            self._check(accelerated)
        except Exception as error:  # whatever a vendor's library does
            self._turn_back(accelerated, "wrong", error)
            self._twin.reset()
            return None
        return accelerated

    def _run_again(self, accelerated: Runner, inputs: Arrays, error: Exception) -> Arrays:
        """Have the twin do what the accelerator failed to do, and only then see to the accelerator."""
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
        """Let go of an accelerator that failed."""
        self._accelerated, self._aside = None, False
        self._accelerator.failed(self._model, kind, error)
        self._accelerator.hand_back(accelerated)


def _fault(kind: FaultKind, error: Exception, now: float) -> AcceleratorFault:
    """What an exception says of the accelerator; `kind` is what was being done."""
    if isinstance(error, DeviceError):
        return AcceleratorFault(now, "device", error.message, error.hint)
    if isinstance(error, EdgedError):
        wrongly = "answers wrongly: " if kind == "wrong" else ""
        return AcceleratorFault(now, kind, wrongly + error.message, error.hint)
    log.error("an accelerator's runner raises what none should", exc_info=error)
    return AcceleratorFault(now, kind, f"{type(error).__name__}: {error}", "report this with the log's traceback")
