"""Reload and quarantine of accelerators, by literal times."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.acceleration import (
    KEPT,
    POLL_SECONDS,
    AcceleratorFacts,
    AcceleratorFault,
    AcceleratorRecord,
    AcceleratorStatus,
    AcceleratorStep,
    LoadWaiting,
    Quarantine,
    Release,
    Rules,
    Settle,
    Wait,
    decide,
    device_status,
    failed,
    pardoned,
    pause,
    quarantined,
    settled,
)

RULES = Rules(backoff=1, backoff_max=8, failures=3, within=100)
WELL = AcceleratorRecord()


def fault(time: float, reason: str = "it hung") -> AcceleratorFault:
    return AcceleratorFault(time, "device", reason, "look at its cable")


def faulty(*times: float) -> AcceleratorRecord:
    """Return a record with these faults in turn, and pauses that are never shortened."""
    record = WELL
    for time in times:
        record = failed(RULES, record, fault(time), 1.0)
    return record


def facts(record: AcceleratorRecord = WELL, **others: object) -> AcceleratorFacts:
    """Return facts at second 1000 of a present device with a waiting model."""
    return AcceleratorFacts(
        **({"record": record, "waiting": True, "serving": False, "identity": "usb-1", "now": 1000.0} | others)
    )  # type: ignore[arg-type]


QUARANTINED = quarantined(faulty(1, 2, 3), "usb-1")


@pytest.mark.parametrize(
    ("what", "found", "step"),
    [
        ("nothing to do", facts(waiting=False), Wait(None)),
        ("nothing to do for a broken one", facts(faulty(1, 2, 3), waiting=False), Wait(None)),
        ("all run on it now", facts(waiting=False, serving=True), Settle()),
        ("all run on it still", facts(AcceleratorRecord(settled=1.0), waiting=False, serving=True), Wait(None)),
        ("one that never failed", facts(), LoadWaiting()),
        ("one more model", facts(AcceleratorRecord(settled=1.0), serving=True), LoadWaiting()),
        ("not there", facts(identity=""), Wait(1000 + POLL_SECONDS, missing=True)),
        ("in its pause", facts(faulty(999.5)), Wait(1000.5)),
        ("in its pause and not there", facts(faulty(999.5), identity=""), Wait(1000.5)),
        ("after its pause", facts(faulty(999)), LoadWaiting()),
        ("after its pause and not there", facts(faulty(999), identity=""), Wait(1000 + POLL_SECONDS, missing=True)),
        ("failed twice", facts(faulty(1, 2)), LoadWaiting()),
        ("failed too often", facts(faulty(1, 2, 3)), Quarantine()),
        ("failed too often and in its pause", facts(faulty(998, 999, 1000)), Quarantine()),
        ("failed too often and not there", facts(faulty(1, 2, 3), identity=""), Quarantine()),
        ("just within the time", facts(faulty(1, 2, 100.9)), Quarantine()),
        ("just not within the time", facts(faulty(1, 2, 101)), LoadWaiting()),
        ("failed too often long ago, then once more", facts(faulty(1, 101, 202, 303)), LoadWaiting()),
        ("quarantined", facts(QUARANTINED), Wait(1000 + POLL_SECONDS)),
        ("quarantined, and taken out", facts(QUARANTINED, identity=""), Wait(1000 + POLL_SECONDS)),
        ("quarantined, and plugged in anew", facts(QUARANTINED, identity="usb-2"), Release()),
        ("quarantined while out, and plugged in", facts(quarantined(faulty(1, 2, 3), "")), Release()),
        ("quarantined for a model that has left", facts(QUARANTINED, waiting=False, serving=True), Settle()),
    ],
)
def test_what_is_done_next(what: str, found: AcceleratorFacts, step: AcceleratorStep):
    assert decide(RULES, found) == step


@pytest.mark.parametrize(
    ("what", "record", "missing", "expected"),
    [
        ("at first", WELL, False, AcceleratorStatus("cpu", "the accelerator is being loaded", "", 7.0)),
        ("settled", settled(WELL, 5.0), False, AcceleratorStatus("accelerated", "", "", 7.0)),
        ("settled after faults", settled(faulty(1), 5.0), False, AcceleratorStatus("accelerated", "", "", 7.0)),
        ("failed", faulty(1), False, AcceleratorStatus("degraded", "it hung", "look at its cable", 7.0)),
        (
            "not there",
            faulty(1),
            True,
            AcceleratorStatus(
                "degraded",
                "the device is not there",
                "plug the device in; if plugged in, run: sudo edgectl devices allow --restart",
                7.0,
            ),
        ),
        (
            "quarantined",
            QUARANTINED,
            False,
            AcceleratorStatus(
                "quarantined",
                "3 faults within 100 s, the last: it hung",
                "plug the device in again; or remove the cause, then run: edgectl release mine",
                7.0,
            ),
        ),
    ],
)
def test_how_it_stands(what: str, record: AcceleratorRecord, missing: bool, expected: AcceleratorStatus):
    assert device_status(RULES, record, name="mine", missing=missing, now=7.0) == expected


@pytest.mark.parametrize(
    ("faults", "luck", "seconds"),
    [(1, 1.0, 1), (2, 1.0, 2), (3, 1.0, 4), (4, 1.0, 8), (5, 1.0, 8), (KEPT, 1.0, 8), (1, 0.0, 0.5), (4, 0.5, 6)],
)
def test_pauses_double_up_to_the_longest_and_chance_takes_at_most_half(faults: int, luck: float, seconds: float):
    assert pause(RULES, faults, luck) == seconds


def test_the_longest_pause_is_never_shorter_than_the_first():
    assert pause(Rules(backoff=10, backoff_max=5), 1, 1.0) == 10


def test_a_fault_is_remembered_and_ends_the_serving():
    assert failed(RULES, settled(WELL, 10), fault(20), 1.0) == AcceleratorRecord(faults=(fault(20),), due=21)


def test_what_served_for_long_enough_owes_nothing():
    record = failed(RULES, settled(faulty(1, 2), 10), fault(110), 1.0)
    assert record == AcceleratorRecord(faults=(fault(110),), due=111)


def test_what_served_for_less_still_does():
    record = failed(RULES, settled(faulty(1, 2), 10), fault(109), 1.0)
    assert record == AcceleratorRecord(faults=(fault(1), fault(2), fault(109)), due=113)


def test_pauses_are_no_serving():
    assert faulty(1, 200, 400, 600).due == 608


def test_only_so_many_faults_are_remembered():
    record = faulty(*range(KEPT + 50))
    assert record.faults == tuple(fault(time) for time in range(50, KEPT + 50))
    assert record.due == KEPT + 49 + 8


REFUSED = tuple(AcceleratorFault(time, "load", "it disagrees") for time in (4.0, 5.0, 6.0))


@pytest.mark.parametrize(
    ("what", "record", "expected"),
    [
        ("what only failed to load", AcceleratorRecord(faults=REFUSED, due=14.0, quarantined="usb-1"), WELL),
        (
            "one that failed as well",
            AcceleratorRecord(faults=(fault(1), *REFUSED), due=14.0),
            AcceleratorRecord(faults=(fault(1),), due=14.0),
        ),
        ("one in quarantine without those", QUARANTINED, QUARANTINED),
    ],
)
def test_what_failed_to_load_is_pardoned(what: str, record: AcceleratorRecord, expected: AcceleratorRecord):
    assert pardoned(RULES, record) == expected


def test_a_fault_of_the_device_has_failures_to_load_forgotten():
    record = failed(RULES, AcceleratorRecord(faults=REFUSED, due=14.0, quarantined="usb-1"), fault(20), 1.0)
    assert record == AcceleratorRecord(faults=(fault(20),), due=21.0)


def test_to_be_settled_ends_a_quarantine_and_its_past():
    assert settled(QUARANTINED, 5.0) == AcceleratorRecord(settled=5.0)


def test_rules_are_a_table_that_refuses_what_it_does_not_know():
    assert msgspec.convert({"failures": 2, "within": 60}, Rules) == Rules(failures=2, within=60.0)
    for wrong in ({"failures": 0}, {"failures": KEPT + 1}, {"deadline": 0}, {"memory": 1}, {"backof": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Rules)


# Invariants


TIMES = st.floats(0, 1e9)
RULES_OF_ALL_KINDS = st.builds(
    Rules,
    backoff=st.floats(0.01, 86_400),
    backoff_max=st.floats(0.01, 86_400),
    failures=st.integers(1, KEPT),
    within=st.floats(0.01, 86_400),
)


@given(
    RULES_OF_ALL_KINDS,
    st.lists(st.tuples(st.sampled_from(["fault", "settle", "quarantine"]), TIMES, st.floats(0, 1)), max_size=150),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "a", "b"]),
)
def test_there_is_always_an_answer_and_a_pause_has_bounds(rules, happenings, waiting, serving, identity):
    record = WELL
    for what, time, luck in happenings:
        if what == "fault":
            record = failed(rules, record, fault(time), luck)
            assert rules.backoff / 2 <= record.due - time + 1e-3
            assert record.due - time <= max(rules.backoff, rules.backoff_max) + 1e-3
            assert len(record.faults) <= KEPT
        elif what == "settle":
            record = settled(record, time)
        elif record.faults:
            record = quarantined(record, identity)
        found = AcceleratorFacts(record=record, waiting=waiting, serving=serving, identity=identity, now=time)
        step = decide(rules, found)
        assert isinstance(step, LoadWaiting | Settle | Quarantine | Release | Wait)
        assert not isinstance(step, Wait) or step.until is None or step.until > time
        assert device_status(rules, record, name="mine", missing=identity == "", now=time).since == time


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 6))
def test_it_is_quarantined_exactly_when_enough_faults_are_within_the_time(gaps: list[int], failures: int):
    rules = Rules(failures=failures, within=100)
    record, now, times = WELL, 0.0, []
    for gap in gaps:
        now += gap
        times.append(now)
        record = failed(rules, record, fault(now), 0.5)
        enough = len([time for time in times if now - time < 100]) >= failures
        assert (decide(rules, facts(record, now=now)) == Quarantine()) == enough
