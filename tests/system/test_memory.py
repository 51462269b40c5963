import sys
from pathlib import Path

from edged.system.memory import available_bytes


def test_memory_that_the_system_does_not_tell_is_no_limit(tmp_path: Path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  512000 kB\nMemAvailable:  100 kB\n")
    assert available_bytes(told) == 102_400
    assert available_bytes(tmp_path / "hidden") == sys.maxsize
