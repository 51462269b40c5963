"""The power is cut after each single effect on the disk, on every way through the update machine.

After the cut the disk is in one of three states (see simulated.py), and a new daemon starts from this state. The daemon
must serve a good version at once and all the time, end with a permitted version, leave no litter, and never lower the
floor. On some ways the power is cut again after each effect of that run, and so on, until all states are known.
EDGED_ALL_CUTS=1 does so on all ways.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from edged.core import ledger as ledgers
from edged.core.decide import Keep
from edged.core.manifest import version_key
from edged.models.atomic_files import Disk
from tests.power.simulated import SimulatedDisk, State, read_state, write_state
from tests.updating import NAME, TRAITS, Rig, digest_of

Act = Callable[[Rig], Awaitable[object]]


class Way(NamedTuple):
    """A way through the machine: preparation, action, and the final version, with or without cuts."""

    name: str
    act: Act
    uncut: str
    cut: tuple[str, ...]
    before: Act | None = None
    factory: tuple[str, ...] = ("1.0",)
    keep: Keep = Keep()
    misfits: str = ""
    wrong: str = ""
    dead: str = ""
    faulty: str = ""


def installs(version: str, **options: object) -> Act:
    return lambda rig: rig.installed(version, **options)


async def with_two_versions(rig: Rig) -> None:
    await rig.installed("1.1")
    await rig.installed("1.2")


async def unconfirmed(rig: Rig) -> None:
    job = rig.install("1.2", confirm_within=100)
    await job.released.wait()
    await rig.pass_probation()
    await rig.pass_probation()


async def confirmed_by_hand(rig: Rig) -> None:
    job = rig.install("1.2", confirm_within=100)
    await job.released.wait()
    await rig.updater.settle(NAME)
    await rig.updater.confirm(NAME)
    await rig.pass_probation()


async def rolled_back_on_probation(rig: Rig) -> None:
    job = rig.install("1.2")
    await job.released.wait()
    await rig.updater.settle(NAME)
    await rig.updater.rollback(NAME)


async def stopped_and_started(rig: Rig) -> None:
    job = rig.install("1.2")
    await job.released.wait()
    await rig.updater.settle(NAME)
    await rig.updater.stop()
    await rig.boot()
    await rig.pass_probation()


async def put_back(rig: Rig) -> None:
    (rig.model.version(digest_of("1.1")) / "model.tflite").write_bytes(b"rotten")
    await rig.boot()
    await rig.installed("1.1")


WAYS = [
    Way("fresh", installs("1.1"), "1.1", ("", "1.1"), factory=()),
    Way("first after the factory's", installs("1.1"), "1.1", ("1.0", "1.1")),
    Way("replace", installs("1.2"), "1.2", ("1.1", "1.2"), before=installs("1.1")),
    Way("replace the one before", installs("1.3"), "1.3", ("1.2", "1.3"), before=with_two_versions),
    Way("a misfit", installs("1.2"), "1.1", ("1.1",), before=installs("1.1"), misfits="1.2"),
    Way("a failed trial", installs("1.2"), "1.1", ("1.1",), before=installs("1.1"), wrong="1.2"),
    Way("a failed swap", installs("1.2"), "1.1", ("1.1",), before=installs("1.1"), dead="1.2"),
    Way("a failed probation", installs("1.2"), "1.1", ("1.1",), before=installs("1.1"), faulty="1.2"),
    Way("a fresh one that fails", installs("1.1"), "", ("",), factory=(), faulty="1.1"),
    Way("rollback", lambda rig: rig.updater.rollback(NAME), "1.1", ("1.2", "1.1"), before=with_two_versions),
    Way("rollback to the factory's", lambda rig: rig.updater.rollback(NAME, "factory"), "1.0", ("1.2", "1.0"),
        before=with_two_versions),
    Way("rollback on probation", rolled_back_on_probation, "1.1", ("1.1", "1.2"), before=installs("1.1")),
    Way("downgrade", installs("1.1", allow_downgrade=True), "1.1", ("1.2", "1.1"), before=installs("1.2")),
    Way("nobody confirms", unconfirmed, "1.1", ("1.1",), before=installs("1.1")),
    Way("somebody confirms", confirmed_by_hand, "1.2", ("1.1", "1.2"), before=installs("1.1")),
    Way("a clean stop", stopped_and_started, "1.2", ("1.1", "1.2"), before=installs("1.1")),
    Way("old versions have to go", installs("1.3"), "1.3", ("1.2", "1.3"), before=with_two_versions,
        keep=Keep(versions=1)),
    Way("a damaged version is put back", put_back, "1.1", ("1.0", "1.1"), before=installs("1.1")),
]  # fmt: skip


LEDGERLESS = {"replace the one before", "a failed probation", "rollback", "old versions have to go"}
"""Ways on which cuts also destroy the ledger."""

OFTEN = WAYS if "EDGED_ALL_CUTS" in os.environ else [way for way in WAYS if way.name == "a failed probation"]
"""Ways with cuts after cuts after cuts; all ways take a minute."""


class AtOnce(ThreadPoolExecutor):
    """Executor that calls functions at once on the same thread: the same steps, in a fraction of the time."""

    def submit(self, work, /, *args, **kwargs):
        done = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def play(rig: Rig, act: Act) -> SimulatedDisk:
    """Start a daemon on the present disk, and perform an action."""

    async def playing():
        asyncio.get_running_loop().set_default_executor(AtOnce())
        disk = SimulatedDisk(rig.state)
        rig.settings["disk"] = Disk(disk)
        await rig.boot()
        await act(rig)
        return disk

    return asyncio.run(playing())


async def nothing(rig: Rig) -> None:
    """Let the daemon run until idle."""
    await rig.pass_probation()
    await rig.pass_probation()


def begin(folder: Path, way: Way) -> tuple[Rig, SimulatedDisk]:
    """Go the way once without a cut; the disk collects the states after cuts."""
    rig = Rig(folder, factory=way.factory)
    rig.settings["keep"] = way.keep
    for trait in TRAITS:
        getattr(rig.board, trait).add(getattr(way, trait))
    if way.before is not None:
        play(rig, way.before)
    rig.floor = version_key(rig.ledger.floor)
    disk = play(rig, way.act)
    assert rig.board.version == way.uncut
    assert rig.tree() == rig.tidy_tree()
    assert disk.effects > 8, "nothing was done that could be cut"
    assert disk.after_cut("lost") == read_state(rig.state), "something was done and would be undone by a cut"
    return rig, disk


def go_on(rig: Rig, way: Way, found: State) -> SimulatedDisk:
    """Start a daemon on the state after a cut, and check its promises."""
    write_state(rig.state, found)
    disk = play(rig, nothing)
    assert rig.board.version in way.cut, found
    assert "" in way.cut or "" not in rig.board.answers, found
    assert version_key(rig.ledger.floor) >= rig.floor, found
    assert not rig.tree() - rig.tidy_tree(), found
    return disk


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_after_a_cut_a_good_model_serves(tmp_path, way):
    rig, disk = begin(tmp_path, way)
    for found in disk.cuts:
        go_on(rig, way, found)


@pytest.mark.parametrize("way", OFTEN, ids=lambda way: way.name)
def test_however_often_the_power_goes_a_good_model_serves(tmp_path, way):
    rig, disk = begin(tmp_path, way)
    cuts = list(disk.cuts)
    for found in cuts:  # the list grows, since the following run may be cut as well
        disk = go_on(rig, way, found)
        cuts += [each for each in disk.cuts if each not in cuts]


LEDGERS = (f"{NAME}/state.json", f"{NAME}/state.copy.json")


@pytest.mark.parametrize("way", [way for way in WAYS if way.name in LEDGERLESS], ids=lambda way: way.name)
def test_a_cut_that_costs_the_ledger_and_its_copy_costs_neither_a_good_model_nor_the_floor(tmp_path, way):
    rig, disk = begin(tmp_path, way)
    for found in disk.cuts:
        known = [ledgers.decode(found[name]) for name in LEDGERS if found.get(name)]
        if known:
            rig.floor = max(version_key(ledger.floor) for ledger in known)
            go_on(rig, way, {**found, **{name: bytes(500) for name in LEDGERS if name in found}})
