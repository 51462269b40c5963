import pytest
from msgspec.structs import replace

from edged.core.errors import BundleError, ControlError, StoreError
from edged.core.ledger import (
    EMPTY,
    MAX_REJECTED,
    Candidate,
    Installed,
    Rejection,
    admit,
    decode,
    encode,
    forgiven,
    given_back,
    offered,
    recovered,
    rejected,
    rolled_back,
    versions_to_serve,
    vouched,
)
from edged.models.store import MAX_LEDGER_BYTES

OLD, ACTIVE, NEW = "a" * 64, "b" * 64, "c" * 64
VERSIONS = {
    OLD: Installed(version="1.0", confirmed=True),
    ACTIVE: Installed(version="1.1", confirmed=True),
}
LEDGER = replace(EMPTY, active=ACTIVE, previous=OLD, floor="1.1", versions=VERSIONS)


def under_way(phase="probation", **others):
    candidate = Candidate(digest=NEW, phase=phase, run="this", boots_left=1, **others)
    return replace(LEDGER, candidate=candidate, versions={**VERSIONS, NEW: Installed(version="1.2")})


def test_of_a_lost_ledger_the_versions_tell_what_was_active_and_the_highest_floor():
    found = {NEW: Installed(version="1.10"), ACTIVE: Installed(version="1.9")}
    assert recovered(found, ACTIVE) == replace(
        EMPTY,
        active=ACTIVE,
        floor="1.10",
        versions={ACTIVE: Installed(version="1.9", confirmed=True), NEW: Installed(version="1.10")},
    )


def test_of_a_lost_ledger_without_its_active_version_nothing_is_active():
    assert recovered({NEW: Installed(version="1.2")}, ACTIVE) == replace(
        EMPTY, floor="1.2", versions={NEW: Installed(version="1.2")}
    )
    assert recovered({}, None) == EMPTY


def test_it_is_written_as_it_is_read():
    ledger = rejected(under_way(confirm_within=9.5), OLD, "it is old")
    assert decode(encode(ledger)) == ledger


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\0" * 500,
        b"{}",
        encode(LEDGER)[:-30],
        encode(LEDGER).replace(b'"active": "b', b'"active": "../b'),
        encode(LEDGER).replace(b'"active": "b', b'"active": "d'),
        encode(under_way()).replace(b"c" * 64, b"b" * 64),
    ],
)
def test_a_damaged_one_is_refused(damaged):
    with pytest.raises(StoreError, match=r"state\.json"):
        decode(damaged)


def test_what_stands_is_the_active_one_then_the_previous_then_the_factorys_then_what_was_ever_confirmed():
    factory = ("e" * 64, "f" * 64)
    third = replace(LEDGER, versions={NEW: Installed(version="0.9", confirmed=True), **VERSIONS})
    assert list(dict.fromkeys(versions_to_serve(third, factory))) == [ACTIVE, OLD, *factory, NEW]
    assert list(dict.fromkeys(versions_to_serve(replace(third, active=None), factory))) == [*factory, OLD, ACTIVE, NEW]


def test_what_was_rejected_or_never_confirmed_does_not_stand():
    ledger = replace(rejected(under_way(), OLD, "no"), previous=None)
    assert list(versions_to_serve(ledger, ())) == [ACTIVE, ACTIVE]


# Admission


def refusal(kind, ledger, version="1.2", active="1.1", **options):
    with pytest.raises(kind) as caught:
        admit(ledger, "motion", NEW, version, active, **{"allow_downgrade": False, **options})
    return str(caught.value)


@pytest.mark.parametrize("version", ["1.1", "1.1.0", "1.2", "1.10"])
def test_a_version_that_is_no_older_comes_in(version):
    admit(LEDGER, "motion", NEW, version, "1.1", allow_downgrade=False)


@pytest.mark.parametrize("floor", ["0", "1.1", "1.1.0"])
def test_an_older_version_comes_in_only_if_that_is_wanted(floor):
    ledger = replace(LEDGER, floor=floor)
    assert refusal(BundleError, ledger, "1.0.9", "1.1").endswith(
        " and versions only go up (to downgrade on purpose, add --allow-downgrade)"
    )
    admit(ledger, "motion", NEW, "1.0.9", "1.1", allow_downgrade=True)


def test_a_version_rolled_back_from_counts_and_the_refusal_says_so():
    assert refusal(BundleError, LEDGER, "1.0.9", "1.0") == (
        "motion 1.0.9 is older than 1.1, and versions only go up (1.1, the highest version here so far, counts "
        "although 1.0 serves now; to downgrade on purpose, add --allow-downgrade)"
    )


def test_what_was_rejected_is_refused_at_once():
    ledger = replace(LEDGER, rejected={NEW: Rejection(version="1.2", reason="it crashed")})
    assert refusal(BundleError, ledger, allow_downgrade=True) == (
        "motion 1.2 was rejected on this board: it crashed "
        "(to try the version again, run `edgectl forget motion cccccccccccc`)"
    )


def test_a_pinned_model_stays():
    assert refusal(ControlError, replace(LEDGER, pinned=True)).startswith("motion is pinned to 1.1")


def test_one_version_at_a_time():
    assert refusal(ControlError, under_way("trial")) == (
        "motion 1.2 is under way (trial) (wait for the end, or cancel with `edgectl rollback motion`)"
    )


def test_a_version_that_comes_again_is_still_a_confirmed_one():
    ledger = offered(LEDGER, OLD, Installed(version="1.0", origin="again"), 0.0)
    assert list(ledger.versions) == [ACTIVE, OLD]
    assert ledger.versions[OLD] == Installed(version="1.0", origin="again", confirmed=True)


