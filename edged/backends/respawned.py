"""A model in a process of its own that is started again whenever it has died: a model on the CPU with `isolate`.

There is no twin to take over. So the window that the process died of is given to a new process at once, and if that
dies of it too, the window is lost; the next process is started after a pause, which doubles as long as it goes on so.
Until then each window fails with the reason. All of it happens on the worker's own thread, which has nothing better to
do: the windows that come meanwhile wait in the mailbox.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from edged.api import Arrays, DeviceError, EdgedError, Runner, RunnerInfo
from edged.core.acceleration import Rules


class RespawnedRunner:
    """A Runner. `load` starts a process and loads the model in it; what it raises at first is raised."""

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
        """Run once, in a new process if that dies.

        Raises:
            ModelError: the runtime refused this input.
            DeviceError: the new process died as well, or it is not time to start another.
        """
        if self._runner is not None:
            try:
                outputs = self._runner.run(inputs)
            except DeviceError:
                self._let_go()
            else:
                self._pause = self._rules.backoff
                return outputs
        runner = self._bring_back()
        try:
            return runner.run(inputs)
        except DeviceError as error:
            self._give_up(error)

    def reset(self) -> None:
        """Have it forget; a process that is started anew remembers nothing."""
        if self._runner is not None:
            try:
                self._runner.reset()
            except DeviceError:
                self._let_go()

    def close(self) -> None:
        """End the process."""
        self._let_go()

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
        """Until the pause is over."""
        self._let_go()
        self._lost = error
        self._due = self._clock() + self._pause
        self._pause = min(2 * self._pause, self._rules.backoff_max)
        raise error

    def _let_go(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None
