"""Trials of sound versions, and of harmful versions and backends."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import resource
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edged import plugins
from edged.api import Backend, ModelError
from edged.backends.fake import FakeBackend
from edged.backends.tflite import TfliteBackend
from edged.core.manifest import Manifest, decode
from edged.core.verdict import Verdict
from edged.models.trial import Allowance, TrialEnding, judge, try_out
from tests.bundles import COLOURS, write_bundle

INPUTS = np.array([[[1, 2, 3, 4]], [[0, 0, 0, 0]], [[-1, 1, 2, 3]]], np.float32)
OUTPUTS = INPUTS[:, :, :3] / 2 + 1

ROGUE = '''
import ctypes, os, signal, sys, time
import numpy as np
from edged.api import Backend, ModelError, TensorSpec
from edged.backends.fake import FakeRunner

class Rogue(Backend, frozen=True, kw_only=True):
    """Computes y = x[:3] / 2 + 1 without a file, and does what it is told in Python as it loads, runs and closes."""

    loading: str = ""
    running: str = ""
    closing: str = ""

    def load(self, file, *, signature=None):
        exec(self.loading)

        def answer(inputs):
            y = inputs[0][:, :3] / 2 + 1
            exec(self.running)
            return [y]

        runner = FakeRunner(
            (TensorSpec(name="x", shape=(1, 4), dtype="float32"),),
            (TensorSpec(name="y", shape=(1, 3), dtype="float32"),),
            answer,
        )
        runner.close = lambda: exec(self.closing)
        return runner

def hold(fifo):
    """Say "alive" to whoever reads the fifo, who will see its end when this process ends."""
    os.write(os.open(fifo, os.O_WRONLY), b"alive")

def descend(fifo):
    """Leave somebody behind in a session of its own."""
    ready, tell = os.pipe()
    if os.fork():
        os.read(ready, 1)
        return
    os.setsid()
    hold(fifo)
    os.write(tell, b"!")
    while True:
        time.sleep(60)
'''

Rogue = Callable[..., Backend]


@pytest.fixture
def rogue(install_plugin: Callable[..., None]) -> Rogue:
    install_plugin("rogue", ROGUE, "backends", rogue="rogue:Rogue")
    return plugins.load("backends", "rogue")


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


def bundle(folder: Path, **parts: Any) -> Path:
    golden = io.BytesIO()
    np.savez_compressed(golden, input_0=INPUTS, output_0=OUTPUTS)
    return write_bundle(folder / "bundle", files={"golden.npz": golden.getvalue()}, golden={}, **parts)


def manifest_of(folder: Path) -> Manifest:
    return decode((folder / "manifest.json").read_bytes())


def tried(folder: Path, backend: Backend, **allowance: Any) -> Verdict:
    return asyncio.run(try_out(folder, manifest_of(folder), backend, Allowance(**allowance)))


# Sound versions


def test_a_sound_version_may_serve_and_is_measured(tmp_path):
    verdict = tried(bundle(tmp_path), TfliteBackend(threads=2))
    assert verdict.ok, verdict
    assert verdict.samples == 3
    assert 0 <= verdict.worst < 1e-5
    assert 0 < verdict.latency_p50 <= verdict.latency_p99 < verdict.seconds
    assert 20 << 20 < verdict.rss_bytes < 200 << 20
    assert verdict.runner is not None
    assert (verdict.runner.backend, verdict.runner.threads) == ("tflite", 2)


def test_an_input_of_open_shape_is_resized_to_what_the_manifest_states(tmp_path):
    parts = {
        "window": {"length": 3, "hop": 3, "channels": [{"name": name} for name in "abcd"]},
        "inputs": [{"tensor": {"name": "x", "shape": [3, 4], "dtype": "float32"}}],
        "outputs": [{"name": "y", "shape": [3, 3], "dtype": "float32"}],
        "labels": None,
        "postprocess": {"kind": "regression", "names": [f"y{index}" for index in range(9)]},
    }
    assert tried(write_bundle(tmp_path / "v", model="open.tflite", **parts), TfliteBackend()).ok


def test_a_version_with_no_golden_samples_is_timed_all_the_same(tmp_path):
    verdict = tried(write_bundle(tmp_path), TfliteBackend())
    assert verdict.ok, verdict
    assert verdict.samples == 0
    assert verdict.latency_p50 > 0


def test_whatever_is_printed_the_verdict_is_heard(tmp_path, rogue):
    flood = "sys.stdout.write('o' * (1 << 20)); sys.stderr.write('e' * (1 << 20))"
    verdict = tried(bundle(tmp_path), rogue(loading=flood, running="print('a run')"))
    assert verdict.ok, verdict
    assert verdict.stderr.endswith("a run\na run")
    assert len(verdict.stderr) <= 2048


# Unsound versions


def refused(verdict: Verdict) -> tuple[str, str]:
    assert verdict.hint
    return verdict.failure, verdict.reason


def test_a_damaged_file_is_found_as_it_is_read_back(tmp_path):
    folder = bundle(tmp_path)
    manifest = manifest_of(folder)
    with (folder / "model.tflite").open("r+b") as file:
        file.seek(100)
        file.write(b"!")
    verdict = asyncio.run(try_out(folder, manifest, TfliteBackend(), Allowance()))
    assert verdict.failure == "damaged"
    assert "model.tflite is damaged" in verdict.reason


def test_tensors_that_are_not_the_manifest_s_are_damage(tmp_path):
    inputs = [{"tensor": {"name": "x", "shape": [4], "dtype": "float32"}}]
    failure, reason = refused(tried(write_bundle(tmp_path, inputs=inputs), TfliteBackend()))
    assert (failure, reason) == (
        "damaged",
        "colours 1.0: the manifest says input 0 is float32 [4], the model float32 [1, 4]",
    )


def test_a_model_that_does_not_load_is_unfit(tmp_path):
    verdict = tried(bundle(tmp_path), FakeBackend(refuse="no such op"))
    assert refused(verdict) == ("unfit", "model.tflite: no such op")
    assert verdict.hint == "take `refuse` out of the model's table"


def test_a_device_that_is_busy_says_nothing_of_the_model(tmp_path, rogue):
    busy = "import edged.api; raise edged.api.DeviceError('somebody else has it', hint='ask them')"
    assert refused(tried(bundle(tmp_path), rogue(loading=busy))) == ("hindered", "somebody else has it")


def test_a_backend_that_raises_anything_is_unfit_and_its_traceback_is_kept(tmp_path, rogue):
    verdict = tried(bundle(tmp_path), rogue(loading="raise KeyError('scale')"))
    assert refused(verdict) == ("unfit", "the backend failed: KeyError: 'scale'")
    assert "Traceback" in verdict.stderr


@pytest.mark.parametrize(
    ("running", "reason"),
    [
        ("y += 0.5", "golden sample 0: the output 'y' is off by 0.5"),
        ("y[:] = np.nan", "golden sample 0: the output 'y' has NaN or infinities"),
        ("y[:] = 0", "golden sample 0: the output 'y' is all zeros, as if the runtime had written no result"),
        ("y[:] = 7", "golden sample 0: the output 'y' has the same value everywhere (7.0)"),
        ("raise ModelError('the device went away', hint='plug it in')", "the device went away"),
    ],
)
def test_wrong_answers_are_told_by_sample_and_distance(tmp_path, rogue, running, reason):
    verdict = tried(bundle(tmp_path), rogue(running=running))
    failure, said = refused(verdict)
    assert failure == "wrong"
    assert reason in said


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ({"loading": "os.abort()"}, "the self-test crashed while loading the model: SIGABRT (Aborted)"),
        (
            {"running": "ctypes.string_at(0)"},
            "the self-test crashed while running the golden samples: SIGSEGV (Segmentation fault)",
        ),
        ({"closing": "os.abort()"}, "the self-test crashed while closing the model: SIGABRT (Aborted)"),
        ({"running": "sys.exit(3)"}, "the self-test exited with 3 while running the golden samples"),
    ],
)
def test_a_crash_is_told_by_its_signal_and_what_it_was_doing(tmp_path, rogue, deed, reason):
    assert refused(tried(bundle(tmp_path), rogue(**deed))) == ("crashed", reason)


def test_the_end_of_what_a_crash_complained_of_is_kept(tmp_path, rogue):
    verdict = tried(bundle(tmp_path), rogue(loading="os.write(2, b'\\x1b[2Jno such device\\n'); os.abort()"))
    assert verdict.stderr == "\N{REPLACEMENT CHARACTER}[2Jno such device"


def test_one_that_hangs_is_ended_when_its_manifest_says(tmp_path, rogue):
    folder = bundle(tmp_path, limits={"seconds": 1.5})
    verdict = tried(folder, rogue(running="time.sleep(600)"), seconds=60.0)
    assert verdict.failure == "hung"
    assert 1.5 <= verdict.seconds < 60


def test_one_that_eats_memory_gets_no_more_than_this_board_allows(tmp_path, rogue):
    verdict = tried(bundle(tmp_path), rogue(loading="bytearray(1 << 30)"), memory=256 << 20)
    assert refused(verdict) == ("memory", "the process ran out of memory")


def test_one_that_ends_with_no_word_is_silent(tmp_path, rogue):
    verdict = tried(bundle(tmp_path), rogue(running="os._exit(0)"))
    assert refused(verdict) == ("silent", "the self-test ended without a verdict while running the golden samples")


def test_one_that_talks_into_the_verdict_is_silent_too(tmp_path, rogue):
    garbage = "[os.write(int(fd), b'garbage') for fd in os.listdir('/proc/self/fd') if int(fd) > 2]; os._exit(0)"
    scribble = f"try:\n  {garbage}\nexcept OSError:\n  os._exit(0)"
    assert tried(bundle(tmp_path), rogue(running=scribble)).failure == "silent"


def test_one_that_answers_slower_than_its_manifest_allows_is_too_slow(tmp_path, rogue):
    folder = bundle(tmp_path, limits={"latency_p99": 0.001})
    verdict = tried(folder, rogue(running="time.sleep(0.01)"))
    failure, reason = refused(verdict)
    assert failure == "slow"
    assert reason.endswith("ms at the 99th percentile, and 1 ms are allowed")
    assert verdict.latency_p99 > 0.01
    assert verdict.samples == 3


def test_that_no_child_can_be_started_is_not_the_version_s_fault(tmp_path):
    folder = bundle(tmp_path)
    manifest = manifest_of(folder)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def with_no_descriptor_to_be_had() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            await try_out(folder, manifest, TfliteBackend(), Allowance())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    with pytest.raises(ModelError, match="the self-test of bundle cannot be started: Too many open files") as caught:
        asyncio.run(with_no_descriptor_to_be_had())
    assert caught.value.retryable


# Judging

MEASURED = Verdict(samples=3, latency_p50=0.010, latency_p99=0.020, rss_bytes=50 << 20)


def judged(
    status: int | None, *stdout: str | Verdict, stderr: bytes = b"", seconds: float = 1.0, **limits: Any
) -> tuple[str, str]:
    """Return failure and reason for a child with this output, on a board that allows 60 s and 100 MiB."""
    lines = [msgspec.json.encode(line).decode() if isinstance(line, Verdict) else line for line in stdout]
    content = {**COLOURS, "files": {"model.tflite": {"bytes": 1, "sha256": "0" * 64}}, "limits": limits}
    ending = TrialEnding(status, "".join(f"{line}\n" for line in lines).encode(), stderr, seconds)
    verdict = judge(ending, decode(json.dumps(content).encode()), Allowance(seconds=60.0, memory=100 << 20))
    assert verdict.ok or verdict.hint
    assert verdict.seconds == seconds
    return verdict.failure, verdict.reason


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        (judged(0, "timing the model", MEASURED), ("", "")),
        (judged(0, MEASURED, rss_bytes=50 << 20, latency_p99=0.020), ("", "")),
        (
            judged(0, MEASURED, rss_bytes=(50 << 20) - 1),
            ("memory", "the self-test took 50.0 MiB of memory, and 50.0 MiB are allowed"),
        ),
        (
            judged(0, replace(MEASURED, rss_bytes=101 << 20), rss_bytes=1 << 30),
            ("memory", "the self-test took 101.0 MiB of memory, and 100.0 MiB are allowed"),
        ),
        (
            judged(0, MEASURED, latency_p99=0.0199),
            ("slow", "an inference takes 20 ms at the 99th percentile, and 19.9 ms are allowed"),
        ),
        (
            judged(0, Verdict(failure="wrong", reason="it is off", hint="train it again")),
            ("wrong", "it is off"),
        ),
        (judged(0), ("hindered", "the self-test ended before the first stage")),
        (judged(0, "timing the model", '{"ok": true}')[0], "silent"),
        (judged(0, "timing the model", '{"latency_p50": null}')[0], "silent"),
        (judged(0, "closing the model", MEASURED, "and then some")[0], "silent"),
        (
            judged(None, "loading the model", seconds=60.03),
            ("hung", "the self-test did not end within 60 s; stage: loading the model"),
        ),
        (
            judged(-signal.SIGXCPU, "loading the model"),
            ("hung", "the self-test used up its processor time while loading the model"),
        ),
        (
            judged(-signal.SIGKILL, "loading the model"),
            ("memory", "the system killed the self-test while loading the model, most likely for lack of memory"),
        ),
        (
            judged(-signal.SIGABRT, "loading the model", stderr=b"what():  std::bad_alloc"),
            ("memory", "the process ran out of memory while loading the model"),
        ),
        (
            judged(-signal.SIGBUS, "reading the bundle"),
            ("crashed", "the self-test crashed while reading the bundle: SIGBUS (Bus error)"),
        ),
        (judged(-signal.SIGSEGV, "closing the model", MEASURED)[0], "crashed"),
        (judged(-signal.SIGKILL), ("hindered", "the self-test ended before the first stage")),
        (judged(None), ("hindered", "the self-test ended before the first stage")),
        (
            judged(1, stderr=b"Traceback\nModuleNotFoundError: No module named 'numpy'\n"),
            (
                "hindered",
                "the self-test ended before the first stage: ModuleNotFoundError: No module named 'numpy'",
            ),
        ),
        (judged(1, "loading the model"), ("crashed", "the self-test exited with 1 while loading the model")),
    ],
)
def test_every_ending_has_its_own_reason(judgement, expected):
    assert judgement == expected


# Remains


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Return a path, and a function that reads b"alive" from a process that holds the path, and b"" after its death."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read() -> bytes:
        assert select.select([end], [], [], 30)[0]
        return os.read(end, 100)

    yield str(path), read
    os.close(end)


def test_what_a_backend_started_is_ended_with_it(tmp_path, rogue, fifo):
    path, read = fifo
    verdict = tried(bundle(tmp_path), rogue(loading=f"descend({path!r})"))
    assert verdict.ok, verdict
    assert (read(), read()) == (b"alive", b"")


def test_a_trial_that_is_cancelled_is_over(tmp_path, rogue, fifo):
    path, read = fifo
    folder = bundle(tmp_path)

    async def cancel_it() -> None:
        backend = rogue(loading=f"hold({path!r}); time.sleep(600)")
        trial = asyncio.create_task(try_out(folder, manifest_of(folder), backend, Allowance()))
        assert await asyncio.to_thread(read) == b"alive"
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial

    asyncio.run(cancel_it())
    assert read() == b""
