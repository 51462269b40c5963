"""Installs, rollbacks and their ends, judged by the version in service and the ledger."""

import asyncio
import errno
import os
import shutil
import threading

import pytest

import edged.models.bundle
from edged.core import delta
from edged.core.container import read_head
from edged.core.decide import Keep
from edged.core.errors import ControlError, DeviceError, ModelError
from edged.core.ledger import BOOTS
from edged.models.atomic_files import Disk, Kernel
from edged.models.bare_file import Bare
from edged.models.bundle import open_folder
from edged.models.signatures import Trust
from edged.models.store import ModelFolder
from edged.updates import updater as updaters
from edged.updates.jobs import InstallOptions
from tests.bundles import DATA, write_bundle
from tests.containers import MODEL, container
from tests.labelled import relabelled
from tests.updating import NAME, Rig, digest_of, manifest, write_container


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


async def ask(rig, verb, *args):
    """Call a verb of the present daemon's updater."""
    return await getattr(rig.updater, verb)(*args)


def play(rig, *acts):
    """Boot, perform actions in turn, and return the result of the last."""

    async def playing():
        await rig.boot()
        for act in acts:
            result = await act
        return result

    return asyncio.run(playing())


async def begin(rig, version, **options):
    """Install a version up to probation."""
    job = rig.install(version, **options)
    await job.released.wait()
    await rig.updater.settle(NAME)
    return job


# Installing


def test_a_version_that_proves_itself_serves_and_raises_the_floor(rig):
    job = play(rig, rig.installed("1.1"))
    assert (job.state, job.text) == ("done", "colours: version 1.1 is confirmed; version 1.1 serves")
    assert rig.board.answers == ["1.0", "1.1"]
    assert (rig.ledger.active, rig.ledger.previous, rig.ledger.floor) == (digest_of("1.1"), None, "1.1")
    assert rig.model.current() == digest_of("1.1")
    assert [event.id for event in job.events] == [
        "update.verified", "update.unpacked", "update.offered", "update.counted", "update.trying", "update.tried",
        "update.proven", "update.serving", "update.confirmed",
    ]  # fmt: skip
    assert rig.tree() == rig.tidy_tree()


def test_a_version_of_a_new_model_serves(tmp_path):
    rig = Rig(tmp_path, factory=())
    assert play(rig, rig.installed("1.1")).state == "done"
    assert rig.board.answers == ["", "1.1"]


def test_what_is_active_already_is_done_at_once(rig):
    job = play(rig, rig.installed("1.1"), rig.installed("1.1"))
    assert (job.state, job.text) == ("done", "colours 1.1 serves already")
    assert rig.board.trials == ["1.1"]


def test_what_the_factory_made_is_active_already(rig):
    assert play(rig, rig.installed("1.0")).text == "colours 1.0 serves already"
    assert rig.board.trials == []


def test_a_version_that_is_sent_twice_at_once_is_installed_once(rig):
    async def scenario():
        await rig.boot()
        jobs = [rig.install("1.1"), rig.install("1.1")]
        for job in jobs:
            await job.released.wait()
        await rig.pass_probation()
        return [job.state for job in jobs]

    assert asyncio.run(scenario()) == ["done", "done"]
    assert rig.board.trials == ["1.1"]


def test_whoever_comes_second_is_told_whose_terms_hold(rig):
    async def scenario():
        await rig.boot()
        jobs = []
        for confirm_within in (0.0, 600.0, 0.0):
            jobs.append(rig.install("1.1", confirm_within=confirm_within))
            await jobs[-1].released.wait()
        await rig.pass_probation()
        return jobs

    told = [[event.text for event in job.events if event.id == "update.joined"] for job in asyncio.run(scenario())]
    assert told == [[], ["this version is already being installed with --confirm-within 0; your 600 s are ignored"], []]


def test_another_version_has_to_wait(rig):
    async def scenario():
        await rig.boot()
        await begin(rig, "1.1")
        return await rig.installed("1.2")

    job = asyncio.run(scenario())
    assert (job.state, job.text) == ("refused", "colours 1.1 is under way (probation)")
    assert rig.board.version == "1.1"
    assert rig.tree() == rig.tidy_tree()


def test_an_older_version_comes_in_only_if_that_is_wanted(rig):
    refused = play(rig, rig.installed("1.2"), rig.installed("1.1"))
    assert (refused.state, refused.text) == ("refused", "colours 1.1 is older than 1.2, and versions only go up")
    allowed = play(rig, rig.installed("1.1", allow_downgrade=True, asked_by="user 7, process 8"))
    assert allowed.state == "done"
    assert [event.text for event in allowed.events if event.id == "update.downgrade"] == [
        "version 1.1 from a test is a downgrade, allowed by user 7, process 8 with --allow-downgrade"
    ]
    assert (rig.board.version, rig.ledger.floor) == ("1.1", "1.2")


def test_a_version_that_is_older_than_the_factorys_is_refused(rig):
    assert play(rig, rig.installed("0.9")).state == "refused"


def test_what_is_no_container_is_refused(rig):
    async def scenario():
        await rig.boot()
        (rig.folder / "x.edgm").write_text("a letter to the editor")
        job = rig.updater.install(rig.folder / "x.edgm", InstallOptions())
        await job.ended.wait()
        return job

    job = asyncio.run(scenario())
    assert (job.state, job.text) == ("refused", "not a container: the file does not begin with edgm")
    assert list(rig.state.iterdir()) == []


