"""Count on an emulated ARM processor, and check that the counts are of what was executed."""

import pytest

from benchmarks import arm
from benchmarks.emulator import Board, why_not

LOOPS = """
import sys
for line in sys.stdin:
    for _ in range(int(line)):
        pass
    print(flush=True)
"""

can_count = pytest.mark.skipif(bool(why_not()), reason=why_not())


def test_the_reason_why_nothing_is_counted_names_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    (skipped,) = arm.measure(rounds=1)
    assert skipped.reason == "mmdebstrap and dpkg-deb and cc and qemu-aarch64 not installed"


@pytest.mark.wide
@can_count
def test_a_loop_of_twice_the_turns_has_twice_the_instructions(tmp_path):
    with Board(tmp_path).python("-c", LOOPS) as counted:

        def instructions(turns):
            before = counted.counter.read().instructions
            print(turns, file=counted.process.stdin, flush=True)
            counted.process.stdout.readline()
            counted.await_rest()
            return counted.counter.read().instructions - before

        instructions(1)
        once, twice = instructions(20_000), instructions(40_000)
    assert once > 10 * 20_000
    assert twice == pytest.approx(2 * once, rel=0.01)


@pytest.mark.wide
@can_count
def test_message_and_start_are_counted_of_all_variants():
    message, calls, first = arm.measure(rounds=1, messages=3)
    for figure in (message, calls):
        assert list(figure.variants) == ["bare", "script", "edged"]
    assert list(first.variants) == ["bare", "edged"]
    assert 0 < message.variants["bare"][0] < message.variants["edged"][0]
    assert 0 < first.variants["bare"][0] < first.variants["edged"][0]
