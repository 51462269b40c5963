"""The real daemon, started as often as a test wants."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edged_process import Edged
from tests.motion import config


@pytest.fixture
def edged(tmp_path: Path) -> Iterator[Callable[..., Edged]]:
    """Return a function that starts a daemon with the motion model or another configuration; end all daemons at
    teardown.
    """
    started: list[Edged] = []

    def start(text: str = "", **environ: str) -> Edged:
        started.append(Edged(tmp_path, text or config(), **environ))
        started[-1].start()
        started[-1].wait_for_log(" serves: ")
        return started[-1]

    yield start
    for daemon in started:
        daemon.__exit__()