def test_what_is_not_there_has_failed(rig):
    async def scenario():
        await rig.boot()
        job = rig.updater.install(rig.folder / "nothing.edgm", InstallOptions())
        await job.ended.wait()
        return job

    assert asyncio.run(scenario()).state == "failed"


def test_a_damaged_container_is_refused_and_not_held_against_the_version(rig):
    async def scenario():
        await rig.boot()
        file = rig.folder / "damaged.edgm"
        file.write_bytes(container(manifest("1.1"), body=MODEL[:-1] + b"x"))
        job = rig.updater.install(file, InstallOptions())
        await job.ended.wait()
        return job, await rig.installed("1.1")

    damaged, sound = asyncio.run(scenario())
    assert (damaged.state, sound.state) == ("refused", "done")
    assert "are damaged" in damaged.text


def test_what_is_not_signed_is_refused_where_signatures_are_required(rig):
    (rig.folder / "signers").write_text("")
    rig.settings["trust"] = Trust(rig.folder / "signers")
    job = play(rig, rig.installed("1.1"))
    assert (job.state, job.text) == ("refused", "the bundle is not signed")
    assert not (rig.state / NAME / "versions").exists()


def test_a_board_without_a_clock_takes_it_to_be_no_earlier_than_what_it_has_trusted(rig):
    class Notary:
        def __init__(self):
            self.moments = []

        def verify(self, manifest, signatures, now, today):
            self.moments.append(now)
            return ("ann@example.org",)

    notary = rig.settings["trust"] = Notary()

    async def scenario():
        await rig.boot()
        for version, created in (("1.1", 1_900_000_000), ("1.2", 1_800_000_000), ("1.3", 0)):
            write_container(rig.folder, version, created=created)
            await rig.ended(rig.updater.install(rig.folder / f"{version}.edgm", InstallOptions()))

    asyncio.run(scenario())
    assert notary.moments == [0, 1_900_000_000, 1_900_000_000]
    assert {each.signers for each in rig.ledger.versions.values()} == {("ann@example.org",)}


def test_a_version_of_a_day_that_is_yet_to_come_does_not_count_once_the_clock_is_right(rig):
    """The version came in while the board did not know the time; the signer's clock was wrong."""
    times = []

    class Notary:
        def verify(self, manifest, signatures, now, today):
            times.append((now, today))
            return ("ann@example.org",)

    async def scenario():
        synchronised = False
        await rig.boot(trust=Notary(), wall=lambda: 1_800_000_000.0, synchronised=lambda: synchronised)
        for version, created in (("1.1", 2_000_000_000), ("1.2", 1_800_000_100), ("1.3", 0)):
            write_container(rig.folder, version, created=created)
            await rig.ended(rig.updater.install(rig.folder / f"{version}.edgm", InstallOptions()))
            synchronised = True

    asyncio.run(scenario())
    assert times == [(1_800_000_000, None), (1_800_000_000, 1_800_000_000), (1_800_000_100, 1_800_000_000)]


def test_what_does_not_fit_is_refused_and_leaves_nothing(rig):
    rig.board.misfits.add("1.1")
    job = play(rig, rig.installed("1.1"))
    assert (job.state, job.text, job.hint) == ("refused", "colours 1.1 does not fit", "get another board")
    assert list(rig.model.versions.iterdir()) == []
    assert not rig.model.arriving.exists()


def test_a_delta_is_installed_as_the_container_it_stands_for(rig):
    whole = read_head(write_container(rig.folder, "1.1").read_bytes())
    file = rig.folder / "1.1.edgd"
    file.write_bytes(delta.write(whole, digest_of("1.0"), [(delta.SAME, 0, b"")]))

    async def scenario():
        await rig.boot()
        return await rig.ended(rig.updater.install(file, InstallOptions()))

    assert asyncio.run(scenario()).state == "done"
    assert rig.ledger.active == digest_of("1.1")


def test_a_delta_to_what_is_not_there_is_refused(rig):
    whole = read_head(write_container(rig.folder, "1.1").read_bytes())
    file = rig.folder / "1.1.edgd"
    file.write_bytes(delta.write(whole, digest_of("0.9"), [(delta.SAME, 0, b"")]))

    async def scenario():
        await rig.boot()
        return await rig.ended(rig.updater.install(file, InstallOptions()))

    job = asyncio.run(scenario())
    assert (job.state, job.hint) == ("refused", "send the full bundle")
    assert "update.full_needed" in [event.id for event in job.events]
    assert not rig.model.arriving.exists()


def bare(rig, model="float.tflite", version=None, name=NAME):
    """Return a job that installs a bare file."""
    return rig.updater.install(DATA / model, InstallOptions(bare=Bare(model=name, version=version)))


async def bare_ended(rig, *args, **kwargs):
    return await rig.ended(bare(rig, *args, **kwargs))


