"""Fixtures of all tests. No test may fail on a slow machine: properties have no deadlines."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Spools are no plug-ins, so their suite is no part of edged.testing. Without this a failure would not show its values.
pytest.register_assert_rewrite("tests.contracts")

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


HUNG_SECONDS = 600
"""Far more than any test needs on a busy machine; the long forms have no limit."""


@pytest.fixture(autouse=True)
def _end_what_hangs() -> Iterator[None]:
    """Fail a test that hangs, so that the run continues and names the test."""
    if os.environ.keys() & {"EDGED_SOAK", "EDGED_VM"}:
        yield
        return

    def fail(*_: object) -> None:
        pytest.fail(f"the test hangs: it has not ended within {HUNG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HUNG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def install_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Put a distribution on the path as pip would: a module, and a folder of metadata with its entry points.

    `install_plugin("tides", source_code, tide="tides:TideSource")` adds the kind `tide` to the sources.
    """
    site = tmp_path_factory.mktemp("site-packages")

    def install(name: str, source: str, family: str = "sources", **points: str) -> None:
        (site / f"{name}.py").write_text(source)
        metadata = site / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{kind} = {target}" for kind, target in points.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[edged.{family}]", *lines, ""]))

    sys.path.insert(0, str(site))
    yield install
    sys.path.remove(str(site))
    for name in [file.stem for file in Path(site).glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def garbage_in_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the memory allocated by all Python processes of a test, so that a read beyond an array always crashes."""
    site = tmp_path_factory.mktemp("garbage")
    (site / "sitecustomize.py").write_text("import ctypes\nctypes.CDLL(None).mallopt(-6, 0xA5)  # M_PERTURB\n")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)  # of a daemon
    monkeypatch.syspath_prepend(site)  # of children
