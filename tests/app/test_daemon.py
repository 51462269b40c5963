"""Parts of the daemon in this process, for moments that tests of the real daemon cannot hold still."""

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest

import edged.app.daemon
import edged.app.lifecycle
from edged import plugins
from edged.acceleration.placement import Accelerators
from edged.api import ConfigError, Runner, SourceConfig, SourceInfo
from edged.app.control_plane import Composition, compose
from edged.app.data_plane import DataPlane
from edged.app.state_lock import StateLock
from edged.app.status import overall
from edged.config.load import ConfigErrors, load
from edged.control.systemd import Notifier
from edged.flow.pipeline import FINISH_SECONDS
from edged.flow.reader import Reader
from edged.models.store import FACTORY, Store
from edged.updates.updater import Updater

MOTION = FACTORY / "motion" / "1.0.0"

SOURCE = f"""
[sources.wrist]
kind = "replay"
path = "{Path(__file__).parents[2] / "demo" / "recording.csv"}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = 1000
loop = true
[sources.wrist.supervision]
rate_tolerance = 0
"""
PIPELINE = """
[pipelines.motion]
source = "wrist"
model = "motion"
sinks = []
"""
MODEL = """
[models.motion]
path = "{path}"
"""


@pytest.fixture(autouse=True)
def no_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a reload take no step of an update, since these tests do not start the updater."""
    monkeypatch.setattr(Updater, "held", lambda _updater, _models: nullcontext())


class Running(NamedTuple):
    """A daemon in this process: its planes."""

    plane: DataPlane
    control: Composition


@asynccontextmanager
async def running(folder: Path, config: str) -> AsyncIterator[Running]:
    file = folder / "edged.toml"
    file.write_text(config)
    plane = DataPlane([file], load([file]), Store(FACTORY, folder / "models"), folder)
    control = compose(plane, Notifier({}))
    unproven = plane.start()
    plane.connect()
    await control.lifecycle.complete_start(unproven)
    try:
        yield Running(plane, control)
    finally:
        await control.lifecycle.stop(5.0)


async def reload(parts: Running, config: str) -> list[str]:
    parts.plane.state.files[0].write_text(config)
    return (await parts.control.lifecycle.reload()).all


def test_the_status_is_told_of_a_model_whose_files_are_gone(tmp_path):
    shutil.copytree(MOTION, tmp_path / "mine")

    async def scenario() -> None:
        async with running(tmp_path, SOURCE + MODEL.format(path=tmp_path / "mine") + PIPELINE) as parts:
            shutil.rmtree(tmp_path / "mine")
            status = await parts.control.operations.call("status", {})
            assert status["models"][0]["bytes"] == (MOTION / "model.tflite").stat().st_size

    asyncio.run(scenario())


def test_a_model_that_no_pipeline_can_use_is_failed_once_its_trial_is_over(tmp_path):
    source = '[sources.wrist]\nkind = "synthetic"\nchannels = ["v"]\nrate = 10\n'

    async def scenario() -> None:
        async with running(tmp_path, source + PIPELINE) as parts:
            model = parts.plane.state.models["motion"]
            while parts.plane.state.pipelines["motion"].status.health.state != "failed":
                await asyncio.sleep(0.01)
            assert model.status.health.state == "failed"
            assert model.status.health.reason == "no pipeline can use the model: motion"

    asyncio.run(scenario())


def test_whoever_watches_goes_on_where_a_pipeline_is_built_anew(tmp_path):
    async def scenario() -> None:
        async with (
            running(tmp_path, SOURCE + PIPELINE) as parts,
            aclosing(parts.control.operations.stream("watch", {"pipeline": "motion"})) as watched,
        ):
            async with asyncio.timeout(120):
                first = await anext(watched)
                assert await reload(parts, SOURCE + PIPELINE + "queue = 5\n") == ["pipelines.motion"]
                begun = parts.plane.state.pipelines["motion"].begins_at
                assert first["seq"] < begun
                assert await anext(result async for result in watched if result["seq"] >= begun)

    asyncio.run(scenario())


def test_a_reload_decides_which_threads_may_serve(tmp_path):
    second = PIPELINE.replace("pipelines.motion", "pipelines.second")

    async def scenario() -> None:
        async with running(tmp_path, SOURCE + PIPELINE) as parts:

            def threads() -> dict[str, str]:
                flows = {name: part.flow for name, part in parts.plane.state.pipelines.items()}
                (reader,) = parts.plane.state.sources.values()
                assert all(flow.shared in (None, reader.shared) for flow in flows.values())
                return {
                    name: "the reader's" if flow.in_place else "shared" if flow.shared else "its own"
                    for name, flow in flows.items()
                }

            assert threads() == {"motion": "the reader's"}
            await reload(parts, SOURCE + PIPELINE + second)
            assert threads() == {"motion": "shared", "second": "shared"}
            await reload(parts, SOURCE + PIPELINE + 'durability = "always"\n' + second)
            assert threads() == {"motion": "its own", "second": "shared"}
            await reload(parts, SOURCE + PIPELINE + 'durability = "always"\n')
            assert threads() == {"motion": "its own"}
            await reload(parts, SOURCE + PIPELINE)
            assert threads() == {"motion": "the reader's"}

    asyncio.run(scenario())


class Accelerated:
    """Runner on an accelerator, with `twin` on the CPU."""

    def __init__(self, twin: Runner) -> None:
        self.info, self.run, self.reset, self.close = twin.info, twin.run, twin.reset, twin.close


@pytest.mark.parametrize(
    ("config", "put", "isolated"),
    [
        ("", lambda twin: twin, False),
        ("[models.motion]\nisolate = true\n", lambda twin: twin, True),
        ("", Accelerated, True),
    ],
)
def test_a_model_in_another_process_is_isolated(tmp_path, monkeypatch, config, put, isolated):
    monkeypatch.setattr(Accelerators, "put", lambda *arguments: put(arguments[-2]))

    async def scenario() -> None:
        async with running(tmp_path, SOURCE + PIPELINE + config) as parts:
            while not (served := parts.plane.state.pipelines["motion"].served):
                await asyncio.sleep(0.01)
            assert served.isolated == isolated

    asyncio.run(scenario())


def test_a_sink_that_loses_results_is_trouble(tmp_path):
    log = tmp_path / "not there" / "results.jsonl"
    config = SOURCE + PIPELINE.replace("[]", '["log"]') + f'[sinks.log]\nkind = "jsonl"\npath = "{log}"\n'

    async def scenario() -> None:
        async with running(tmp_path, config) as parts:
            async with aclosing(parts.control.operations.stream("watch", {})) as watched, asyncio.timeout(120):
                async for _ in watched:
                    status = await parts.control.operations.call("status", {})
                    if status["state"] != "running":
                        break
            assert status["health"]["reason"] == f"sink log: {log} cannot be written: No such file or directory"

    asyncio.run(scenario())


def test_a_metrics_port_that_is_taken_is_trouble_until_another_is_configured(tmp_path):
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            async with running(tmp_path, f"[metrics]\nport = {port}\n") as parts:
                assert overall(parts.plane.state, parts.plane.accelerators).reason.startswith("metrics: ")
                assert await reload(parts, "") == ["metrics"]
                assert overall(parts.plane.state, parts.plane.accelerators).state == "running"

    asyncio.run(scenario())


def test_a_reload_tries_again_what_could_not_be_built(tmp_path):
    config = SOURCE + MODEL.format(path=tmp_path / "mine") + PIPELINE

    async def scenario() -> None:
        async with running(tmp_path, config) as parts:
            assert parts.plane.state.pipelines["motion"].status.health.state == "failed"
            shutil.copytree(MOTION, tmp_path / "mine")
            assert await reload(parts, config) == ["models.motion", "pipelines.motion"]
            async with aclosing(parts.control.operations.stream("watch", {})) as watched, asyncio.timeout(120):
                assert await anext(watched)
            assert await reload(parts, config) == []

    asyncio.run(scenario())


def test_a_refused_configuration_is_trouble_since_it_was_refused(tmp_path):
    async def scenario() -> None:
        async with running(tmp_path, SOURCE) as parts:
            begun = time.monotonic()
            with pytest.raises(ConfigErrors):
                await reload(parts, "[nonsense]")
            assert overall(parts.plane.state, parts.plane.accelerators).reason == "the new configuration was refused"
            assert overall(parts.plane.state, parts.plane.accelerators).since >= begun

    asyncio.run(scenario())


class Hanging(SourceConfig, frozen=True, kw_only=True):
    """Source that hangs in a read until `let_go`."""

    let_go = threading.Event()
    reading = threading.Event()

    def describe(self) -> SourceInfo:
        return SourceInfo(shape=(6,))

    def open(self) -> "Hanging":
        return self

    faults: ClassVar[dict[str, int]] = {}

    def read(self, timeout: float) -> None:
        self.reading.set()
        self.let_go.wait()

    def close(self) -> None:
        pass


def test_what_is_left_behind_does_not_speak_for_what_took_its_place(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(plugins.BUILT_IN["sources"], "hanging", f"{__name__}:Hanging")
    monkeypatch.setattr(edged.app.lifecycle, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(edged.app.lifecycle, "set_up", lambda level: None)  # set_up would remove the handler of caplog
    caplog.set_level("INFO")

    async def scenario() -> None:
        async with running(tmp_path, '[sources.wrist]\nkind = "hanging"\n') as parts:
            await asyncio.to_thread(Hanging.reading.wait)
            (hung,) = [thread for thread in threading.enumerate() if thread.name == "source-wrist"]
            await reload(parts, SOURCE)
            assert "wrist did not stop in time and is left behind" in caplog.text
            Hanging.let_go.set()
            await asyncio.to_thread(hung.join)
            assert "source wrist is stopped" not in caplog.text

    asyncio.run(scenario())


def test_a_reload_that_broke_off_half_way_is_made_good_by_the_next(tmp_path):
    async def scenario() -> None:
        async with running(tmp_path, SOURCE + PIPELINE) as parts:
            slower = SOURCE.replace("1000", "500") + PIPELINE
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parts.plane.builder, "source", fails)
                with pytest.raises(ConfigError):
                    await reload(parts, slower)
            assert parts.plane.state.sources == {}
            await reload(parts, slower)
            async with aclosing(parts.control.operations.stream("watch", {})) as watched, asyncio.timeout(120):
                assert await anext(watched)

    asyncio.run(scenario())


def fails(name: str) -> None:
    raise ConfigError("it has changed since it was looked at")


@pytest.mark.parametrize(("deadline", "patience"), [(120.0, FINISH_SECONDS), (0.0, 0.0)])
def test_a_stop_has_as_much_patience_with_the_chunk_in_hand_as_with_waiting_windows_until_its_time_is_over(
    tmp_path, monkeypatch, deadline, patience
):
    timeouts = []
    monkeypatch.setattr(Reader, "between_chunks", lambda _reader, _change, timeout: timeouts.append(timeout))

    async def scenario() -> None:
        async with running(tmp_path, SOURCE) as parts:
            await parts.control.lifecycle.stop(deadline)

    asyncio.run(scenario())
    assert timeouts == [patience]


def test_a_stop_during_the_start_does_not_wait_for_its_end(tmp_path, monkeypatch):
    async def is_at_a_trial(_updater: Updater) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    file = tmp_path / "edged.toml"
    file.write_text(SOURCE + PIPELINE)
    monkeypatch.setattr(Updater, "start", is_at_a_trial)
    monkeypatch.setattr(edged.app.daemon, "set_up", lambda level: None)
    lock = StateLock(tmp_path, "a test", hint="")
    edged.app.daemon.run([file], tmp_path / "run", lock, Store(FACTORY, tmp_path / "models"))


# Models new to the board

SLOW = '''
from edged.backends.tflite import TfliteBackend

class SlowBackend(TfliteBackend, frozen=True, kw_only=True):
    """Loads once somebody has opened the fifo to write, and closed it; only in a child process."""
    fifo: str

    def load(self, file, *, signature=None):
        import os
        if "EDGED_CHILD" in os.environ:
            open(self.fifo).read()
        return super().load(file, signature=signature)
'''
SLOW_PIPELINE = """
[sources.ankle]
kind = "replay"
path = "{recording}"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
[models.slow]
backend = "slow"
path = "{path}"
fifo = "{fifo}"
[pipelines.slow]
source = "ankle"
model = "slow"
sinks = []
"""


@pytest.fixture
def slow(tmp_path: Path, install_plugin, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a configuration with a model whose first trial lasts until `tmp_path / "fifo"` is written."""
    install_plugin("slow", SLOW, "backends", slow="slow:SlowBackend")
    monkeypatch.setattr(edged.app.lifecycle, "TRIAL_PATIENCE", 0.0)
    os.mkfifo(tmp_path / "fifo")
    path = shutil.copytree(MOTION, tmp_path / "motion-of-another-backend")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "backend": "slow"}))
    recording = Path(__file__).parents[2] / "demo" / "recording.csv"
    return SOURCE + PIPELINE + SLOW_PIPELINE.format(recording=recording, path=path, fifo=tmp_path / "fifo")