def test_a_bare_file_inherits_the_contract_of_what_it_replaces(tmp_path):
    rig = Rig(tmp_path, factory=())
    play(rig, rig.installed("1.1"))

    async def scenario():
        await rig.boot()
        return await bare_ended(rig, version="1.4")

    job = asyncio.run(scenario())
    assert (job.state, job.text) == ("done", "colours: version 1.4 is confirmed; version 1.4 serves")
    texts = {event.id: event.text for event in job.events}
    assert texts["update.inherited"] == (
        "version 1.4 inherits the contract and the probation of 1.1, but no golden samples: "
        "the self-test can only prove that the file loads and runs"
    )
    now, before = (open_folder(rig.model.version(digest)).manifest for digest in (rig.ledger.active, digest_of("1.1")))
    assert (now.window, now.labels, now.postprocess) == (before.window, before.labels, before.postprocess)
    assert (now.preprocess, now.probation, now.golden) == (before.preprocess, before.probation, None)


def test_a_bare_file_is_the_next_version_and_always_the_same(rig):
    other = rig.folder / "other.tflite"
    other.write_bytes(MODEL + b"a trailer that makes it another file")

    async def scenario():
        await rig.boot()
        await rig.installed("1.1")
        return [await rig.ended(rig.updater.install(other, InstallOptions(bare=Bare(model=NAME)))) for _ in range(2)]

    first, again = asyncio.run(scenario())
    assert (first.state, first.version) == ("done", "1.2")
    assert (again.state, again.text) == ("done", "colours 1.2 serves already")
    assert again.digest == first.digest


def test_a_bare_file_is_above_the_floor_of_what_was_rolled_back(rig):
    other = rig.folder / "other.tflite"
    other.write_bytes(MODEL + b"a trailer that makes it another file")

    async def scenario():
        await rig.boot()
        await rig.installed("1.1")
        await rig.installed("1.4")
        await rig.updater.rollback(NAME)
        return await rig.ended(rig.updater.install(other, InstallOptions(bare=Bare(model=NAME))))

    job = asyncio.run(scenario())
    assert (job.state, job.version) == ("done", "1.5")


def test_a_bare_file_keeps_no_old_labels_against_its_own(tmp_path):
    """Classes in another order: the old labels would be confidently wrong."""
    rig = Rig(tmp_path, factory=())
    write_bundle(rig.factory / NAME / "1.0", model="metadata.tflite")
    file = rig.folder / "other.tflite"
    file.write_bytes(relabelled(["blue", "red", "green"]))

    async def scenario():
        await rig.boot()
        return await rig.ended(rig.updater.install(file, InstallOptions(bare=Bare(model=NAME))))

    job = asyncio.run(scenario())
    assert (job.state, job.version) == ("done", "1.1")
    texts = {event.id: event.text for event in job.events}
    assert texts["update.inherited"].endswith(". The file's own labels (blue, red, green) are used")
    assert open_folder(rig.model.version(rig.ledger.active)).manifest.labels == ("blue", "red", "green")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"model": "int8.tflite"},
            "input 0, 'x', is float32 [1, 4] in colours 1.0, and quantised int8 [1, 4] in the file",
        ),
        ({"model": "two_by_two.tflite"}, "colours 1.0 has 1 input tensors, and the file 2"),
        ({"model": "make_models.py"}, "not a .tflite file: it has no TFL3 in its head"),
        ({"version": "0.9"}, "colours 0.9 is older than 1.0, and versions only go up"),
        ({"name": "colors"}, "there is no model 'colors'"),
    ],
)
def test_a_bare_file_that_may_not_come_in(rig, options, text):
    async def scenario():
        await rig.boot()
        job = bare(rig, **options)
        await job.ended.wait()
        return job

    job = asyncio.run(scenario())
    assert (job.state, job.text) == ("refused", text)
    assert rig.board.version == "1.0"


def test_a_bare_file_where_signatures_are_required(rig):
    (rig.folder / "signers").write_text("")
    rig.settings["trust"] = Trust(rig.folder / "signers")

    async def scenario():
        await rig.boot()
        job = bare(rig)
        await job.ended.wait()
        return job

    job = asyncio.run(scenario())
    assert (job.state, job.text) == (
        "refused",
        "a bare model file cannot be signed, and only signed versions may come in here",
    )
    assert "edgectl pack" in job.hint
    assert "edgectl sign" in job.hint


def test_a_version_that_no_pipeline_uses_is_confirmed_once_it_has_proved_itself(rig):
    async def scenario():
        await rig.boot()
        rig.board.used = False
        return await rig.installed("1.1")

    job = asyncio.run(scenario())
    assert (job.state, job.text) == ("installed", "colours: version 1.1 is confirmed; no pipeline uses it")
    assert rig.board.trials == ["1.1"]


SUSPENDED = (
    "the probation of version 1.1 is suspended: no pipeline uses colours any more "
    "(name colours in a pipeline again, or: edgectl rollback colours)"
)


def test_a_pipeline_that_is_taken_away_suspends_the_probation_until_it_is_back(rig):
    def suspensions() -> list[str]:
        return [event.text for event in rig.events if event.id == "update.suspended"]

    async def take_away() -> None:
        rig.board.used = False
        for _ in range(2):
            rig.clock.now += 3600
            await rig.updater.settle(NAME)

    async def give_back() -> None:
        rig.board.used = True
        rig.board.load(rig.board.serves)
        await rig.updater.settle(NAME)

    play(rig, begin(rig, "1.1"), take_away())
    assert (suspensions(), rig.ledger.floor, rig.ledger.active) == ([SUSPENDED], "0", None)
    play(rig, take_away())  # the next run of the daemon knows of the pipeline
    assert (suspensions(), rig.ledger.floor, rig.ledger.active) == ([SUSPENDED] * 2, "0", None)
    play(rig, give_back(), rig.pass_probation())
    assert (rig.ledger.floor, rig.ledger.active) == ("1.1", digest_of("1.1"))


