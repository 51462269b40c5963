"""A limited child process: environment, limits, and complete removal."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from edged.system.child import Child, ResourceLimits, spawn

LIMITS = ResourceLimits(memory=256 << 20, processor=30)

ACTOR = '''
import json, os, resource, signal, sys, time

def main(request):
    exec(request)

def hold(fifo):
    """Say "alive" to whoever reads the fifo, who will see its end when this process ends."""
    held = os.open(fifo, os.O_WRONLY)
    os.write(held, b"alive")
    return held

def descend(fifo, *, flee):
    """Leave somebody behind, in the same process group or far from it."""
    ready, tell = os.pipe()
    if os.fork():
        return os.read(ready, 1)
    if flee:
        os.setsid()
    hold(fifo)
    os.write(tell, b"!")
    while True:
        time.sleep(60)
'''
"""Module whose `main` executes Python code."""


@pytest.fixture(autouse=True)
def actor(install_plugin: Callable[..., None]) -> None:
    install_plugin("actor", ACTOR)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()  # descriptors left open by other tests must not be closed during this test
    before = descriptors()
    yield
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def wait(child: Child) -> None:
    """Wait for the end of the child."""
    assert select.select([child.ended], [], [], 30)[0]


def output_of(child: Child) -> tuple[bytes, int | None]:
    """Return the output and the exit status."""
    said = b""
    while data := os.read(child.stdout, 65536):
        said += data
    wait(child)
    return said, child.close()


def tell(request: str, limits: ResourceLimits = LIMITS) -> tuple[bytes, int | None]:
    return output_of(spawn("actor", limits, request))


class Fifo:
    """Sign of life of processes."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes:
        """Return b"alive" from a live process, b"" after the death of all."""
        assert select.select([self._end], [], [], 30)[0]
        return os.read(self._end, 100)

    def close(self) -> None:
        os.close(self._end)


@pytest.fixture
def fifo(tmp_path: Path, nothing_is_left: None) -> Iterator[Fifo]:
    fifo = Fifo(tmp_path / "fifo")
    yield fifo
    fifo.close()


# Environment


def test_it_calls_main_with_the_request():
    assert tell("print('tides')") == (b"tides\n", 0)


def test_its_exit_status_or_its_signal_is_told():
    assert tell("sys.exit(3)") == (b"", 3)
    assert tell("os.abort()") == (b"", -signal.SIGABRT)


