"""The policy of updates: examples to read, and then every combination of facts."""

from itertools import product

import pytest
from msgspec.structs import replace

from edged.core.decide import (
    Keep,
    ModelFacts,
    PointLink,
    Remove,
    ReplaceLedger,
    Serve,
    Try,
    VersionFault,
    decide,
    target,
)
from edged.core.ledger import BOOTS, EMPTY, Candidate, Installed, Rejection
from edged.core.manifest import version_key

FACTORY, OLDER_FACTORY = "f" * 64, "e" * 64
OLD, ACTIVE, NEW = "a" * 64, "b" * 64, "c" * 64
VERSIONS = {
    OLD: Installed(version="1.0", confirmed=True),
    ACTIVE: Installed(version="1.1", confirmed=True),
    NEW: Installed(version="1.2"),
}
PRESENT = {OLD: 100, ACTIVE: 100, NEW: 100}
IDLE = replace(EMPTY, active=ACTIVE, previous=OLD, floor="1.1", versions={OLD: VERSIONS[OLD], ACTIVE: VERSIONS[ACTIVE]})
BAD = VersionFault("rejected", "it answers wrongly")


def under_way(phase, run="this", boots_left=1, confirm_within=0.0, unused=False):
    candidate = Candidate(
        digest=NEW, phase=phase, run=run, boots_left=boots_left, confirm_within=confirm_within, unused=unused
    )
    return replace(IDLE, candidate=candidate, versions=VERSIONS)


def facts(ledger=IDLE, **others):
    usual = {"run": "this", "factory": (FACTORY,), "present": PRESENT, "serving": ACTIVE, "current": ACTIVE}
    if ledger.candidate is None and "present" not in others:
        usual["present"] = {OLD: 100, ACTIVE: 100}
    return ModelFacts(ledger=ledger, **{**usual, **others})


def event(step):
    return step.event if isinstance(step, ReplaceLedger) else step


TRIAL = under_way("trial")
PROBATION = under_way("probation")
UNUSED = under_way("probation", unused=True)