def test_a_reload_that_rebuilds_a_pipeline_does_not_shorten_the_probation_silently(rig):
    async def reload() -> list[str]:
        rig.clock.now += 40
        await rig.updater.settle(NAME)
        async with rig.updater.held([NAME]):
            rig.board.load(rig.board.serves)
        for _ in range(2):
            rig.clock.now += 15
            await rig.updater.settle(NAME)
        return [event.text for event in rig.events if event.id == "update.rewatched"]

    texts = play(rig, begin(rig, "1.1"), reload())
    assert texts == [
        "the probation of version 1.1 continues from 0 s, since a pipeline of colours was rebuilt or removed"
    ]
    assert rig.ledger.floor == "0"
    play(rig, rig.pass_probation())
    assert rig.ledger.floor == "1.1"


def test_a_suspended_probation_can_be_ended_by_going_back(rig):
    async def scenario() -> None:
        await rig.boot()
        job = await begin(rig, "1.1")
        rig.board.used = False
        await rig.updater.settle(NAME)
        await rig.updater.rollback(NAME)
        await job.ended.wait()

    asyncio.run(scenario())
    assert (rig.ledger.candidate, rig.ledger.floor) == (None, "0")
    assert digest_of("1.1") in rig.ledger.rejected


def test_while_it_is_held_nothing_happens(rig):
    async def scenario():
        await rig.boot()
        await begin(rig, "1.1")
        async with rig.updater.held([NAME]):
            rig.board.load(rig.store.find(NAME))
            settling = asyncio.create_task(rig.updater.settle(NAME))
            await asyncio.sleep(0)
            during = rig.board.version
        await settling
        return during, rig.board.version

    assert asyncio.run(scenario()) == ("1.0", "1.1")


def test_a_reload_does_not_wait_for_a_version_that_loads_for_long(rig, monkeypatch):
    monkeypatch.setattr(updaters, "RELOAD_SECONDS", 0.0)

    async def scenario():
        await rig.boot()
        loading, loaded = asyncio.Event(), asyncio.Event()
        swap = rig.board.swap

        async def swap_slowly(model, bundle):
            loading.set()
            await loaded.wait()
            await swap(model, bundle)

        rig.board.swap = swap_slowly
        async with rig.updater.held([NAME]):
            rig.board.load(None)
        during = rig.board.serves
        await loading.wait()
        loaded.set()
        await rig.updater.settle(NAME)
        return during, rig.board.version

    assert asyncio.run(scenario()) == (None, "1.0")


def test_what_did_not_serve_has_another_chance_after_it_was_held(rig):
    play(rig, rig.installed("1.1"))
    rig.board.dead.add("1.1")

    async def scenario():
        await rig.boot()
        rig.board.load(None)
        await rig.updater.settle(NAME)
        async with rig.updater.held([NAME]):
            rig.board.dead.clear()
            rig.board.load(rig.store.find(NAME))

    asyncio.run(scenario())
    assert rig.board.answers == ["1.1", "", "1.0", "1.1"]


# Failing


@pytest.mark.parametrize(
    ("trait", "state", "reason"),
    [
        ("wrong", "failed", "it answers wrongly"),
        ("dead", "failed", "it does not load"),
        ("faulty", "rolled_back", "500 of 1000 windows ended in an error or in NaN"),
    ],
)
def test_a_bad_version_is_rejected_and_refused_from_then_on(rig, trait, state, reason):
    getattr(rig.board, trait).add("1.1")
    job = play(rig, rig.installed("1.1"))
    assert (job.state, job.text) == (state, f"colours: version 1.1 is rejected: {reason}; version 1.0 serves")
    assert rig.board.version == "1.0"
    assert rig.ledger.floor == "0"
    assert rig.ledger.versions == {}

    again = play(rig, rig.installed("1.1"))
    assert (again.state, again.text) == ("refused", f"colours 1.1 was rejected on this board: {reason}")
    assert rig.board.trials == []

    getattr(rig.board, trait).clear()
    assert play(rig, ask(rig, "forget_rejection", NAME, digest_of("1.1")[:8]), rig.installed("1.1")).state == "done"


def test_the_old_version_serves_on_while_the_new_one_does_not_answer(rig):
    rig.board.dead.add("1.1")
    play(rig, rig.installed("1.1"))
    assert rig.board.answers == ["1.0"]


def test_a_version_that_could_not_be_tried_is_not_rejected(rig):
    async def scenario():
        await rig.boot()
        rig.board.helpless = True
        failed = await rig.installed("1.1")
        rig.board.helpless = False
        return failed, await rig.installed("1.1")

    failed, done = asyncio.run(scenario())
    assert (failed.state, done.state) == ("failed", "done")
    assert "no child could be started" in failed.text


def test_a_version_whose_trial_was_hindered_is_not_rejected(rig):
    async def scenario():
        await rig.boot()
        rig.board.hindered.add("1.1")
        failed = await rig.installed("1.1")
        rig.board.hindered.clear()
        return failed, await rig.installed("1.1")

    failed, done = asyncio.run(scenario())
    assert (failed.state, done.state) == ("failed", "done")
    assert failed.text == "colours: version 1.1 is reverted: somebody else has the device; version 1.0 serves"


