"""The daemon's parts as they come and go, in this process: what the tests of the real one cannot hold still."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

from edged.config import load
from edged.control.systemd import Notifier
from edged.daemon import Daemon
from edged.models.store import FACTORY, Store
from edged.operations import Operations

MOTION = FACTORY / "motion" / "1.0.0"

SOURCE = f"""
[sources.wrist]
kind = "replay"
path = "{Path(__file__).parents[1] / "demo" / "recording.csv"}"
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


@asynccontextmanager
async def running(folder: Path, config: str) -> AsyncIterator[Daemon]:
    file = folder / "edged.toml"
    file.write_text(config)
    daemon = Daemon([file], load([file]), Store(FACTORY, folder / "models"), Notifier({}), folder)
    await daemon.start()
    try:
        yield daemon
    finally:
        await daemon.stop(5.0)


async def reload(daemon: Daemon, config: str) -> list[str]:
    daemon.parts.files[0].write_text(config)
    return await daemon.reload()


def operations(daemon: Daemon) -> Operations:
    nothing = SimpleNamespace(calls={}, streams={}, changes=frozenset())
    return Operations(daemon.parts, daemon.reload, nothing, nothing)


def test_the_status_is_told_of_a_model_whose_files_are_gone(tmp_path):
    shutil.copytree(MOTION, tmp_path / "mine")

    async def scenario() -> None:
        async with running(tmp_path, SOURCE + MODEL.format(path=tmp_path / "mine") + PIPELINE) as daemon:
            shutil.rmtree(tmp_path / "mine")
            status = await operations(daemon).call("status", {})
            assert status["models"][0]["bytes"] == (MOTION / "model.tflite").stat().st_size

    asyncio.run(scenario())


def test_whoever_watches_goes_on_where_a_pipeline_is_built_anew(tmp_path):
    async def scenario() -> None:
        async with (
            running(tmp_path, SOURCE + PIPELINE) as daemon,
            aclosing(operations(daemon).stream("watch", {"pipeline": "motion"})) as watched,
        ):
            async with asyncio.timeout(10):
                first = await anext(watched)
                assert await reload(daemon, SOURCE + PIPELINE + "queue = 5\n") == ["pipelines.motion"]
                begun = daemon.parts.pipelines["motion"].begins_at
                assert first["seq"] < begun
                assert await anext(result async for result in watched if result["seq"] >= begun)

    asyncio.run(scenario())