def states(parts: Running) -> dict[str, str]:
    return {name: part.status.health.state for name, part in parts.plane.state.models.items()}


async def first_windows(parts: Running, *pipelines: str) -> dict[str, int]:
    """Return the number of the next window that each of these pipelines answers."""
    found: dict[str, int] = {}
    async with aclosing(parts.control.operations.stream("watch", {})) as watched, asyncio.timeout(20):
        async for result in watched:
            found.setdefault(result["pipeline"], result["seq"])
            if found.keys() >= set(pipelines):
                break
    return found


def test_a_model_whose_first_trial_takes_long_serves_from_its_end_on_and_misses_nothing(tmp_path, slow):
    async def scenario() -> None:
        async with running(tmp_path, slow) as parts:
            assert (await first_windows(parts, "motion")).keys() == {"motion"}
            assert states(parts) == {"motion": "running", "slow": "starting"}
            watching = asyncio.create_task(first_windows(parts, "slow"))
            await asyncio.to_thread((tmp_path / "fifo").write_text, "go on")
            assert (await watching)["slow"] == 0  # the recording waited for the model
            assert states(parts) == {"motion": "running", "slow": "running"}

    asyncio.run(scenario())


def test_a_reload_does_not_wait_for_a_first_trial(tmp_path, slow):
    async def scenario() -> None:
        async with running(tmp_path, slow) as parts:
            writing = await asyncio.to_thread(os.open, tmp_path / "fifo", os.O_WRONLY)  # waits for the child process
            assert await reload(parts, slow + "queue = 5\n") == ["pipelines.slow"]
            assert states(parts)["slow"] == "starting"
            assert await reload(parts, SOURCE + PIPELINE) == ["sources.ankle", "models.slow", "pipelines.slow"]
            os.close(writing)
            while parts.plane.proofs.is_busy:
                await asyncio.sleep(0.01)
            assert states(parts) == {"motion": "running"}

    asyncio.run(scenario())


def test_a_stop_ends_a_first_trial(tmp_path, slow):
    async def scenario() -> None:
        async with running(tmp_path, slow) as parts:
            writing = await asyncio.to_thread(os.open, tmp_path / "fifo", os.O_WRONLY)
        with pytest.raises(BrokenPipeError):
            os.write(writing, b"is anybody there?")
        os.close(writing)
        assert parts.plane.state.models == {}

    asyncio.run(scenario())