@pytest.mark.parametrize("error", [DeviceError("it is unplugged"), ModelError("there is no memory", retryable=True)])
def test_what_is_no_fault_of_the_version_is_not_held_against_it(rig, error):
    async def scenario():
        await rig.boot()
        rig.board.troubles["1.1"] = error
        failed = await rig.installed("1.1")
        rig.board.troubles.clear()
        return failed, await rig.installed("1.1")

    failed, done = asyncio.run(scenario())
    assert (failed.state, done.state) == ("failed", "done")
    assert failed.text == f"colours: version 1.1 is reverted: {error.message}; version 1.0 serves"


def test_where_nothing_serves_what_may_pass_is_tried_again(rig):
    async def scenario():
        await rig.boot()
        rig.board.troubles["1.0"] = ModelError("there is no memory", retryable=True)
        rig.board.load(None)
        versions = []
        for seconds in (0, 60, 119, 1):
            if seconds == 119:
                rig.board.troubles.clear()
            rig.clock.now += seconds
            await rig.updater.settle(NAME)
            versions.append(rig.board.version)
        return versions

    assert asyncio.run(scenario()) == ["", "", "", "1.0"]


def test_where_nothing_could_be_opened_that_is_tried_again(rig, monkeypatch):
    sound = edged.models.bundle.file_sha256

    def read(file):
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario():
        await rig.boot()
        monkeypatch.setattr(edged.models.bundle, "file_sha256", read)
        rig.board.load(None)
        await rig.updater.settle(NAME)
        monkeypatch.setattr(edged.models.bundle, "file_sha256", sound)
        before = rig.board.version
        rig.clock.now += 60
        await rig.updater.settle(NAME)
        return before, rig.board.version

    assert asyncio.run(scenario()) == ("", "1.0")


def test_a_bug_of_the_board_is_a_fault_and_not_an_end(rig):
    class Buggy(type(rig.board)):
        async def swap(self, model, bundle):
            raise RuntimeError("a bug")

    async def scenario():
        await rig.boot()
        rig.board.__class__ = Buggy
        return await rig.installed("1.1")

    job = asyncio.run(scenario())
    assert job.state == "failed"
    assert "RuntimeError: a bug" in job.text


# Runs of the daemon


@pytest.mark.parametrize("phase", ["trial", "probation"])
def test_a_version_that_takes_the_daemon_down_is_rejected_in_the_end(rig, phase):
    rig.board.deadly = phase

    async def dies():
        rig.power_on()
        living, dying = asyncio.create_task(live()), asyncio.create_task(rig.board.death.wait())
        await asyncio.wait([living, dying], return_when=asyncio.FIRST_COMPLETED)
        return dying.done()

    async def live():
        await rig.updater.start()
        if rig.ledger.candidate is None and not rig.ledger.rejected:
            await rig.install("1.1").ended.wait()

    deaths = 0
    while asyncio.run(dies()):
        deaths += 1
    assert deaths == BOOTS
    assert rig.board.version == "1.0"
    reason = f"the daemon or the board went down {BOOTS} times during its {phase}"
    assert rig.ledger.rejected[digest_of("1.1")].reason == reason
    assert rig.tree() == rig.tidy_tree()


def test_a_run_is_counted_on_disk_before_the_candidate_is_loaded_in_it(rig):
    play(rig, begin(rig, "1.1"))
    counted = []

    class Looking(type(rig.board)):
        async def swap(self, model, bundle):
            counted.append(rig.ledger.candidate.boots_left)
            await super().swap(model, bundle)

    async def boot_again():
        rig.power_on()
        rig.board.__class__ = Looking
        await rig.updater.start()

    for _ in range(2):
        asyncio.run(boot_again())
    assert counted == [1, 0]


def test_clean_stops_are_not_held_against_a_version(rig):
    play(rig, begin(rig, "1.1"), ask(rig, "stop"))
    for _ in range(BOOTS + 1):
        play(rig, ask(rig, "stop"))
    assert rig.board.version == "1.1"
    play(rig, rig.pass_probation())
    assert rig.ledger.active == digest_of("1.1")


def test_an_update_goes_on_in_the_next_run_under_a_job_of_its_own(rig):
    play(rig, begin(rig, "1.1"))

    async def scenario():
        await rig.boot()
        (job,) = rig.updater.jobs()
        assert (job.model, job.version, job.digest, job.state) == (NAME, "1.1", digest_of("1.1"), "running")
        await rig.pass_probation()
        return job

    assert asyncio.run(scenario()).state == "done"


def test_it_watches_by_itself(rig):
    async def scenario():
        await rig.boot()
        job = await begin(rig, "1.1")
        rig.clock.now += 61
        watching = asyncio.create_task(rig.updater.run())
        await asyncio.wait_for(job.ended.wait(), 120)
        watching.cancel()
        return job

    assert asyncio.run(scenario()).state == "done"


def test_what_is_asked_once_a_run_has_ended_is_to_be_asked_again(rig):
    async def scenario():
        await rig.boot()
        await begin(rig, "1.1")
        await rig.updater.stop()
        await rig.updater.settle(NAME)
        await rig.updater.pin(NAME, True)

    with pytest.raises(ControlError, match="the daemon is stopping"):
        asyncio.run(scenario())
    assert rig.ledger.candidate.boots_left == BOOTS


