"""Foreign programs: output, ends of all kinds, and nothing left over."""

import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.core.errors import DeviceError
from edged.system.program import Program
from tests.patience import PATIENCE

REMEDY = "sudo apt install it"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def python(code: str, **options: tuple[str, ...]) -> Program:
    return Program([sys.executable, "-S", "-c", code], remedy=REMEDY, **options)


def output(program: Program, size: int) -> bytes:
    """Return the first bytes of the output."""
    found, deadline = b"", time.monotonic() + PATIENCE
    while len(found) < size and time.monotonic() < deadline:
        found += b"".join(program.output(1.0))
    return found


def ending(program: Program) -> DeviceError:
    """Read until the program ends, and return the error."""
    with pytest.raises(DeviceError) as error:
        output(program, 1 << 40)
    program.close()
    return error.value


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_output_arrives_whole_however_much() -> None:
    program = python("import os\nfor _ in range(50): os.write(1, b'x' * 100_000)\nimport time; time.sleep(600)")
    assert output(program, 5_000_000) == b"x" * 5_000_000
    assert list(program.output(0.0)) == []
    program.close()


def test_an_end_has_a_status_and_the_last_words() -> None:
    error = ending(python("import sys; sys.exit('no\\ncamera\\nthere')"))
    assert error.message == f"{Path(sys.executable).name} has ended with status 1: no; camera; there"


def test_a_kill_has_the_name_of_the_signal() -> None:
    assert "was ended by SIGKILL" in ending(python("import os; os.kill(os.getpid(), 9)")).message


def test_a_program_without_output_left_has_ended_too() -> None:
    error = ending(python("import os, time; os.close(1); time.sleep(600)"))
    assert error.message.endswith("has closed its output")


def test_endless_complaints_take_bounded_memory_and_one_line_of_each_reason() -> None:
    error = ending(python("import sys\nfor _ in range(100_000): print('[h264 @ 0x55d5c8] bad', file=sys.stderr)"))
    assert error.message.endswith("has ended with status 0: [h264] bad; [h264] bad; [h264] bad")


def test_secrets_are_not_shown() -> None:
    error = ending(python("import sys; sys.exit('rtsp://me:hush%21@cam: 401, hush!')", secrets=("hush!", "hush%21")))
    assert error.message.endswith("rtsp://me:***@cam: 401, ***")


def test_control_sequences_are_not_shown() -> None:
    assert "\x1b" not in ending(python("import sys; sys.exit('\\x1b[31mred')")).message


@pytest.mark.parametrize("word", ["/nonexistent/ffmpeg", "no-such-program"])
def test_a_missing_program_has_a_remedy(word: str) -> None:
    with pytest.raises(DeviceError, match=f"the program {word} is not installed") as error:
        Program([word], remedy=REMEDY)
    assert error.value.hint == REMEDY


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    with pytest.raises(DeviceError, match="cannot be started: Permission denied"):
        Program([str(tmp_path / "text")], remedy=REMEDY)


def test_a_program_that_ignores_sigterm_is_killed_with_its_descendants() -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for flee in (False, True):
    if not os.fork():
        if flee:
            os.setsid()
        break
os.write(1, b"%7d" % os.getpid())
time.sleep(600)
"""
    program = python(code)
    found = output(program, 21)
    pids = [int(found[at : at + 7]) for at in (0, 7, 14)]
    assert all(map(is_alive, pids))
    program.close()
    deadline = time.monotonic() + PATIENCE
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, pids))


def test_a_program_may_end_by_itself_after_sigterm(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
def bye(*_):
    open({str(tmp_path / "bye")!r}, "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
os.write(1, b"!")
time.sleep(600)
"""
    program = python(code)
    output(program, 1)
    program.close()
    program.close()
    assert (tmp_path / "bye").exists()


def test_a_program_inherits_no_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_TEST_SECRET", "hush")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    program = python("import os; os.write(1, ' '.join(sorted(os.environ)).encode() + b'.'); os.read(0, 1)")
    names = output(program, 1).decode()
    assert "PATH" in names
    assert "SECRET" not in names
    assert "NOTIFY" not in names
    program.close()
