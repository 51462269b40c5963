"""Lives of a daemon that updates a model, each killed at a random moment: `lives.py FOLDER COUNT SEED`.

After every death a version must be able to serve, and the floor must not be lower. The last life runs to the end, and
must leave no litter. The program prints how often each kind of step was the last step of a life.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from edged.core.manifest import version_key
from tests.updating import NAME, Rig

BAD = {"wrong": "1.3", "dead": "1.5", "faulty": "1.7"}


async def live(rig: Rig, last: Path) -> None:
    """Install versions in turn, with a rollback now and then, until killed."""
    rig.say = lambda event: last.write_text(event.id)
    await rig.boot()
    while True:
        for number in range(1, 10):
            await rig.installed(f"1.{number}", allow_downgrade=True)
        await rig.updater.rollback(NAME)
        for digest in rig.ledger.rejected:
            await rig.updater.forget_rejection(NAME, digest)


async def end(rig: Rig) -> None:
    """Let the daemon run until idle."""
    await rig.boot()
    await rig.pass_probation()
    await rig.pass_probation()


def main(folder: Path, count: int, seed: int) -> None:
    """Live and die so many times."""
    rig = Rig(folder)
    for trait, version in BAD.items():
        getattr(rig.board, trait).add(version)
    moments, last, floor = random.Random(seed), folder / "last", ()
    ends: Counter[str] = Counter()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            asyncio.run(live(rig, last))
        time.sleep(moments.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ends[last.read_text() if last.exists() else ""] += 1
        assert rig.store.find(NAME).manifest.version not in BAD.values()
        assert version_key(rig.ledger.floor) >= floor, "the floor fell"
        floor = version_key(rig.ledger.floor)
    asyncio.run(end(rig))
    assert rig.board.version
    assert not rig.tree() - rig.tidy_tree(), "something is left over"
    print(dict(ends), "floor", rig.ledger.floor)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