def test_a_stop_keeps_the_ledger_that_is_being_written(rig, monkeypatch):
    written, go = threading.Event(), threading.Event()
    write = ModelFolder.write

    def slow_write(*args):
        write(*args)
        written.set()
        go.wait()

    async def scenario():
        await rig.boot()
        await begin(rig, "1.1")
        monkeypatch.setattr(ModelFolder, "write", slow_write)
        rig.clock.now += 61
        running = asyncio.create_task(rig.updater.run())
        await asyncio.to_thread(written.wait)
        running.cancel()
        stopping = asyncio.create_task(rig.updater.stop())
        await asyncio.sleep(0)
        go.set()
        await stopping

    asyncio.run(scenario())
    assert (rig.ledger.active, rig.ledger.candidate) == (digest_of("1.1"), None)


def test_a_run_ends_though_a_model_is_held(rig, monkeypatch):
    monkeypatch.setattr(updaters, "STOP_SECONDS", 0.05)

    async def scenario():
        await rig.boot()
        await begin(rig, "1.1")
        async with rig.updater.held([NAME]):
            await rig.updater.stop()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert rig.ledger.candidate.boots_left == BOOTS - 1


def test_whoever_runs_it_is_let_go_while_the_disk_hangs(rig, monkeypatch):
    looking, hanging = threading.Event(), threading.Event()

    def present(_shelf):
        looking.set()
        hanging.wait()
        return {}

    async def scenario():
        await rig.boot()
        await begin(rig, "1.1")
        monkeypatch.setattr(updaters, "STOP_SECONDS", 0.05)
        monkeypatch.setattr(ModelFolder, "present", present)
        running = asyncio.create_task(rig.updater.run())
        await asyncio.to_thread(looking.wait)
        running.cancel()
        await asyncio.wait([running], timeout=120)
        over = running.done()
        if over:
            await rig.updater.stop()
        hanging.set()
        return over

    assert asyncio.run(scenario())


def test_a_run_ends_while_somebody_asks_for_the_first_time(tmp_path):
    rig = Rig(tmp_path)
    write_container(tmp_path, "1.1")

    async def scenario():
        await rig.boot()
        await rig.installed("1.1")
        shutil.copytree(rig.factory / NAME, rig.factory / "shapes")
        async with rig.updater.held([NAME]):
            stopping = asyncio.create_task(rig.updater.stop())
            await asyncio.sleep(0)
            await rig.updater.models()
        await stopping

    asyncio.run(scenario())


# Confirmation by an operator


def test_what_nobody_confirms_is_reverted_and_may_come_again(rig):
    async def scenario():
        await rig.boot()
        job = await begin(rig, "1.1", confirm_within=100)
        rig.clock.now += 99
        await rig.updater.settle(NAME)
        serving = rig.board.version
        rig.clock.now += 1
        await rig.updater.settle(NAME)
        return serving, job, await begin(rig, "1.1")

    serving, reverted, again = asyncio.run(scenario())
    assert serving == "1.1"
    assert (reverted.state, reverted.text) == (
        "rolled_back",
        "colours: version 1.1 is reverted: no operator confirmed it within 100 s; version 1.0 serves",
    )
    assert again.state == "running"


def test_what_is_confirmed_in_time_stays(rig):
    play(rig, begin(rig, "1.1", confirm_within=100), ask(rig, "confirm", NAME), rig.pass_probation())
    assert rig.ledger.active == digest_of("1.1")


def test_what_nobody_confirmed_before_the_daemon_went_is_reverted(rig):
    play(rig, begin(rig, "1.1", confirm_within=100))
    play(rig, rig.pass_probation())
    assert (rig.board.version, rig.ledger.candidate) == ("1.0", None)


def test_there_must_be_something_to_confirm(rig):
    with pytest.raises(ControlError, match="colours has no version to confirm"):
        play(rig, ask(rig, "confirm", NAME))


# Operators


def test_a_rollback_needs_nothing_but_the_board(rig):
    play(rig, rig.installed("1.1"), rig.installed("1.2"), ask(rig, "rollback", NAME))
    assert rig.board.answers[-2:] == ["1.2", "1.1"]
    assert (rig.ledger.active, rig.ledger.floor) == (digest_of("1.1"), "1.2")
    play(rig, ask(rig, "rollback", NAME))
    assert rig.board.version == "1.0"


def test_a_rollback_ends_a_probation(rig):
    async def scenario():
        await rig.boot()
        job = await begin(rig, "1.1")
        await rig.updater.rollback(NAME)
        return job

    job = asyncio.run(scenario())
    assert (job.state, job.text) == ("rolled_back", "colours: an operator rolled colours back; version 1.0 serves")


def test_a_rollback_to_what_does_not_serve_any_more_says_so_and_serves_what_it_can(rig):
    play(rig, rig.installed("1.1"), rig.installed("1.2"))
    rig.board.dead.add("1.1")
    with pytest.raises(ModelError, match=r"colours 1\.1 does not serve: it does not load"):
        play(rig, ask(rig, "rollback", NAME))
    assert rig.board.version == "1.0"