EXAMPLES = [
    # Serving
    ("all is well", facts(), None),
    ("nothing serves yet", facts(serving=""), Serve(ACTIVE)),
    ("something else serves", facts(serving=OLD), Serve(ACTIVE)),
    ("the active version is damaged", facts(unfit={ACTIVE: BAD}), Serve(OLD)),
    ("and serves the previous one", facts(unfit={ACTIVE: BAD}, serving=OLD), None),
    ("the previous one is too", facts(unfit={ACTIVE: BAD, OLD: BAD}), Serve(FACTORY)),
    ("nothing is fit to serve", facts(unfit=dict.fromkeys([ACTIVE, OLD, FACTORY], BAD)), Serve("")),
    ("and nothing does", facts(unfit=dict.fromkeys([ACTIVE, OLD, FACTORY], BAD), serving=""), None),
    ("its folder is gone while it serves", facts(present={OLD: 100}), None),
    ("its folder is gone and it does not serve", facts(present={OLD: 100}, serving=""), Serve(OLD)),
    ("no pipeline uses the model", facts(serving=None), None),
    ("a board that never had an update", facts(EMPTY, present={}, serving="", current=None), Serve(FACTORY)),
    ("the newest of the factory's is damaged",
     facts(EMPTY, present={}, serving="", current=None, factory=(FACTORY, OLDER_FACTORY), unfit={FACTORY: BAD}),
     Serve(OLDER_FACTORY)),
    # The trial
    ("a candidate that was just offered", facts(under_way("trial", run="", boots_left=BOOTS)), "update.counted"),
    ("its run is counted", facts(TRIAL), Try(NEW)),
    ("it passes", facts(TRIAL, trial="good"), "update.proven"),
    ("it fails", facts(TRIAL, trial=BAD), "update.rejected"),
    ("it could not be tried", facts(TRIAL, trial=VersionFault("reverted", "no memory")), "update.reverted"),
    ("it is damaged", facts(TRIAL, trial=VersionFault("damaged", "one byte")), "update.damaged"),
    ("its folder is gone", facts(TRIAL, present={OLD: 100, ACTIVE: 100}), "update.damaged"),
    ("the daemon died in it", facts(under_way("trial", run="before")), "update.counted"),
    ("and has died too often", facts(under_way("trial", run="before", boots_left=0)), "update.rejected"),
    ("nothing serves, so that comes first", facts(TRIAL, serving=""), Serve(ACTIVE)),
    ("its confirmation is not due yet", facts(under_way("trial", run="before", confirm_within=9)), "update.counted"),
    # Probation
    ("it has yet to serve", facts(PROBATION), Serve(NEW)),
    ("it would not serve", facts(PROBATION, unfit={NEW: BAD}), "update.rejected"),
    ("it is watched", facts(PROBATION, serving=NEW), None),
    ("it misbehaves", facts(PROBATION, serving=NEW, watched=BAD), "update.rejected"),
    ("what it did before it served is not held against it", facts(PROBATION, serving="", watched=BAD), Serve(NEW)),
    ("it keeps its limits", facts(PROBATION, serving=NEW, watched="good"), "update.confirmed"),
    ("no pipeline ever used it, so there is nothing to watch", facts(UNUSED, serving=None), "update.confirmed"),
    ("a pipeline uses it after all", facts(UNUSED), "update.used"),
    ("the pipeline that used it was taken away", facts(PROBATION, serving=None), None),
    ("and the operator who confirms it does not end the probation",
     facts(under_way("probation"), serving=None, watched="good", waited=1e6), None),
    ("the daemon died in it", facts(under_way("probation", run="before")), "update.counted"),
    ("until it is counted, the active version serves",
     facts(under_way("probation", run="before"), serving="", barred={ReplaceLedger}), Serve(ACTIVE)),
    ("the daemon died too often", facts(under_way("probation", run="before", boots_left=0)), "update.rejected"),
    # Confirmation by an operator
    ("nobody has confirmed yet",
     facts(under_way("probation", confirm_within=9), serving=NEW, watched="good", waited=8.9), None),
    ("nobody confirms in time",
     facts(under_way("probation", confirm_within=9), serving=NEW, watched="good", waited=9), "update.reverted"),
    ("nobody has confirmed when the daemon starts anew",
     facts(under_way("probation", run="before", confirm_within=9)), "update.reverted"),
    # Order in the folder
    ("litter", facts(litter=("arriving",)), Remove("arriving")),
    ("a version that is in no ledger", facts(present=PRESENT), Remove(f"versions/{NEW}")),
    ("the link is stale", facts(current=OLD), PointLink(ACTIVE)),
    ("the link is of no use", facts(EMPTY, present={}, serving=FACTORY, current=OLD), PointLink(None)),
    ("serving comes before order", facts(litter=("arriving",), serving=""), Serve(ACTIVE)),
    ("what cannot be removed does not hold up the rest",
     facts(litter=("arriving",), current=OLD, barred={Remove}), PointLink(ACTIVE)),
]  # fmt: skip


@pytest.mark.parametrize(("found", "step"), [pytest.param(*rest, id=name) for name, *rest in EXAMPLES])
def test_the_next_step(found, step):
    assert event(decide(found)) == step


def test_a_version_that_is_confirmed_is_active_and_raises_the_floor():
    ledger = decide(facts(PROBATION, serving=NEW, watched="good")).ledger
    assert (ledger.active, ledger.previous, ledger.candidate, ledger.floor) == (NEW, ACTIVE, None, "1.2")
    assert ledger.versions[NEW].confirmed


def test_a_version_that_is_confirmed_below_the_floor_leaves_it_there():
    assert decide(facts(replace(PROBATION, floor="1.10"), serving=NEW, watched="good")).ledger.floor == "1.10"