# A clean stop


def test_a_run_that_ends_well_is_given_back():
    spared = given_back(under_way(), "this").candidate
    assert (spared.run, spared.boots_left) == ("", 2)


@pytest.mark.parametrize("ledger", [LEDGER, replace(under_way(), candidate=Candidate(digest=NEW, run="another"))])
def test_a_run_that_was_not_counted_is_not_given_back(ledger):
    assert given_back(ledger, "this") == ledger


def test_a_run_in_which_nobody_confirmed_is_not_given_back():
    ledger = under_way(confirm_within=9.0)
    assert given_back(ledger, "this") == ledger


# Operators


def test_to_vouch_for_a_candidate_leaves_it_on_probation():
    assert vouched(under_way(confirm_within=9.0), "motion") == under_way()


@pytest.mark.parametrize("ledger", [LEDGER, under_way(), under_way("trial", confirm_within=9.0)])
def test_there_must_be_something_to_vouch_for(ledger):
    with pytest.raises(ControlError, match="motion has no version to confirm"):
        vouched(ledger, "motion")


@pytest.mark.parametrize("to", ["", "1.0", "aaaaaaaa"])
def test_rolled_back_to_the_one_before(to):
    ledger = rolled_back(LEDGER, "motion", to)
    assert (ledger.active, ledger.previous, ledger.floor) == (OLD, None, "1.1")
    assert ledger.rejected == {ACTIVE: Rejection(version="1.1", reason="an operator rolled it back")}
    assert ledger.versions == VERSIONS


def test_rolled_back_to_the_factorys():
    ledger = rolled_back(LEDGER, "motion", "factory")
    assert (ledger.active, ledger.previous) == (None, OLD)


def test_there_and_back_again():
    back = rolled_back(rolled_back(LEDGER, "motion"), "motion", "1.1")
    assert back.active == ACTIVE
    assert list(back.rejected) == [OLD]


@pytest.mark.parametrize("to", ["", "1.1", "bbbbbbbb"])
def test_rolled_back_from_a_candidate(to):
    ledger = rolled_back(under_way(), "motion", to)
    assert (ledger.active, ledger.previous, ledger.candidate) == (ACTIVE, OLD, None)
    assert list(ledger.rejected) == [NEW]


def test_rolled_back_from_a_candidate_to_the_factorys_that_were_before_it():
    before = replace(under_way(), active=None, previous=None)
    assert rolled_back(before, "motion", "factory") == rolled_back(before, "motion")
    assert rolled_back(before, "motion").candidate is None


def test_rolled_back_from_a_candidate_and_further():
    ledger = rolled_back(under_way(), "motion", "factory")
    assert (ledger.active, ledger.previous, ledger.candidate) == (None, OLD, None)
    assert list(ledger.rejected) == [NEW, ACTIVE]


@pytest.mark.parametrize("to", ["1.2", "cccccccc", "aaaa", "9", "../1.0"])
def test_only_to_what_was_confirmed_here(to):
    with pytest.raises(ControlError, match=r"no confirmed version .* \(there are: factory, 1\.0, 1\.1\)"):
        rolled_back(under_way(), "motion", to)


@pytest.mark.parametrize(
    ("ledger", "to", "has_factory", "why"),
    [
        (EMPTY, "", True, r"motion cannot be rolled back: no other version was confirmed on this board \(install"),
        (replace(LEDGER, previous=None), "", False, r"without a version number \(name a .* \(available: 1\.0\)\)"),
        (LEDGER, "1.1", True, r"motion is already at 1\.1 \(list the versions: edgectl models\)"),
        (EMPTY, "factory", True, "motion is already at the factory's version"),
    ],
)
def test_there_must_be_something_to_go_back_to(ledger, to, has_factory, why):
    with pytest.raises(ControlError, match=why):
        rolled_back(ledger, "motion", to, has_factory=has_factory)


def test_a_model_that_the_factory_has_nothing_of_cannot_go_back_to_that():
    with pytest.raises(ControlError, match="there is no other factory version of motion"):
        rolled_back(LEDGER, "motion", "factory", has_factory=False)


def test_a_pinned_model_is_not_rolled_back():
    with pytest.raises(ControlError, match="motion is pinned"):
        rolled_back(replace(LEDGER, pinned=True), "motion")


def test_a_rejection_is_forgiven_by_the_beginning_of_its_digest():
    ledger = rejected(rejected(LEDGER, OLD, "no"), ACTIVE, "no")
    assert list(forgiven(ledger, "motion", "aaa").rejected) == [ACTIVE]


@pytest.mark.parametrize("digest", ["", "b", "aa0"])
def test_only_what_was_rejected_can_be_forgiven(digest):
    with pytest.raises(ControlError, match=r"0 rejected versions .* aaaaaaaaaaaa"):
        forgiven(rejected(LEDGER, OLD, "no"), "motion", digest)


def test_the_oldest_rejections_are_forgotten():
    digests = [f"{number:064x}" for number in range(MAX_REJECTED)]
    ledger = replace(LEDGER, rejected=dict.fromkeys(digests, Rejection(version="1", reason="no")))
    assert list(rejected(ledger, OLD, "no").rejected)[:: MAX_REJECTED - 1] == [digests[1], OLD]


def test_a_ledger_of_rejections_with_endless_reasons_can_still_be_read():
    versions = {f"{number:064}": Installed(version=f"1.{number}") for number in range(MAX_REJECTED)}
    ledger = replace(EMPTY, versions=versions)
    for digest in versions:
        ledger = rejected(ledger, digest, "\x1b" * 10_000)
    assert decode(encode(ledger)[:MAX_LEDGER_BYTES]) == ledger
