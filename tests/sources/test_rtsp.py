"""RTSP cameras: with a program in place of ffmpeg, and in wide tests with ffmpeg and a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.api import ConfigError, DeviceError, Source
from edged.core.source_health import DROPPED
from edged.sources.rtsp import RtspSource
from edged.testing.source_contract import PictureSourceContract, chunks
from tests.reading import failure, take

Install = Callable[[str], None]


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a program ffmpeg of Python code."""

    def install(code: str) -> None:
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable} -S\nimport os, sys, time\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


@pytest.fixture
def login(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "password").write_text("hu/sh's @1\n")
    return {"username": "me", "password_file": str(tmp_path / "password")}


MOVIE = """
for number in range(100_000):
    os.write(1, b"P6 16 12 255 " + bytes([number % 256]) * (3 * 16 * 12))
    time.sleep(0.02)
"""


class TestContract(PictureSourceContract):
    @pytest.fixture
    def config(self, ffmpeg: Install) -> RtspSource:
        ffmpeg(MOVIE)
        return RtspSource(url="rtsp://cam:8554/stream", timeout=600.0)

    def test_a_healthy_source_counts_no_faults(self, source: Source) -> None:
        chunks(source, samples=10)
        assert source.faults.keys() <= {DROPPED}  # on a busy machine


def opened(url: str = "rtsp://cam:8554/stream", **options: object) -> Source:
    config = RtspSource(url=url, **options)  # type: ignore[arg-type]
    assert config.describe().pictures
    return config.open()


def test_pictures_have_the_size_that_ffmpeg_states(ffmpeg: Install) -> None:
    ffmpeg("os.write(1, b'P6\\n2 1\\n255\\nabcdef'); time.sleep(600)")
    source = opened()
    picture = take(source).picture
    assert picture
    assert (picture.width, picture.height) == (2, 1)
    source.close()


def test_the_password_is_in_the_list_of_files_alone(ffmpeg: Install, login: dict[str, str], tmp_path: Path) -> None:
    given, visible = tmp_path / "given", tmp_path / "visible"
    ffmpeg(
        f"open({str(given)!r}, 'w').write(sys.stdin.read())\n"
        f"open({str(visible)!r}, 'w').write(f'{{sys.argv}} {{dict(os.environ)}}')"
    )
    failure(opened("rtsp://cam:8554/it's?a=b", transport="udp", **login))
    assert given.read_text().splitlines() == [
        "ffconcat version 1.0",
        "file 'rtsp://me:hu%2Fsh%27s%20%401@cam:8554/it%27s?a=b'",
        "option rtsp_transport udp",
        "option allowed_media_types video",
    ]
    assert "hu%2F" not in visible.read_text()
    assert "hu/sh" not in visible.read_text()


def test_an_error_shows_no_secret(ffmpeg: Install, login: dict[str, str]) -> None:
    ffmpeg('url = sys.stdin.read().split("\'")[1]; sys.exit(f"{url}: 401\\n[concat @ 0x12af] hu/sh\'s @1")')
    assert failure(opened(**login)).message == "ffmpeg has ended with status 1: ***: 401; [concat] ***"


def test_a_server_that_stalls_is_given_up_and_ffmpeg_killed(ffmpeg: Install, tmp_path: Path) -> None:
    ffmpeg(
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.write(1, b'P6 1 1 255 abcP6 1 1 255'); time.sleep(600)"
    )
    source = opened(timeout=600.0)
    take(source)
    source._limit = 0.2  # type: ignore[attr-defined]  # only now, since a busy machine starts programs slowly
    assert failure(source).message == "ffmpeg has written no picture for 0.2 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_without_ffmpeg_there_is_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="the program ffmpeg is not installed") as error:
        opened()
    assert error.value.hint == "install ffmpeg: sudo apt install ffmpeg"


def test_the_command_line_of_ffmpeg() -> None:
    assert RtspSource(url="rtsp://cam/", rate=4.5, size=(320, 240), key_frames=True).words() == (
        *("ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-flags", "low_delay", "-skip_frame", "nokey"),
        *("-protocol_whitelist", "pipe,rtsp,rtp,udp,tcp", "-f", "concat", "-safe", "0", "-i", "pipe:0"),
        *("-map", "0:v:0", "-fps_mode", "passthrough"),
        *("-vf", "select='isnan(prev_selected_t)+gte(t-prev_selected_t,0.200000)',scale=320:240"),
        *("-c:v", "ppm", "-f", "image2pipe", "pipe:1"),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://cam/"}, "is no rtsp URL"),
        ({"url": "rtsp:///x"}, "is no rtsp URL"),
        ({"url": "rtsp://me:hush@cam/"}, "the url holds a user or a password"),
        ({"username": "me"}, "username and password_file go together"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        RtspSource(**({"url": "rtsp://cam/"} | options)).describe()  # type: ignore[arg-type]
    assert "hush" not in str(error.value)


# With ffmpeg and a real server


@pytest.fixture
def server() -> Iterator[str]:
    """Run a server that asks for the password `hush` of the user `me`, and return the URL of its stream."""
    script = Path(__file__).parents[1] / "rtsp_server.py"
    process = subprocess.Popen(["/usr/bin/python3", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield f"rtsp://127.0.0.1:{process.stdout.readline().strip()}/cam"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.wide
def test_a_real_stream(server: str, tmp_path: Path) -> None:
    assert shutil.which("ffmpeg")
    password = tmp_path / "password"
    password.write_text("hush\n")
    login = {"username": "me", "password_file": str(password)}
    for options, size in (({}, (320, 240)), ({"size": (64, 48), "rate": 2.0, "key_frames": True}, (64, 48))):
        source = opened(server, timeout=60.0, **login, **options)
        picture = take(source).picture
        assert picture
        assert (picture.width, picture.height) == size
        source.close()
    password.write_text("wrong\n")
    message = failure(opened(server, **login)).message
    assert "401 Unauthorized" in message
    assert "wrong" not in message
