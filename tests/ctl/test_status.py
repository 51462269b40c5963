import copy
import json
import os

import pytest


def broken(status):
    """The same daemon on a bad day."""
    status = copy.deepcopy(status)
    bad = {"state": "failed", "reason": "no such file: /dev/ttyUSB0", "since": 1.0, "for": 75.0}
    bad["hint"] = "plug it in\nor wait"
    status["state"] = "degraded"
    status["health"] = {**bad, "state": "degraded", "reason": "source imu: no such file: /dev/ttyUSB0", "hint": ""}
    status["sources"][0] |= {"health": bad, "rate": None, "measured_rate": None, "faults": {}}
    status["mqtt"] |= {"connected": False, "health": {**bad, "reason": "refused", "hint": "is the broker up?"}}
    status["pipelines"][0] |= {"latency": None, "inference": None, "last": None}
    failing = {"state": "degraded", "reason": "it aborted", "hint": "look at its cable", "for": 3.0}
    status["models"][0] |= {"runner": None, "proof": None, "version": "", "bytes": 0}
    status["models"][0]["accelerator"] |= failing
    problem = "edged.toml: sources.imu.kin: found an unknown key; allowed: kind"
    message = f"the configuration has 1 problem:\n  {problem}"
    status["config"]["error"] = {"message": message, "problems": [problem]}
    status["clock"]["synchronised"] = False
    return status


def test_all_is_well(edgectl, daemon):
    assert edgectl("status") == (
        0,
        """\
● edged 0.1.0 on kitchen: running, up 1 d 2 h
    memory  54.3 MB
    clock   synchronised
    mqtt    connected to mqtt://broker:1883, 41 results sent (the last 4 s ago), 0 reconnects
    spool   2 results wait (266 B), 0 dropped, 0 refused by the broker
            a power cut now loses 2 results, up to 0.5 s old; at the worst moment the results of 6.0 s (about 60)
    config  /etc/edged/edged.toml

  PIPELINE  STATE    SOURCE  MODEL       SINKS     WINDOWS  PREDICTIONS  DROPPED  ERRORS  P50 ms  P99 ms  LAST
● motion    running  imu     motion 1.2  mqtt,log       42           41        1       0    1.31    4.70  walking 0.912

  SOURCE  STATE    KIND    CHANNELS    RATE  MEASURED  SAMPLES  LOST  RECONNECTS  FAULTS
● imu     running  serial  ax,ay     100 Hz  99.88 Hz     4200     3           1  2 x wrong number of columns

  MODEL   STATE    VERSION  ORIGIN   PIPELINES     SIZE  RUNS ON                                SELF-TEST
● motion  running  1.2      factory  motion     52.3 kB  edgetpu, 9 of 12 nodes (litert 2.3.0)  8 samples, ±1
      edgetpu: accelerated, for 1 h 2 min, 93% of the time off the processor

  SINK  STATE    SENT  FAILED  DROPPED
● log   running    41       0        0
""",
        "",
    )


def test_what_ails_the_spool_is_said_below_it(edgectl, daemon):
    bad = {
        "state": "degraded",
        "reason": "no room: memory only",
        "hint": "make room on it (df)",
        "since": 1.0,
        "for": 75.0,
    }
    daemon.status = copy.deepcopy(daemon.status)
    daemon.status["mqtt"]["spool"]["health"] = bad
    assert (
        "refused by the broker\n      no room: memory only, for 1 min 15 s\n      -> make room on it (df)\n"
        in edgectl("status")[1]
    )


