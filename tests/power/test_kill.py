"""The updater is killed at random moments, and recovers from any state: see lives.py.

With `EDGED_SOAK=1` the updater is killed 300 times, `EDGED_SEED` repeats a run. The real daemon is killed in
tests/end_to_end/test_kill.py.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

KILLS = 300 if os.environ.get("EDGED_SOAK") else 30
ROOT = Path(__file__).parents[2]


def test_lives_that_end_at_random_moments(tmp_path: Path):
    seed = os.environ.get("EDGED_SEED") or str(random.SystemRandom().randrange(1 << 32))
    lives = subprocess.run(
        [sys.executable, "-m", "tests.power.lives", tmp_path, str(KILLS), seed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10 * KILLS,
    )
    assert lives.returncode == 0, f"EDGED_SEED={seed}\n{lives.stdout}{lives.stderr}"
