"""Models that are tried in a child process before this process loads them, and the record of proven models."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edged import plugins
from edged.api import Backend, ModelError
from edged.backends.tflite import TfliteBackend
from edged.core.errors import BundleError
from edged.models.atomic_files import Disk, Kernel
from edged.models.bundle import Bundle, derive, open_folder
from edged.models.proofs import Proofs
from edged.models.trial import prove_apart
from tests.bundles import DATA, killer, write_bundle

NATIVE = '''
import ctypes, os, time
from pathlib import Path
from edged.api import Backend, ModelError
from edged.backends.tflite import TfliteBackend

class Native(TfliteBackend, frozen=True, kw_only=True):
    """Runs a model as TfliteBackend does, and does what it is told in Python as it loads and closes.

    Each load leaves a line in the file `diary`. `version` is that of its runtime.
    """

    diary: str
    version: str = "native 1.0"
    loading: str = ""
    closing: str = ""

    def title(self):
        return self.version

    def load(self, file, *, signature=None):
        with open(self.diary, "a") as diary:
            print("loaded", file=diary)
        exec(self.loading)
        runner = super().load(file, signature=signature)
        close = runner.close
        runner.close = lambda: (exec(self.closing), close())
        return runner
'''

Native = Callable[..., Backend]


@pytest.fixture
def native(install_plugin: Callable[..., None], tmp_path: Path) -> Native:
    install_plugin("native", NATIVE, "backends", native="native:Native")
    kind = plugins.load("backends", "native")
    return lambda **options: kind(diary=str(tmp_path / "diary"), **options)


def loads(folder: Path) -> int:
    """Return the number of loads of the model, in all processes."""
    diary = folder / "diary"
    return len(diary.read_text().splitlines()) if diary.exists() else 0


@pytest.fixture
def colours(tmp_path: Path) -> Bundle:
    return open_folder(write_bundle(tmp_path / "colours"))


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "state" / "proofs.json"


def ensure(record: Path, bundle: Bundle, backend: Backend) -> None:
    asyncio.run(Proofs(record).ensure(bundle, backend))


# Records


def test_a_model_is_tried_once_and_remembered_by_later_runs(record, colours, native, tmp_path):
    assert not Proofs(record).holds(colours, native())
    ensure(record, colours, native())
    ensure(record, colours, native())
    assert Proofs(record).holds(colours, native())
    assert loads(tmp_path) == 1


def test_the_same_file_under_another_manifest_is_the_same_model(record, colours, native, tmp_path):
    ensure(record, colours, native())
    ensure(record, open_folder(write_bundle(tmp_path / "other", version="2.0")), native(threads=2))
    assert loads(tmp_path) == 1


def test_another_file_signature_or_runtime_is_tried_anew(record, colours, native, tmp_path):
    ensure(record, colours, native())
    other = open_folder(write_bundle(tmp_path / "other", model="metadata.tflite"))
    assert not Proofs(record).holds(other, native())
    assert not Proofs(record).holds(colours, native(), "predict")
    assert not Proofs(record).holds(colours, native(version="native 1.1"))


def test_another_processor_is_tried_anew(record, colours, native, monkeypatch):
    ensure(record, colours, native())
    monkeypatch.setattr("edged.models.proofs._processor", lambda: "f" * 64)
    assert not Proofs(record).holds(colours, native())


def test_a_bare_file_is_tried_as_it_is(record):
    ensure(record, derive(DATA / "metadata.tflite"), TfliteBackend())
    assert Proofs(record).holds(derive(DATA / "metadata.tflite"), TfliteBackend())


def test_the_verdict_of_a_trial_that_was_held_elsewhere_counts(record, colours, native, tmp_path):
    asyncio.run(Proofs(record).remember(colours, native()))
    ensure(record, colours, native())
    assert loads(tmp_path) == 0


def test_a_backend_without_a_title_is_known_in_this_run_alone(record, colours, native, tmp_path):
    async def twice() -> None:
        proofs = Proofs(record)
        await proofs.ensure(colours, native(version=""))
        await proofs.ensure(colours, native(version=""))

    asyncio.run(twice())
    assert loads(tmp_path) == 1
    assert not Proofs(record).holds(colours, native(version=""))


# Harmful models


@pytest.mark.usefixtures("garbage_in_memory")
@pytest.mark.parametrize("stage", ["load", "run"])
def test_a_file_that_kills_the_runtime_costs_a_child(record, tmp_path, stage):
    bundle = open_folder(killer(tmp_path, stage))
    doing = {"load": "loading", "run": "timing"}[stage]
    with pytest.raises(
        ModelError, match=f"killer 1.0: the self-test crashed while {doing} the model: SIGSEGV"
    ) as failure:
        ensure(record, bundle, TfliteBackend())
    assert failure.value.hint
    assert not failure.value.retryable
    assert not Proofs(record).holds(bundle, TfliteBackend())


def test_one_that_dies_as_it_is_closed_is_refused_too(record, colours, native):
    with pytest.raises(ModelError, match=r"colours 1\.0: the self-test crashed while closing the model: SIGABRT"):
        ensure(record, colours, native(closing="os.abort()"))
    assert not Proofs(record).holds(colours, native())


def test_the_last_words_of_a_crash_are_told(record, colours, native):
    with pytest.raises(ModelError, match=r"SIGABRT \(Aborted\); last output: no such instruction"):
        ensure(record, colours, native(loading="os.write(2, b'INFO: on\\nno such instruction\\n'); os.abort()"))


def test_one_that_runs_out_of_memory_may_work_later(record, colours, native, monkeypatch):
    monkeypatch.setattr("edged.models.trial.available_bytes", lambda: 0)
    with pytest.raises(ModelError, match="the process ran out of memory") as failure:
        ensure(record, colours, native(loading="bytearray(1 << 30)"))
    assert failure.value.retryable


def test_a_limit_of_the_manifest_is_for_updates_alone(record, tmp_path, native):
    strict = open_folder(write_bundle(tmp_path / "strict", limits={"latency_p99": 1e-6, "rss_bytes": 1 << 20}))
    ensure(record, strict, native())
    assert Proofs(record).holds(strict, native())


def test_a_damaged_bundle_is_damage(tmp_path, native):
    inputs = [{"tensor": {"name": "x", "shape": [4], "dtype": "float32"}}]
    bundle = open_folder(write_bundle(tmp_path / "damaged", inputs=inputs))
    with pytest.raises(BundleError, match="the manifest says input 0"):
        asyncio.run(prove_apart(bundle, native()))


# Events during a trial


def test_whoever_asks_meanwhile_waits_for_the_trial_that_is_under_way(record, colours, native, tmp_path):
    async def both() -> None:
        proofs = Proofs(record)
        await asyncio.gather(proofs.ensure(colours, native()), proofs.ensure(colours, native()))

    asyncio.run(both())
    assert loads(tmp_path) == 1


def test_one_that_hangs_holds_up_no_other_and_ends_with_the_run(record, colours, native, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    other = open_folder(write_bundle(tmp_path / "other", model="metadata.tflite"))

    async def scenario() -> None:
        proofs = Proofs(record)
        hanging = asyncio.create_task(
            proofs.ensure(colours, native(loading=f"open({str(fifo)!r}, 'w'); time.sleep(600)"))
        )
        end = await asyncio.to_thread(os.open, fifo, os.O_RDONLY)  # opened once the child process runs
        await proofs.ensure(other, native())
        await proofs.stop()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert await asyncio.to_thread(os.read, end, 1) == b""
        os.close(end)

    asyncio.run(scenario())


def test_a_file_that_is_replaced_during_its_trial_is_not_loaded(record, native, tmp_path):
    file = tmp_path / "mine.tflite"
    file.write_bytes((DATA / "metadata.tflite").read_bytes())
    other = tmp_path / "other.tflite"  # data behind the model are not read
    other.write_bytes(file.read_bytes() + b"!")
    bundle = derive(file)
    replace = f"Path({str(file)!r}).write_bytes(Path({str(other)!r}).read_bytes())"
    with pytest.raises(ModelError, match=r"mine\.tflite was replaced during the trial") as failure:
        ensure(record, bundle, native(closing=replace))
    assert failure.value.retryable
    with pytest.raises(ModelError, match=r"mine\.tflite was replaced during the trial"):
        ensure(record, bundle, native(version="native 1.1"))


# The record on the disk


@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 5000, b"[" * 5000])
def test_a_damaged_record_is_none_and_is_written_anew(record, colours, native, tmp_path, caplog, data):
    record.parent.mkdir()
    record.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        ensure(record, colours, native())
    assert "proofs.json: the record of proofs is damaged" in caplog.text
    assert Proofs(record).holds(colours, native())
    assert loads(tmp_path) == 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_no_record(record, colours, native, tmp_path, make):
    record.parent.mkdir()
    make(record)
    assert not Proofs(record).holds(colours, native())


class Full(Kernel):
    """Disk that is full after the first file."""

    def sync_file(self, path):
        raise OSError(28, "No space left on device")


def test_a_proof_that_cannot_be_written_counts_in_this_run(record, colours, native, tmp_path, caplog):
    async def twice() -> None:
        proofs = Proofs(record, Disk(Full()))
        await proofs.ensure(colours, native())
        await proofs.ensure(colours, native())

    with caplog.at_level(logging.WARNING):
        asyncio.run(twice())
    assert "cannot be recorded" in caplog.text
    assert loads(tmp_path) == 1
    assert not Proofs(record).holds(colours, native())