def test_a_version_that_is_rejected_is_remembered_and_goes():
    step = decide(facts(PROBATION, serving=NEW, watched=BAD))
    assert step.text == "version 1.2 is rejected: it answers wrongly"
    assert step.ledger == replace(IDLE, rejected={NEW: Rejection(version="1.2", reason="it answers wrongly")})


def test_a_version_that_is_reverted_is_kept_and_not_remembered():
    ledger = decide(facts(TRIAL, trial=VersionFault("reverted", "no memory"))).ledger
    kept = replace(VERSIONS[NEW], reverted="no memory")
    assert ledger == replace(IDLE, versions={**VERSIONS, NEW: kept})


def test_a_version_that_is_damaged_goes_and_is_not_remembered():
    assert decide(facts(TRIAL, trial=VersionFault("damaged", "one byte"))).ledger == IDLE


def test_runs_are_counted_down():
    step = decide(facts(under_way("trial", run="before", boots_left=2)))
    assert step.text == "version 1.2 has its trial in run 2 of at most 3 of the daemon"
    assert step.ledger == under_way("trial", run="this", boots_left=1)


def test_a_previous_version_that_is_rejected_is_the_previous_no_more():
    ledger = replace(PROBATION, previous=NEW)
    assert decide(facts(ledger, serving=NEW, watched=BAD)).ledger.previous is None


# Room


def kept(count, **others):
    digests = [f"{number:064x}" for number in range(count)]
    versions = {digest: Installed(version=f"0.{number}", confirmed=True) for number, digest in enumerate(digests)}
    ledger = replace(IDLE, versions={**versions, **IDLE.versions})
    return digests, facts(ledger, present=dict.fromkeys(ledger.versions, 100), **others)


@pytest.mark.parametrize(
    ("keep", "goes"),
    [
        (Keep(versions=5), False),
        (Keep(versions=4), True),
        (Keep(versions=5, bytes=499), True),
        (Keep(versions=5, bytes=500), False),
    ],
)
def test_the_oldest_version_goes_when_there_are_too_many(keep, goes):
    digests, found = kept(3, keep=keep)
    step = decide(found)
    if not goes:
        assert step is None
        return
    assert step.event == "update.retired"
    assert list(step.ledger.versions) == [*digests[1:], OLD, ACTIVE]


def test_a_version_that_the_configuration_names_stays_though_it_is_the_oldest():
    digests, found = kept(2, keep=Keep(versions=1), serving=None)
    found = replace(found, named=frozenset(digests[:1]))
    assert list(decide(found).ledger.versions) == [digests[0], OLD, ACTIVE]


def test_of_the_versions_that_may_serve_those_that_the_configuration_names_do():
    assert decide(facts(serving=ACTIVE, named=frozenset([FACTORY]))) == Serve(FACTORY)
    assert decide(facts(serving=ACTIVE, named=frozenset())) == Serve("")
    assert decide(facts(PROBATION, serving=ACTIVE, named=frozenset([ACTIVE]))) is None


def test_a_version_that_serves_stays_though_it_is_the_oldest():
    digests, found = kept(2, keep=Keep(versions=1), unfit={ACTIVE: BAD, OLD: BAD, FACTORY: BAD}, factory=())
    found = replace(found, serving=digests[1])
    assert list(decide(found).ledger.versions) == [digests[1], OLD, ACTIVE]


def test_active_previous_and_candidate_stay_whatever_they_take():
    assert decide(facts(PROBATION, serving=NEW, keep=Keep(versions=0, bytes=0))) is None


# Whole updates

