"""Run a CPU model with `isolate` in a separate process, and start a new process after each crash.

Such a model has no twin to take over. A window during which the process died is given to a new process at once; if the
new process dies as well, the window is lost, and the next process is started after a pause. The pause doubles with each
failure, and until its end every window fails with the reason of the last one. Processes are started on the worker's own
thread; windows arriving meanwhile wait in the mailbox.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from edged.api import Arrays, DeviceError, EdgedError, Runner, RunnerInfo
from edged.core.acceleration import Rules


class RespawnedRunner:
    """A Runner. `load` starts a process and loads the model there; errors of the first load are raised."""

    def __init__(self, load: Callable[[], Runner], rules: Rules, clock: Callable[[], float]) -> None:
        runner = load()
        self.inputs = runner.inputs
        self.outputs = runner.outputs
        self.info: RunnerInfo = runner.info
        self._load = load
        self._rules = rules
        self._clock = clock
        self._runner: Runner | None = runner
        self._lost: EdgedError | None = None
        self._due = 0.0
        self._pause = rules.backoff

    def run(self, inputs: Arrays) -> Arrays:
        """Run once; if the process dies, run again in a new process.

        Raises:
            ModelError: the runtime refused this input.
            DeviceError: the new process died as well, or the pause before the next start is not over.
        """
        if self._runner is not None:
            try:
                outputs = self._runner.run(inputs)
            except DeviceError:
                self._end_process()
            else:
                self._pause = self._rules.backoff
                return outputs
        runner = self._bring_back()
        try:
            return runner.run(inputs)
        except DeviceError as error:
            self._give_up(error)

    def reset(self) -> None:
        """Reset the model; a newly started process has no state to reset."""
        if self._runner is not None:
            try:
                self._runner.reset()
            except DeviceError:
                self._end_process()

    def close(self) -> None:
        """End the process."""
        self._end_process()

    def _bring_back(self) -> Runner:
        if self._lost is not None and self._clock() < self._due:
            raise DeviceError(self._lost.message, hint=self._lost.hint, retryable=True)
        try:
            self._runner = self._load()
        except EdgedError as error:
            self._give_up(error)
        self._lost = None
        return self._runner

    def _give_up(self, error: EdgedError) -> NoReturn:
        """Raise `error`, and start no process before the end of the pause."""
        self._end_process()
        self._lost = error
        self._due = self._clock() + self._pause
        self._pause = min(2 * self._pause, self._rules.backoff_max)
        raise error

    def _end_process(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None
