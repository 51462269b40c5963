"""The real daemon is killed at random moments of updates and rollbacks, and always comes back with a model that serves.

What a power cut leaves on the disk is tests/power/test_cuts.py; here it is all of the daemon that is cut short, with its
children and whatever it was in the middle of. `EDGED_SOAK=1` has it killed 300 times, `EDGED_SEED` repeats a run.
"""

import os
import random
import time
from itertools import count, islice
from pathlib import Path

import pytest

from edged.core.manifest import version_key
from edged.ctl.client import UnreachableError, connect
from edged.ctl.exits import DONE
from tests.edged_process import Edged
from tests.motion import Call, bundle, config, edgectl, ledger, litter

KILLS = 300 if os.environ.get("EDGED_SOAK") else 10
LONGEST = 1.2
"""Seconds from the beginning of an update within which it has proved itself, serves and is confirmed."""


@pytest.mark.timeout(60 * KILLS)
def test_killed_at_random_moments(tmp_path: Path):
    seed = int(os.environ.get("EDGED_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"EDGED_SEED={seed}")
    chance = random.Random(seed)
    versions = (f"1.{number}" for number in count(1))
    offered = bundle(tmp_path, next(versions))
    floor: tuple[int, ...] = (0,)
    with Edged(tmp_path, config()) as daemon:
        for _ in range(KILLS):
            daemon.wait_for_log(" serves: ")
            assert_serves(daemon)
            before, floor = floor, version_key(ledger(daemon).floor)
            assert floor >= before
            if ended(daemon, offered):
                offered = bundle(tmp_path, next(versions))
            update = Call(daemon, "update-model", offered)
            time.sleep(chance.uniform(0.1, LONGEST))
            if chance.random() < 0.3:
                Call(daemon, "rollback", "motion").end()
            daemon.process.kill()
            daemon.process.wait()
            update.end()
            daemon.log.clear()
            daemon.start()
        daemon.wait_for_log(" serves: ")
        assert_serves(daemon)
        last = bundle(tmp_path, "2.0")
        said = edgectl(daemon, "update-model", last)
        assert said.code == DONE, said.output
        assert ledger(daemon).candidate is None
        assert litter(daemon) == set()