LEDGERS = [
    replace(
        ledger,
        active=active,
        previous=previous,
        versions={digest: each for digest, each in VERSIONS.items() if digest != NEW or ledger.candidate is not None},
    )
    for ledger, active, previous in product(
        [
            IDLE,
            *(
                under_way(*args)
                for args in product(["trial", "probation"], ["this", "before"], [0, 2], [0.0, 9.0], [False, True])
            ),
        ],
        [None, ACTIVE],
        [None, OLD],
    )
]
ANSWERS = ["open", "good", BAD, VersionFault("damaged", "x"), VersionFault("reverted", "x")]
UNFIT = [set(), {ACTIVE}, {NEW}, {ACTIVE, OLD}, {ACTIVE, OLD, NEW}, {FACTORY, ACTIVE, OLD, NEW}]


def every_combination():
    for ledger, answer, unfit, there, factory, serving, waited, mess in product(
        LEDGERS, ANSWERS, UNFIT, [(OLD, ACTIVE, NEW), (ACTIVE,)], [(), (FACTORY,)],
        ["", ACTIVE, NEW, None], [0.0, 9.0], [False, True],
    ):  # fmt: skip
        yield ModelFacts(
            ledger=ledger,
            run="this",
            factory=factory,
            present=dict.fromkeys(there, 100),
            unfit=dict.fromkeys(unfit, BAD),
            serving=serving,
            trial=answer,
            watched=answer,
            waited=waited,
            current=OLD if mess else ledger.active,
            litter=("arriving", "state.json.aside") if mess else (),
            keep=Keep(versions=1 if mess else 4),
        )


def done(found, step):
    """The facts once a step has been taken, and succeeded."""
    match step:
        case ReplaceLedger(ledger):
            return replace(found, ledger=ledger, trial="open" if ledger.candidate is None else found.trial)
        case Serve(digest):
            return replace(found, serving=digest, waited=0.0)
        case Try():
            return replace(found, trial="good")
        case PointLink(digest):
            return replace(found, current=digest)
        case Remove(path):
            gone = path.removeprefix("versions/")
            present = {digest: size for digest, size in found.present.items() if digest != gone}
            return replace(found, present=present, litter=tuple(each for each in found.litter if each != path))


def hold(found, step):
    """Check the invariants of every step."""
    match step:
        case ReplaceLedger(ledger):
            before = found.ledger
            assert version_key(ledger.floor) >= version_key(before.floor)
            assert ledger.active in (before.active, before.candidate and before.candidate.digest)
            assert before.rejected.keys() <= ledger.rejected.keys()
            assert ledger.active is None or ledger.active in ledger.versions
            if ledger.active != before.active:
                assert found.serving in (ledger.active, None)
                assert found.watched == "good" or (found.serving is None and before.candidate.unused)
        case Serve(digest):
            assert digest not in found.unfit
            candidate = found.ledger.candidate
            if candidate is not None and digest == candidate.digest and digest != found.ledger.active:
                assert (candidate.phase, candidate.run) == ("probation", found.run)
        case Remove(path):
            digest = path.removeprefix("versions/")
            kept = {found.ledger.active, found.ledger.previous, found.serving} & {*found.ledger.versions}
            assert digest not in kept


def check_to_the_end(found):
    """Follow the machine from these facts until no step is left."""
    steps = 0
    while (step := decide(found)) is not None:
        hold(found, step)
        found = done(found, step)
        steps += 1
        assert steps < 20, "it does not come to rest"
    good = {*found.factory, *(found.present.keys() & {found.ledger.active, found.ledger.previous})} - found.unfit.keys()
    assert found.serving is None or found.serving == target(found)
    assert found.serving or found.serving is None or not good
    assert found.current == found.ledger.active
    assert not found.litter
    assert found.present.keys() <= found.ledger.versions.keys()


def test_from_all_facts_it_comes_to_rest_with_the_best_there_is_serving():
    for found in every_combination():
        check_to_the_end(found)


def test_a_disk_that_refuses_everything_does_not_keep_the_best_from_serving():
    for found in every_combination():
        if found.serving == "" and found.trial == "open":
            step = decide(replace(found, barred=frozenset({ReplaceLedger, PointLink, Remove})))
            assert step == Serve(target(found)) if target(found) else not isinstance(step, Serve)
