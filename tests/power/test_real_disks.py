"""A disk fills up, turns read-only or dies during an update, before each single effect.

File systems and errors are real: ext4 on loop devices, filled to the last block or out of inodes, remounted read-only,
or on a device that refuses to write (see block_log.py). A good version serves all the time, messages name the remedy,
and once the disk is well the update completes without litter.

Some of the moments are tried, and with `EDGED_SOAK=1` all.
"""

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from edged.core.manifest import version_key
from edged.models.atomic_files import Disk, Kernel
from edged.system.disk_space import NO_INODES
from tests.power.block_log import LoggedDisk, ext4, missing, mounted
from tests.power.test_cuts import AtOnce
from tests.updating import Rig

pytest.importorskip("mfusepy")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

STRIDE = 1 if os.environ.get("EDGED_SOAK") else 9
FEW = STRIDE // 3 or 1
MOMENTS = 80
"""More than the number of effects of any update."""

EFFECTS = frozenset({"make_folder", "write", "link", "sync_file", "sync_folder", "rename", "remove_file"})
FULL = "free some space on this disk"
READ_ONLY = "the file system is read-only"
FAILING = "the disk or card may be failing"


class Struck(Kernel):
    """Disk with an event before the n-th effect."""

    def __init__(self, strike: Callable[[], None], at: int) -> None:
        self.effects = 0
        self._strike, self.at = strike, at

    def __getattribute__(self, name: str):
        if name in EFFECTS:
            self.effects += 1
            if self.effects == self.at:
                self._strike()
        return super().__getattribute__(name)


class Refusing(Struck):
    """Disk that refuses some effects after the event, and leaves an empty file as a full disk does."""

    def __init__(self, number: int, refused: frozenset[str], at: int) -> None:
        super().__init__(self._turn, at)
        self._number, self._refused = number, refused
        self._refuses = False

    def heal(self) -> None:
        self._refuses = False

    def _turn(self) -> None:
        self._refuses = True

    def __getattribute__(self, name: str):
        effect = super().__getattribute__(name)
        return self._refuse if name in EFFECTS and self._refuses and name in self._refused else effect

    def _refuse(self, path: Path, *_: object) -> None:
        if self._number == errno.ENOSPC and path.parent.is_dir() and not path.exists():
            path.touch()
        raise OSError(self._number, os.strerror(self._number))


def live_through(
    rig: Rig, strike: Callable[[], None], heal: Callable[[], None], remedies: set[str], *, reboot: bool = False
) -> None:
    """Install versions in turn, each time with the event at a later moment, and heal the disk again."""
    for number, at in enumerate(range(random.randrange(1, STRIDE + 1), MOMENTS, STRIDE), start=2):
        print(f"before effect {at}")
        struck = asyncio.run(_live_through(rig, f"1.{number}", Struck(strike, at), heal, remedies, reboot))
    assert not struck, "there are more moments than are tried"


async def _live_through(
    rig: Rig, version: str, disk: Struck, heal: Callable[[], None], remedies: set[str], reboot: bool
) -> bool:
    """Return whether the event occurred."""
    asyncio.get_running_loop().set_default_executor(AtOnce())
    await rig.boot(disk=Disk(disk))
    before, floor = rig.board.version, version_key(rig.ledger.floor)
    rig.events.clear()
    job = rig.install(version)
    await job.released.wait()
    for _ in range(3):
        await rig.pass_probation()
    effects = disk.effects
    assert set(rig.board.answers) <= {before, version}
    if job.state != "done":
        said = [job.text, job.hint, *(event.text for event in rig.events)]
        assert any(remedy in each for each in said for remedy in remedies), said
    heal()
    if reboot:
        await rig.boot()
    for _ in range(3):
        await rig.pass_probation()
    assert set(rig.board.answers) <= {before, version}
    assert version_key(rig.ledger.floor) >= floor
    job = await rig.installed(version)
    assert job.state == "done", job.text
    assert rig.board.version == version
    assert rig.tree() - rig.tidy_tree() == set()
    return effects >= disk.at


def rig_on(mount: Path, folder: Path) -> Rig:
    """Return a board with an installed model on the file system, and containers elsewhere."""
    rig = Rig(folder)
    rig.state = mount / "models"
    rig.state.mkdir()

    async def acting() -> None:
        await rig.boot()
        await rig.installed("1.1")

    asyncio.run(acting())
    return rig


@pytest.mark.parametrize(
    ("number", "refused", "remedy"),
    [
        (errno.ENOSPC, frozenset({"make_folder", "write", "link"}), FULL),
        (errno.EIO, frozenset({"sync_file", "sync_folder"}), FAILING),
        (errno.EROFS, EFFECTS, READ_ONLY),
    ],
    ids=["full", "failing", "read-only"],
)
def test_a_disk_that_refuses_from_some_moment_on(number: int, refused: frozenset[str], remedy: str, tmp_path: Path):
    rig = rig_on(tmp_path, tmp_path / "board")
    for at in range(random.randrange(1, FEW + 1), MOMENTS, FEW):
        disk = Refusing(number, refused, at)
        struck = asyncio.run(_live_through(rig, f"1.{at + 1}", disk, disk.heal, {remedy}, reboot=False))
    assert not struck, "there are more moments than are tried"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, with few inodes."""
    with mounted(ext4(tmp_path / "small.image", 4 << 20, "-N", 64, "-m", 0), tmp_path / "small") as mount:
        yield mount


def test_a_disk_that_fills_up(small: Path, tmp_path: Path):
    ballast = small / "ballast"

    def fill() -> None:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))

    live_through(rig_on(small, tmp_path / "board"), fill, partial(ballast.unlink, missing_ok=True), {FULL})


def test_a_disk_that_has_no_inodes_left(small: Path, tmp_path: Path):
    ballast = small / "ballast"
    ballast.mkdir()

    def use_up() -> None:
        with suppress(OSError):
            for number in range(100):
                (ballast / str(number)).touch()

    def free() -> None:
        for file in ballast.iterdir():
            file.unlink()

    live_through(rig_on(small, tmp_path / "board"), use_up, free, {NO_INODES})


def test_a_disk_that_turns_read_only(small: Path, tmp_path: Path):
    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", small], check=True)

    rig = rig_on(small, tmp_path / "board")
    live_through(rig, partial(remount, "ro"), partial(remount, "rw"), {READ_ONLY})


def test_a_card_that_dies(tmp_path: Path):
    with LoggedDisk(tmp_path) as card:

        def replace() -> None:
            card.fail(False)
            card.mount_again()

        rig = rig_on(card.mount, tmp_path / "board")
        live_through(rig, card.fail, replace, {READ_ONLY, FAILING}, reboot=True)