def test_it_finds_modules_where_we_do_and_knows_nothing_else_of_our_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "xyzzy")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/delegate")
    monkeypatch.chdir("/tmp")
    names = json.loads(tell("print(json.dumps(dict(os.environ)))")[0])
    assert "SECRET" not in names
    assert names["LD_LIBRARY_PATH"] == "/opt/delegate"
    assert set(names) <= {
        *("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "PYTHONPATH", "OPENBLAS_NUM_THREADS", "EDGED_CHILD", "LC_CTYPE")
    }


def test_it_has_standard_streams_its_lifeline_and_no_other_descriptor():
    with Path("/dev/null").open() as ours:
        os.set_inheritable(ours.fileno(), True)
        said, _ = tell("print(sorted(int(name) for name in os.listdir('/proc/self/fd')), sys.stdin.read())")
    assert said == b"[0, 1, 2, 3, 4] \n"  # 3 is the lifeline, 4 the listing's own


def test_it_is_handed_the_descriptors_it_shall_have():
    theirs, ours = os.pipe()
    os.write(ours, b"tides")
    said, _ = output_of(spawn("actor", LIMITS, f"print(os.read({theirs}, 100))", [theirs]))
    os.close(theirs)
    os.close(ours)
    assert said == b"b'tides'\n"


def test_it_stands_apart():
    said, _ = tell("print(os.getsid(0) == os.getpid() == os.getpgid(0), os.getcwd())")
    assert said == b"True /\n"


# Limits


@pytest.mark.parametrize(("given", "file"), [({}, 1 << 20), ({"file": 5 << 20}, 5 << 20)])
def test_it_is_limited(given, file):
    names = ("RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_CPU")
    limits = ResourceLimits(memory=256 << 20, processor=30, **given)
    said, _ = tell(f"print([resource.getrlimit(getattr(resource, name))[0] for name in {names}])", limits)
    assert json.loads(said) == [256 << 20, file, 0, 30]


def test_a_limit_that_is_lower_already_stays():
    limit = "print(resource.getrlimit(resource.RLIMIT_DATA)[1])"
    grandchild = f"edged.system.child.spawn('actor', edged.system.child.ResourceLimits(memory=1 << 40), {limit!r})"
    said, _ = tell(f"import edged.system.child; print(os.read({grandchild}.stdout, 100).decode())")
    assert int(said) == 256 << 20


@pytest.mark.parametrize(("given", "niceness"), [({}, 10), ({"niceness": 0}, 0), ({"niceness": 3}, 3)])
def test_it_has_its_place_in_line_for_the_processor_and_is_the_first_to_go_when_memory_runs_out(given, niceness):
    said, _ = tell(
        "print(os.nice(0), open('/proc/self/oom_score_adj').read())", ResourceLimits(memory=256 << 20, **given)
    )
    assert said.split() == [b"%d" % (os.nice(0) + niceness), b"1000"]


def test_memory_beyond_the_leash_is_not_to_be_had():
    said, status = tell("bytearray(100 << 20); print('some'); bytearray(400 << 20); print('more')")
    assert (said, status) == (b"some\n", 1)


def test_processor_time_beyond_the_leash_is_a_signal_that_says_so():
    assert tell("while True: pass", ResourceLimits(memory=256 << 20, processor=1)) == (b"", -signal.SIGXCPU)


# Removal


def test_a_kill_ends_it(fifo):
    child = spawn("actor", LIMITS, f"held = hold({fifo.path!r}); time.sleep(60)")
    assert fifo.read() == b"alive"
    child.kill()
    wait(child)
    assert child.close() == -signal.SIGKILL
    assert fifo.read() == b""


@pytest.mark.parametrize("flee", [False, True])
def test_a_kill_ends_what_it_left_behind(fifo, flee):
    child = spawn("actor", LIMITS, f"descend({fifo.path!r}, flee={flee})")
    assert fifo.read() == b"alive"
    wait(child)
    child.kill()
    assert child.close() == 0
    assert fifo.read() == b""


def test_a_kill_needs_no_descriptor(fifo):
    child = spawn("actor", LIMITS, f"held = hold({fifo.path!r}); time.sleep(60)")
    assert fifo.read() == b"alive"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        child.kill()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    wait(child)
    assert child.close() == -signal.SIGKILL


def test_a_kill_ends_nobody_else_s_child(fifo):
    other = spawn("actor", LIMITS, f"held = hold({fifo.path!r}); time.sleep(60)")
    assert fifo.read() == b"alive"
    child = spawn("actor", LIMITS, "pass")
    child.kill()
    wait(child)
    child.close()
    assert not select.select([other.ended], [], [], 0)[0]
    other.kill()
    wait(other)
    other.close()


def test_with_its_lifeline_it_is_killed(fifo):
    child = spawn("actor", LIMITS, f"held = hold({fifo.path!r}); time.sleep(60)")
    assert fifo.read() == b"alive"
    ended = os.dup(child.ended)
    child.close()
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)
    assert child.status() == -signal.SIGKILL


@pytest.mark.parametrize("deed", ["time.sleep(60)", "while True: pass"])
def test_it_dies_with_its_parent(fifo, deed):
    request = f"held = hold({fifo.path!r})\n{deed}"
    script = f"import time; from edged.system.child import *; spawn('actor', {LIMITS!r}, {request!r}); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as parent:
        assert fifo.read() == b"alive"
        parent.kill()
    assert fifo.read() == b""


def test_it_outlives_the_thread_that_spawned_it(fifo):
    theirs, ours = os.pipe()
    children = []

    def start():
        children.append(spawn("actor", LIMITS, f"hold({fifo.path!r}); print(os.read({theirs}, 100))", [theirs]))
        assert fifo.read() == b"alive"

    thread = Thread(target=start)
    thread.start()
    thread.join()
    os.write(ours, b"tides")
    os.close(theirs)
    os.close(ours)
    assert output_of(children[0]) == (b"b'tides'\n", 0)


def test_one_whose_parent_died_before_it_began_does_not_begin():
    orphan = [sys.executable, "-m", "edged.system.child", '{"memory": 268435456}', "actor", "print('begun')"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    lifeline, its_other_end = os.pipe()
    os.close(its_other_end)
    ended = subprocess.run(orphan, env=environment, stdin=lifeline, stdout=subprocess.PIPE, check=False)
    os.close(lifeline)
    assert (ended.returncode, ended.stdout) == (1, b"")