def test_nothing_is_given_up_for_a_factory_version_that_is_not_sound(rig):
    async def scenario():
        await rig.boot()
        await rig.installed("1.1")
        (rig.factory / NAME / "1.0" / "model.tflite").write_bytes(b"rotten")
        with pytest.raises(ModelError, match=r"is unchanged, since no factory version can be used: .* 6 bytes"):
            await rig.updater.rollback(NAME)

    asyncio.run(scenario())
    assert rig.board.version == "1.1"
    assert (rig.ledger.active, rig.ledger.rejected) == (digest_of("1.1"), {})


def test_a_rollback_to_the_factory_version_that_serves_already_changes_nothing(rig):
    async def scenario():
        await rig.boot()
        await rig.installed("1.1")
        await rig.installed("1.0", allow_downgrade=True)
        with pytest.raises(ControlError, match="there is no other factory version of colours"):
            await rig.updater.rollback(NAME, "factory")

    asyncio.run(scenario())
    assert (rig.board.version, rig.ledger.rejected) == ("1.0", {})


def test_a_pinned_model_stays_with_what_it_has(rig):
    job = play(rig, ask(rig, "pin", NAME, True), rig.installed("1.1"))
    assert (job.state, job.text) == ("refused", "colours is pinned to 1.0")
    assert play(rig, ask(rig, "pin", NAME, False), rig.installed("1.1")).state == "done"


def test_a_model_is_not_pinned_while_another_version_is_under_way(rig):
    async def scenario():
        await rig.boot()
        await begin(rig, "1.1")
        with pytest.raises(ControlError, match=r"colours 1\.1 is under way \(probation\)"):
            await rig.updater.pin(NAME, True)

    asyncio.run(scenario())
    assert not rig.ledger.pinned


def test_a_model_of_which_nothing_is_here_cannot_be_pinned(tmp_path):
    rig = Rig(tmp_path, factory=())
    with pytest.raises(ControlError, match=r"colours has no version to be pinned to \(bring one"):
        play(rig, ask(rig, "pin", NAME, True))


@pytest.mark.parametrize("name", ["shapes", "", "../factory"])
def test_there_is_nothing_to_ask_of_a_model_that_is_not_there(rig, name):
    with pytest.raises(ControlError, match=r"there is no model .* \(choose one of: colours\)"):
        play(rig, ask(rig, "pin", name, True))


def test_it_reports_how_every_model_stands(rig):
    async def scenario():
        await rig.boot()
        await rig.installed("1.1")
        return await rig.updater.models()

    (report,) = asyncio.run(scenario())
    assert (report.name, report.serving, report.factory) == (NAME, digest_of("1.1"), {digest_of("1.0"): "1.0"})
    assert report.ledger == rig.ledger
    assert report.unfit == {}


# Damage


def damage(rig, version):
    (rig.model.version(digest_of(version)) / "model.tflite").write_bytes(b"rotten")


def test_damaged_versions_are_passed_over_one_after_another(rig):
    play(rig, rig.installed("1.1"), rig.installed("1.2"))
    serving = []
    for spoil in (
        lambda: None,
        lambda: damage(rig, "1.2"),
        lambda: damage(rig, "1.1"),
        lambda: (rig.factory / NAME / "1.0" / "model.tflite").write_bytes(b"rotten"),
    ):
        spoil()
        play(rig, rig.pass_probation())
        serving.append(rig.board.version)
    assert serving == ["1.2", "1.1", "1.0", ""]
    assert rig.ledger.active == digest_of("1.2")


def test_a_version_on_a_bad_sector_is_passed_over_like_any_damaged_one(rig, monkeypatch):
    play(rig, rig.installed("1.1"))
    sound = edged.models.bundle.file_sha256
    bad = (rig.model.version(digest_of("1.1")) / "model.tflite").stat().st_ino

    def read(file):
        if os.fstat(file.fileno()).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return sound(file)

    monkeypatch.setattr(edged.models.bundle, "file_sha256", read)
    play(rig, rig.pass_probation())
    assert rig.board.version == "1.0"


def test_a_damaged_version_is_put_back_when_it_comes_again(rig):
    play(rig, rig.installed("1.1"))
    damage(rig, "1.1")
    job = play(rig, rig.installed("1.1"))
    assert (job.state, job.text) == ("done", "colours 1.1 serves already")
    assert rig.board.version == "1.1"


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"{}", None])
def test_a_ledger_that_is_lost_is_read_from_its_copy(rig, content):
    play(rig, rig.installed("1.1"))
    file = rig.state / NAME / "state.json"
    file.unlink() if content is None else file.write_bytes(content)
    play(rig, rig.installed("1.2"))
    assert (rig.ledger.active, rig.ledger.previous) == (digest_of("1.2"), digest_of("1.1"))


def test_a_copy_that_is_lost_is_there_again_after_a_start(rig):
    play(rig, rig.installed("1.1"))
    files = [rig.state / NAME / name for name in ("state.json", "state.copy.json")]
    whole = files[0].read_bytes()
    for lost in files:
        lost.write_bytes(b"\0" * 4096)
        play(rig, rig.pass_probation())
        assert [file.read_bytes() for file in files] == [whole, whole]


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, None])
def test_without_any_ledger_the_active_version_serves_on_and_the_floor_stays(rig, content):
    play(rig, rig.installed("1.1"), rig.installed("1.3"), ask(rig, "rollback", NAME))
    assert (rig.ledger.active, rig.ledger.floor) == (digest_of("1.1"), "1.3")
    for name in ("state.json", "state.copy.json"):
        file = rig.state / NAME / name
        file.unlink() if content is None else file.write_bytes(content)
    job = play(rig, rig.installed("1.2"))
    assert rig.board.answers[0] == rig.board.version == "1.1"
    assert (job.state, job.text) == ("refused", "colours 1.2 is older than 1.3, and versions only go up")
    assert rig.tree() == rig.tidy_tree()


