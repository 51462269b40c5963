"""Programs as cameras and sensors."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edged.api import Chunk, ConfigError, DeviceError, DeviceRequirements, Source
from edged.core.picture_stream import NO_PICTURE, TRUNCATED
from edged.core.pictures import PictureForm, PictureSpec
from edged.core.source_health import DROPPED
from edged.sources.command import CommandSource
from edged.testing.source_contract import PictureSourceContract, SourceContract, chunks
from tests.jpegs import jpeg
from tests.patience import PATIENCE
from tests.reading import failure, take

WAIT = "import sys, time; sys.stdout.flush(); time.sleep(600)"
PICTURES = [jpeg(shade) for shade in (10, 90, 170)]


def writing(*parts: bytes, then: str = WAIT) -> tuple[str, ...]:
    """Return a command that writes bytes, and then runs Python code."""
    writes = "".join(f"o.write({part!r});" for part in parts)
    return (sys.executable, "-S", "-c", f"import sys; o = sys.stdout.buffer; {writes} o.flush()\n{then}")


MOVIE = """
import sys, time
o = sys.stdout.buffer
for number in range(100_000):
    o.write(b"P6 16 12 255 " + bytes([number % 256]) * (3 * 16 * 12))
    o.flush()
    time.sleep(0.02)
"""


class TestContract(PictureSourceContract):
    @pytest.fixture
    def config(self) -> CommandSource:
        return CommandSource(command=(sys.executable, "-S", "-c", MOVIE), format="ppm")

    def test_a_healthy_source_counts_no_faults(self, source: Source) -> None:
        chunks(source, samples=10)
        assert source.faults.keys() <= {DROPPED}  # on a busy machine


class TestContractOfSamples(SourceContract):
    @pytest.fixture
    def config(self) -> CommandSource:
        code = "import time\nfor number in range(100_000): print(number, 2, sep=',', flush=True); time.sleep(0.02)"
        return CommandSource(
            command=(sys.executable, "-S", "-c", code), format="csv", channels=("x", "y"), units=("g", "g"), rate=50.0
        )


def opened(command: tuple[str, ...], **options: object) -> Source:
    config = CommandSource(command=command, **options)  # type: ignore[arg-type]
    config.describe()
    return config.open()


def pixels(chunk: Chunk, width: int, height: int) -> list[list[list[int]]]:
    assert chunk.picture
    form = PictureForm(PictureSpec(width=width, height=height, filter="nearest"))
    found: list[list[list[int]]] = chunk.picture.fitted(form).tolist()
    return found


def test_jpegs_one_after_another() -> None:
    source = opened(writing(PICTURES[0]))
    chunk = take(source)
    assert chunk.samples.tobytes() == PICTURES[0]
    assert chunk.picture
    assert (chunk.picture.width, chunk.picture.height) == (16, 12)
    source.close()
    source.close()


def test_the_newest_picture_counts() -> None:
    source = opened(writing(*PICTURES, then=f"import os; os.write(2, b'!'); {WAIT}"))
    while not source._program._tail:  # type: ignore[attr-defined]
        list(source._program._arrival.poll())  # type: ignore[attr-defined]
        source._program._take_errors()  # type: ignore[attr-defined]
    assert take(source).samples.tobytes() == PICTURES[-1]
    assert source.faults == {DROPPED: 2}
    source.close()


@pytest.mark.parametrize(
    ("format", "data", "expected"),
    [
        ("rgb", bytes(range(12)), [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]),
        ("gray", b"\1\2\3\4", [[[1] * 3, [2] * 3], [[3] * 3, [4] * 3]]),
        ("yuyv", b"\x10\x80\xeb\x80" * 2, [[[0] * 3, [255] * 3]] * 2),
    ],
)
def test_raw_pictures_of_a_known_size(format: str, data: bytes, expected: list[object]) -> None:  # noqa: A002
    source = opened(writing(data, data[:1]), format=format, size=(2, 2))
    assert pixels(take(source), 2, 2) == expected
    assert source.read(0.0) is None
    source.close()


def test_raw_pictures_with_headers_may_change_size() -> None:
    source = opened(writing(b"P6\n1 1\n255\nabc", then="pass"), format="ppm")
    assert pixels(take(source), 1, 1) == [[[97, 98, 99]]]
    source.close()
    source = opened(writing(b"P6 1 1 255 abcP6 1 2 255 abcdef", then="pass"), format="ppm")
    last = take(source)
    assert last.picture
    assert (last.picture.width, last.picture.height) == (1, 2)
    assert "has ended with status 0" in failure(source).message


def test_samples_in_lines() -> None:
    source = opened(writing(b"1,2\n3,4\n5,"), format="csv", channels=("x", "y"), rate=10.0)
    assert take(source).samples.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert source.read(0.0) is None
    source.close()


def test_samples_in_frames() -> None:
    frames = {"format": "binary", "struct": "<hh", "fields": ("x", "y"), "sync": "aa"}
    source = opened(writing(b"\xaa\x01\x00\x02\x00" * 2), channels=("x", "y"), **frames)
    assert take(source).samples[0].tolist() == [1.0, 2.0]
    source.close()


def test_the_last_samples_of_a_program_count() -> None:
    source = opened(writing(b"1\n2\n", then="sys.exit('no more')"), format="csv", channels=("x",))
    assert take(source).samples.tolist() == [[1.0], [2.0]]
    assert failure(source).message.endswith("has ended with status 1: no more")


def test_a_program_that_writes_one_picture_and_ends() -> None:
    source = opened(writing(PICTURES[0], PICTURES[1][:-5], then="pass"), rate=0.001)
    assert take(source).samples.tobytes() == PICTURES[0]
    assert failure(source).message.endswith("has ended with status 0")
    assert source.faults == {TRUNCATED: 1}


def test_the_error_output_is_the_reason() -> None:
    source = opened((sys.executable, "-S", "-c", "import sys; sys.exit('ERROR: *** no cameras available ***')"))
    error = failure(source)
    assert error.message == f"{Path(sys.executable).name} has ended with status 1: ERROR: *** no cameras available ***"
    assert error.retryable


@pytest.mark.parametrize("options", [{}, {"format": "csv", "channels": ("x",)}])
def test_a_program_that_hangs_is_given_up(options: dict[str, object]) -> None:
    source = opened(writing(), timeout=0.2, **options)
    assert failure(source).message.endswith("for 0.2 s")


def test_a_missing_program_has_a_remedy() -> None:
    with pytest.raises(DeviceError, match="the program rpicam-none is not installed") as error:
        CommandSource(command=("rpicam-none", "-o", "-")).open()
    assert error.value.hint == "check the path in command, or install the program"


def test_output_without_pictures_has_a_remedy() -> None:
    source = opened(writing(b"hello" * 10_000))
    deadline = time.monotonic() + PATIENCE
    while NO_PICTURE not in source.faults and time.monotonic() < deadline:
        assert source.read(0.1) is None
    assert source.obstacle is not None  # type: ignore[attr-defined]
    assert source.obstacle.reason.endswith("writes no pictures")  # type: ignore[attr-defined]
    source.close()


def test_the_rate_holds_pictures_back() -> None:
    source = opened(writing(*PICTURES), rate=0.001)
    take(source)
    assert source.read(0.01) is None
    source.close()


def test_devices_are_those_of_the_options() -> None:
    config = CommandSource(command=("x",), device_files=("/dev/video0", "/dev/media0"))
    assert config.devices() == DeviceRequirements(paths=("/dev/video0", "/dev/media0"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": ("",)}, "command names no program"),
        ({"format": "rgb"}, "raw pictures and size go together"),
        ({"size": (2, 2)}, "raw pictures and size go together"),
        ({"format": "rgb", "size": (16_384, 16_384)}, "size means pictures of more than 64 MiB"),
        ({"format": "yuyv", "size": (3, 2)}, "YUYV pictures have an even width"),
        ({"format": "csv"}, 'format = "csv" needs channels'),
        ({"format": "csv", "channels": ("x",), "sync": "aa"}, 'sync means nothing for format = "csv"'),
        ({"channels": ("x",), "scale": 2.0}, 'channels, scale mean nothing for format = "mjpeg"'),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CommandSource(**({"command": ("x",)} | options)).describe()  # type: ignore[arg-type]
