"""The power is cut while a version is installed on a real ext4, and all possible states of the disk are tried.

A device under the file system logs all writes and flushes (see block_log.py). The log gives every state that a cut may
leave. In each state the journal is replayed, and a new daemon must find a good version to serve, keep all promises,
leave no litter, and complete the update in the end.

A few states are tried; `EDGED_SOAK=1` tries all, and `EDGED_SEED` repeats a run.
"""

import asyncio
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from edged.core.manifest import version_key
from edged.models.atomic_files import Disk, Kernel
from edged.models.container_check import ContainerCheck
from edged.models.store import open_version
from edged.transfer.partial_files import PartialFiles
from edged.updates.jobs import InstallOptions
from tests.containers import MODEL, container, entry
from tests.power.block_log import Cut, LoggedDisk, apply, check, cuts, missing, mounted
from tests.power.test_cuts import AtOnce
from tests.updating import NAME, ORIGIN, Rig, manifest

pytest.importorskip("mfusepy")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

STATES = None if os.environ.get("EDGED_SOAK") else 30
NOISE = random.Random(1).randbytes(100_000)


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("EDGED_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"EDGED_SEED={seed}")
    return random.Random(seed)


def test_the_log_shows_what_is_renamed_without_being_synced(tmp_path: Path):
    class Careless(Kernel):
        def sync_file(self, path: Path) -> None:
            pass

    assert found_after_cuts(tmp_path / "careless", Disk(Careless())) > {b"old" * 3000, b"new" * 3000}
    assert found_after_cuts(tmp_path / "careful", Disk()) == {b"old" * 3000, b"new" * 3000}


def test_no_container_started_meanwhile_keeps_the_file_system_mounted(tmp_path: Path):
    with LoggedDisk(tmp_path) as logged:
        assert str(logged.mount) in Path("/proc/self/mounts").read_text()
        assert str(tmp_path) not in Path("/proc/1/mounts").read_text()


def found_after_cuts(folder: Path, disk: Disk) -> set[bytes]:
    """Return the possible contents of a file replaced during a power cut."""
    folder.mkdir()
    with LoggedDisk(folder) as logged:
        disk.replace(logged.mount / "file", b"old" * 3000)
        logged.begin()
        disk.replace(logged.mount / "file", b"new" * 3000)
    found = set()
    for cut in cuts(logged.log, random.Random(1)):
        with mounted(after(logged, cut), folder / "found") as mount:
            found.add((mount / "file").read_bytes())
    return found


def after(logged: LoggedDisk, cut: Cut) -> Path:
    """Return the image after a cut."""
    image = logged.image.with_name("found.image")
    shutil.copyfile(logged.image, image)
    apply(image, cut.blocks)
    return image


# A version is installed, and rolled back


class Ext4Board:
    """A board with models and transfers on one file system, mounted anywhere."""

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder)

    def move(self, mount: Path) -> None:
        self.rig.state = mount / "models"
        self.rig.state.mkdir(exist_ok=True)
        self.incoming = PartialFiles(mount / "incoming", 1 << 20, 4, reserve=0, window=32 << 10)

    async def bring(self, version: str) -> None:
        """Send a version, or the rest of it, and wait for the end of the update."""
        data = sent(version)
        with self.incoming.open(identity(version), check=lambda: ContainerCheck(lambda head: None)) as transfer:
            assert transfer.path.read_bytes() == data[: transfer.received], "something else is there than was sent"
            for start in range(transfer.received, len(data), 20_000):
                transfer.append(data[start : start + 20_000])
            job = self.rig.updater.install(transfer.complete(), InstallOptions(origin=ORIGIN))
            await job.released.wait()
            transfer.discard()
        await self.rig.ended(job)
        assert job.state == "done", job.text

    async def roll_back(self) -> None:
        await self.rig.updater.rollback(NAME)


def described(version: str) -> bytes:
    files = {"model.tflite": entry(MODEL), "noise.bin": entry(NOISE)}
    return json.dumps({**json.loads(manifest(version)), "files": files}).encode()


def sent(version: str) -> bytes:
    return container(described(version), body=MODEL + NOISE)


def identity(version: str) -> str:
    return hashlib.sha256(described(version)).hexdigest()


def play(*acts) -> None:
    async def playing() -> None:
        asyncio.get_running_loop().set_default_executor(AtOnce())
        for act in acts:
            await act

    asyncio.run(playing())


def test_after_a_cut_a_good_model_serves(tmp_path: Path, chance: random.Random):
    board = Ext4Board(tmp_path / "board")
    with LoggedDisk(tmp_path) as logged:
        board.move(logged.mount)
        play(board.rig.boot(), board.bring("1.1"))
        logged.begin()
        play(board.rig.boot(), board.bring("1.2"))
        logged.mark("confirmed")
        play(board.rig.boot(), board.roll_back())
        logged.mark("rolled back")
    every = cuts(logged.log, chance, subsets=3)
    chosen = every if STATES is None else chance.sample(every, STATES)
    print(f"{len(chosen)} of {len(every)} states")
    assert {cut.marks for cut in every} == {(), ("confirmed",), ("confirmed", "rolled back")}
    for cut in chosen:
        image = after(logged, cut)
        with mounted(image, tmp_path / "found") as mount:
            board.move(mount)
            hold_to_its_promises(board, cut)
        check(image)


def hold_to_its_promises(board: Ext4Board, cut: Cut) -> None:
    rig = board.rig
    promised = {(): {"1.1", "1.2"}, ("confirmed",): {"1.1", "1.2"}, ("confirmed", "rolled back"): {"1.1"}}[cut.marks]
    floor = "1.2" if cut.marks else "1.1"
    assert rig.store.find(NAME).manifest.version in promised
    for digest in rig.ledger.versions:
        open_version(rig.model.version(digest), NAME)
    assert version_key(rig.ledger.floor) >= version_key(floor)
    play(rig.boot(), rig.pass_probation(), rig.pass_probation())
    assert rig.board.version in promised
    assert "" not in rig.board.answers
    assert rig.tree() - tidy_tree(rig) == set()
    rejected = rig.ledger.rejected
    play(board.bring("1.3" if identity("1.2") in rejected else "1.2"))
    assert rig.tree() - tidy_tree(rig) == set()


def tidy_tree(rig: Rig) -> set[str]:
    return rig.tidy_tree() | {f"versions/{digest}/noise.bin" for digest in rig.ledger.versions}
