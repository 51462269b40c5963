"""Waiting and refused messages on a terminal."""

import json

import pytest

SPOOL = {
    "depth": 1200,
    "in_flight": 20,
    "on_disk": 1000,
    "bytes": 133_000,
    "oldest": 75.0,
    "dropped": 3,
    "parked": 1,
    "drops": {"motion": {"full": 3}},
    "parks": {"motion": {"not authorised": 1}},
    "disk": {
        "path": "/var/lib/edged/spool/spool.db",
        "file_bytes": 245_760,
        "written": 1_200_000,
        "daily_bytes": 50_000_000,
        "unsaved": 42,
        "unsaved_seconds": 0.42,
        "loss_seconds": 1.02,
        "loss_messages": 103,
        "late": 2,
        "commit": {"p50": 0.0031, "p90": 0.008, "p99": 0.0202},
        "set_aside": [{"path": "/var/lib/edged/spool/damaged-1.db", "saved": 70}],
    },
    "rate": 3200.0,
    "seconds_to_empty": 62.0,
    "replayed": 17,
    "refused": [
        {"number": 4, "pipeline": "motion", "seq": 7, "topic": "a/b", "bytes": 133, "reason": "not \x1b[2Jauthorised"}
    ],
    "health": {"state": "running", "reason": "", "hint": "", "since": 1.0, "for": 2.0},
}


def test_it_says_what_waits_and_what_a_power_cut_costs(edgectl, daemon):
    daemon.answers["spool"] = SPOOL
    code, output, _ = edgectl("spool")
    assert code == 0
    assert output.splitlines() == [
        "● 1200 results wait: 200 in memory (the oldest 1 min 15 s old), 1000 on disk",
        "    memory   133 kB",
        "    sending  3200 results a second, empty in 1 min 2 s; 17 sent late (replayed) since the start",
        "    disk     /var/lib/edged/spool/spool.db, 246 kB, 1.2 MB of 50 MB written today",
        "    commit   takes 3.10 ms (p50), 20.20 ms (p99)",
        '      2 results of durability "always" went on before being on disk',
        "      a damaged file is now /var/lib/edged/spool/damaged-1.db; 70 results saved from the file",
        "    losses   a power cut now loses 42 results, up to 0.4 s old; "
        "at the worst moment the results of 1.0 s (about 103)",
        "    dropped  3",
        "      motion: 3 full",
        "",
        "NUMBER  PIPELINE  SEQ  BYTES  TOPIC  REFUSED BECAUSE",
        "4       motion      7    133  a/b    not �[2Jauthorised",
    ]
    assert json.loads(edgectl("spool", "--json")[1]) == SPOOL


def test_without_a_disk_it_says_so(edgectl, daemon):
    daemon.answers["spool"] = {**SPOOL, "disk": None}
    assert "a power cut loses every waiting result" in edgectl("spool")[1]


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        (None, "at the worst moment every waiting result, as the disk takes no data"),
        (0.0, "at the worst moment a result that is just being saved"),
    ],
)
def test_what_a_power_cut_costs_at_most_is_said_in_words_too(edgectl, daemon, seconds, most):
    daemon.answers["spool"] = {**SPOOL, "disk": {**SPOOL["disk"], "loss_seconds": seconds}}
    assert most in edgectl("spool")[1]


def test_refused_messages_are_named_by_their_numbers_or_all(edgectl, daemon):
    daemon.answers["spool-retry"] = {"count": 2}
    daemon.answers["spool-drop"] = {"count": 0}
    assert edgectl("spool", "retry", "4", "5") == (0, "2 messages wait to be sent again\n", "")
    assert edgectl("spool", "drop", "--all") == (1, "0 messages are forgotten\n", "")
    assert daemon.asked == [("spool-retry", {"numbers": [4, 5]}), ("spool-drop", {"numbers": "all"})]


def test_messages_that_are_not_there_are_told(edgectl, daemon):
    daemon.answers["spool-retry"] = {"count": 1}
    assert edgectl("spool", "retry", "4", "5", "5") == (1, "1 of 2 messages wait to be sent again\n", "")


def test_nothing_is_done_to_messages_that_are_not_named(edgectl, daemon):
    code, _, complaint = edgectl("spool", "drop")
    assert code == 4
    assert "give their numbers, or --all" in complaint
    assert daemon.asked == []
