"""Announcements of the updater: every step of an update as an event, for subscribers and for the jobs of the model."""

from __future__ import annotations

from collections.abc import Callable

from edged.core.decide import ModelFacts
from edged.core.errors import EdgedError, StoreError
from edged.core.record import Phase
from edged.updates.jobs import NAME_IT, Ending, Event, Job, JobOutcome
from edged.updates.update_state import UpdateStates

SEE_STATUS = "see why: edgectl status"


class StepAnnouncer:
    """Announces the steps of updates. `publish` is called with every event, on the event loop."""

    def __init__(self, states: UpdateStates, publish: Callable[[Event], None], clock: Callable[[], float]) -> None:
        self._states = states
        self._publish = publish
        self._clock = clock

    def announce(self, name: str, event: str, text: str, job: Job | None = None, outcome: JobOutcome = "") -> None:
        """Publish a step of a model, and record the step with `job`, or else with all jobs of the candidate."""
        waiting = self._states[name].jobs if job is None else [job]
        checking = job is not None and not outcome
        step = self._event(name, event, text, next(iter(waiting), None), outcome, "checking" if checking else "")
        for each in waiting:
            each.events.append(step)
        self._publish(step)

    def fail(self, job: Job, error: EdgedError) -> None:
        """End a job with an error, before the version became the candidate."""
        state: Ending = "failed" if isinstance(error, StoreError) else "refused"
        model = self._states[job.model]
        model.jobs = [each for each in model.jobs if each is not job]
        self.announce(job.model, f"update.{state}", str(error), job, outcome=state)
        job.end(state, error.message, error.hint)

    def end_jobs(self, name: str, facts: ModelFacts) -> None:
        """End the jobs of a candidate after its end. Called after the last step for the model."""
        model = self._states[name]
        if model.ending is None:
            return
        state, text, hint = model.ending
        if state == "done" and facts.serving is None:
            state, hint = "installed", NAME_IT
        elif state == "done" and facts.serving != facts.ledger.active:
            state, hint = "failed", SEE_STATUS
        text = f"{name}: {text}; {model.describe_serving(facts)}"
        if model.jobs:
            self._publish(self._event(name, "update.ended", text, model.jobs[0], state, ""))
        for job in model.jobs:
            job.end(state, text, hint)
        model.jobs.clear()
        model.ending = None

    def _event(self, name: str, event: str, text: str, job: Job | None, outcome: JobOutcome, phase: Phase) -> Event:
        ledger = self._states[name].ledger
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