def test_a_bad_day_exits_with_3_and_says_what_to_do(edgectl, daemon):
    daemon.status = broken(daemon.status)
    code, output, _ = edgectl("status")
    assert code == 3
    for text in (
        "● edged 0.1.0 on kitchen: degraded, up 1 d 2 h\n"
        "      source imu: no such file: /dev/ttyUSB0, for 1 min 15 s\n",
        "    clock   not synchronised",
        "    mqtt    not connected to mqtt://broker:1883, 41 results sent (the last 4 s ago), 0 reconnects\n"
        "      refused, for 1 min 15 s\n"
        "      -> is the broker up?\n",
        "      the files have changed and are refused; the configuration before the change stays in effect:\n"
        "      edged.toml: sources.imu.kin: found an unknown key; allowed: kind\n"
        "      -> correct the files: edgectl config check; then: edgectl reload\n",
        "      no such file: /dev/ttyUSB0, for 1 min 15 s\n      -> plug it in\n      -> or wait\n",
        "      edgetpu: degraded, for 3 s: it aborted\n      -> look at its cable\n",
    ):
        assert text in output
    assert "�" not in output


def test_commands_in_remedies_name_the_daemon_that_was_asked(edgectl, daemon, runtime_dir):
    daemon.status = copy.deepcopy(daemon.status)
    hint = "see `edgectl models`, then: edgectl devices allow"
    daemon.status["sources"][0]["health"] |= {"state": "failed", "reason": "it is hot", "hint": hint}
    remedy = f"-> see `edgectl --runtime-dir {runtime_dir} models`, then: edgectl devices allow\n"
    assert remedy in edgectl("--runtime-dir", str(runtime_dir), "status")[1]
    assert "-> see `edgectl models`, then: edgectl devices allow\n" in edgectl("status")[1]


@pytest.mark.parametrize(("environ", "dot"), [({}, "\x1b[32m●\x1b[0m edged"), ({"NO_COLOR": "1"}, "● edged")])
def test_colour_is_for_terminals_and_for_those_who_like_it(command, daemon, environ, dot):
    terminal, end = os.openpty()
    process = command("status", stdout=end, TERM="xterm", **environ)
    os.close(end)
    assert os.read(terminal, 100).decode(errors="replace").startswith(dot)
    process.communicate(timeout=120)
    os.close(terminal)


def test_lists_are_cut_with_a_count(edgectl, daemon):
    """30 pipelines of 640 values each: the status had 123 kB."""
    names = [f"v{index}" for index in range(640)]
    daemon.status = copy.deepcopy(daemon.status)
    daemon.status["sources"][0]["channels"] = names
    for last in (dict.fromkeys(names, 0.5), [0.5] * 1404):
        daemon.status["pipelines"][0]["last"] |= {"kind": "regression", "values": last}
        shown = edgectl("status")[1]
        assert f" 0.5 and {len(last) - 4} more" in shown
        assert "v7 and 632 more" in shown
        assert len(shown) < 3000


def test_nothing_configured(edgectl, daemon):
    daemon.status = {**daemon.status, "pipelines": [], "sources": [], "models": [], "sinks": []}
    unsaid = {"broker": "", "connected": False, "sent": 0, "last_sent_ago": None}
    daemon.status["mqtt"] = {**daemon.status["mqtt"], **unsaid}
    code, output, _ = edgectl("status")
    assert code == 0
    assert "    mqtt    no broker, 0 results sent, 0 reconnects\n" in output
    assert len(output.splitlines()) == 6


def test_json_is_what_the_daemon_said(edgectl, daemon):
    daemon.status = broken(daemon.status)
    code, output, _ = edgectl("status", "--json")
    assert (code, json.loads(output)) == (3, daemon.status)


def test_a_label_cannot_move_the_cursor(edgectl, daemon):
    daemon.status = copy.deepcopy(daemon.status)
    daemon.status["pipelines"][0]["last"]["label"] = "\x1b[2Jgotcha\r\n"
    daemon.status["sources"][0]["health"] |= {"state": "failed", "reason": "\x1b]0;x\x07bad\x9b1m"}
    _, output, _ = edgectl("status")
    assert "�[2Jgotcha�" in output
    assert not set(output) & set("\x1b\x07\x9b\r")