def test_without_any_ledger_a_damaged_active_version_is_stood_in_for(rig):
    play(rig, rig.installed("1.1"))
    (rig.model.version(digest_of("1.1")) / "manifest.json").write_bytes(b"{}")
    for name in ("state.json", "state.copy.json"):
        (rig.state / NAME / name).unlink()
    play(rig, rig.installed("1.2"))
    assert rig.board.answers == ["1.0", "1.2"]


def test_a_folder_that_cannot_be_looked_into_is_no_reason_not_to_start(rig):
    play(rig, rig.installed("1.1"))

    async def scenario():
        rig.power_on()
        for name in ("state.json", "state.copy.json"):
            (rig.state / NAME / name).write_bytes(b"")
        shutil.rmtree(rig.model.versions)
        rig.model.versions.write_text("in the way")
        await rig.updater.start()
        said = rig.events[-1].id
        rig.model.versions.unlink()
        await rig.updater.settle(NAME)
        return said

    assert asyncio.run(scenario()) == "update.hindered"
    assert rig.board.version == "1.0"


# A refusing disk


class Failing(Kernel):
    """Disk on which only one effect fails."""

    def __init__(self, number=errno.EIO):
        self.number = number
        self.at = None
        self.count = 0

    def __getattribute__(self, name):
        if name in {"make_folder", "write", "link", "sync_file", "sync_folder", "rename", "remove_file"}:
            self.count += 1
            if self.count == self.at:
                raise OSError(self.number, os.strerror(self.number))
        return super().__getattribute__(name)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_whichever_effect_fails_a_good_version_serves_and_the_next_try_succeeds(tmp_path, number):
    at, reached = 0, True
    while reached:
        at += 1
        folder = tmp_path / str(at)
        rig = Rig(folder)
        play(rig, rig.installed("1.1"))
        failing = Failing(number)

        async def scenario(rig=rig, failing=failing, at=at):
            rig.settings["disk"] = Disk(failing)
            await rig.boot()
            failing.at = at + failing.count
            job = await rig.installed("1.2")
            answers = list(rig.board.answers)
            if job.state != "done":
                assert job.state == "failed"
                job = await rig.installed("1.2")
            return job, answers

        job, answers = asyncio.run(scenario())
        assert job.state == "done", at
        assert set(answers) <= {"1.1", "1.2"}, at
        assert rig.board.version == "1.2", at
        play(rig, rig.pass_probation())
        assert rig.board.version == "1.2"
        assert rig.tree() == rig.tidy_tree(), at
        reached = failing.count >= failing.at
    assert at > 20


class ReadOnly(Kernel):
    """Disk that refuses all changes."""

    def write(self, path, pieces):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_on_a_read_only_disk_what_was_confirmed_serves(rig):
    play(rig, rig.installed("1.1"), begin(rig, "1.2"))
    rig.settings["disk"] = Disk(ReadOnly())
    play(rig, rig.pass_probation())
    assert rig.board.answers == ["1.1"]
    assert rig.events[-1].id == "update.hindered"
    assert "the file system is read-only" in rig.events[-1].text


def test_a_version_that_the_configuration_names_is_not_among_those_that_go(rig):
    async def scenario():
        await rig.boot()
        for version in ("1.1", "1.2", "1.3"):
            await rig.installed(version)
        rig.board.names = "1.1"
        rig.updater.configure(Trust(rig.folder / "signers", required=False), Keep(versions=2))
        await rig.updater.settle(NAME)

    asyncio.run(scenario())
    assert [each.version for each in rig.ledger.versions.values()] == ["1.1", "1.2", "1.3"]
    assert rig.board.version == "1.1"


def test_where_the_configuration_names_a_version_no_other_comes_in_and_none_is_gone_back_to(rig):
    async def scenario():
        await rig.boot()
        await rig.installed("1.1")
        rig.board.names = "1.1"
        job = await rig.installed("1.2")
        with pytest.raises(ControlError, match=r"the configuration keeps colours at version 1\.1 \(delete `version`"):
            await rig.updater.rollback(NAME)
        return job

    job = asyncio.run(scenario())
    assert (job.state, job.text) == ("refused", "the configuration keeps colours at version 1.1")
    assert rig.board.version == "1.1"


def test_no_version_goes_for_one_that_has_no_room_all_the_same(rig, monkeypatch):
    play(rig, *(rig.installed(version) for version in ("1.1", "1.2", "1.3")))
    monkeypatch.setattr(ModelFolder, "free", lambda shelf: 0)
    job = play(rig, rig.installed("1.4"))
    assert "there is no room for colours 1.4" in job.text
    assert [each.version for each in rig.ledger.versions.values()] == ["1.1", "1.2", "1.3"]


def test_old_versions_go_when_there_are_too_many(rig):
    rig.settings["keep"] = Keep(versions=2)
    play(rig, *(rig.installed(version) for version in ("1.1", "1.2", "1.3")))
    assert [each.version for each in rig.ledger.versions.values()] == ["1.2", "1.3"]
    assert rig.tree() == rig.tidy_tree()
