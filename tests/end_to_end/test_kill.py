"""The real daemon is killed at random moments of updates and rollbacks, and always restarts with a model in service.

With `EDGED_SOAK=1` the daemon is killed 300 times; `EDGED_SEED` repeats a run. The effects of power cuts are tested in
tests/power.
"""

import os
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from edged.core.manifest import version_key
from edged.ctl.exit_codes import DONE, UNREACHABLE
from edged.models.bundle import examine
from tests.edged_process import Edged
from tests.motion import Call, bundle, config, edgectl, incoming, ledger, litter, serving

KILLS = 300 if os.environ.get("EDGED_SOAK") else 6
LONGEST = 1.5
"""Seconds from the beginning of an update to confirmation, in most runs."""


def test_killed_at_random_moments(tmp_path: Path):
    seed = int(os.environ.get("EDGED_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"EDGED_SEED={seed}")
    chance = random.Random(seed)
    versions = offers(tmp_path)
    offered = next(versions)
    floor: tuple[int, ...] = (0, 0, 0, 0)
    with Edged(tmp_path, config()) as daemon:
        for _ in range(KILLS):
            daemon.wait_for_log(" serves: ")
            assert serving(daemon)
            before, floor = floor, version_key(ledger(daemon).floor)
            assert floor >= before
            if ended(daemon, offered):
                offered = next(versions)
            die(daemon, offered, chance)
            daemon.log.clear()
            daemon.start()
        daemon.wait_for_log(" serves: ")
        assert serving(daemon)
        finish(daemon, offered)
        said = edgectl(daemon, "update-model", bundle(tmp_path, "2.0"))
        assert said.code == DONE, said.output
        assert serving(daemon) == "2.0"
        assert litter(daemon) == incoming(daemon) == set()


def offers(folder: Path) -> Iterator[Path]:
    """Ever newer versions."""
    return (bundle(folder, f"1.{number}") for number in count(1))


def die(daemon: Edged, offered: Path, chance: random.Random) -> None:
    """Offer a version, go back now and then, and kill the daemon somewhere on the way."""
    calls = [Call(daemon, "update-model", offered)]
    end = time.monotonic() + chance.uniform(0.1, LONGEST)
    if chance.random() < 0.3:
        time.sleep(chance.uniform(0.1, LONGEST))
        calls.append(Call(daemon, "rollback", "motion"))
    time.sleep(max(0.0, end - time.monotonic()))
    daemon.process.kill()
    daemon.process.wait()
    for call in calls:
        call.end()


def ended(daemon: Edged, offered: Path) -> bool:
    """Return whether the update has ended: the version was confirmed, or is refused from now on."""
    digest = examine(offered).digest
    there = ledger(daemon)
    return digest in there.rejected or (digest in there.versions and there.versions[digest].confirmed)


def finish(daemon: Edged, offered: Path) -> None:
    """Let an interrupted update end: the version serves, or is refused for a reason."""
    said = edgectl(daemon, "update-model", offered)
    assert said.code not in (UNREACHABLE, 4), said.output
    assert ended(daemon, offered), said.output
