"""Cameras of this board, behind a kernel in memory: none of this has met a real camera."""

from __future__ import annotations

import errno
import subprocess
from itertools import cycle
from pathlib import Path

import pytest

from edged.api import Chunk, DeviceError, DeviceRequirements
from edged.core.picture_stream import DAMAGED, TRUNCATED
from edged.core.pictures import PictureForm, PictureSpec
from edged.core.source_health import DROPPED
from edged.sources import v4l2
from edged.sources.camera import CameraPictures, CameraSource, open_camera, refusal
from edged.sources.v4l2 import VideoControl, VideoDevice, VideoFormat, VideoSize, cameras
from edged.testing.source_contract import PictureSourceContract
from tests.fake_camera import FakeKernel
from tests.jpegs import jpeg

WEBCAM = {"MJPG": {(1280, 720): (30,), (640, 480): (30, 15)}, "YUYV": {(640, 480): (15,), (4, 2): (5,)}}
CONTROLS = {"Brightness": (-64, 64, 0), "White Balance, Auto": (0, 1, 1)}
PICTURES = [jpeg(shade) for shade in (10, 90, 170)]


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel(WEBCAM, CONTROLS)


class Movie(FakeKernel):
    """A camera with another picture at each look."""

    def wait(self, fd: int, seconds: float) -> None:
        self.film.append((jpeg(next(self.shades)), 0))

    shades = cycle(range(256))


class TestContract(PictureSourceContract):
    @pytest.fixture
    def config(self, monkeypatch: pytest.MonkeyPatch) -> CameraSource:
        monkeypatch.setattr("edged.sources.camera.VideoKernel", lambda: Movie(WEBCAM, CONTROLS))
        return CameraSource()


def opened(kernel: FakeKernel, **options: object) -> CameraPictures:
    return open_camera(CameraSource(**options), kernel)  # type: ignore[arg-type]


def take(source: CameraPictures) -> Chunk:
    chunk = source.read(1.0)
    assert chunk is not None
    return chunk


def test_jpegs_of_a_camera(kernel: FakeKernel) -> None:
    source = opened(kernel, rate=15.0)
    kernel.film.append((PICTURES[0] + bytes(100), 0))
    chunk = take(source)
    assert chunk.samples.tobytes() == PICTURES[0]
    assert chunk.picture
    assert chunk.picture.width == 16
    assert source.faults == {}
    assert kernel.rate == 15.0
    source.close()
    source.close()
    assert (kernel.streams, kernel.is_open, kernel.opened) == (False, False, ["/dev/video0"])


def test_the_newest_picture_counts_and_buffers_return_to_the_camera(kernel: FakeKernel) -> None:
    source = opened(kernel)
    for _ in range(3):
        kernel.film += [(picture, 0) for picture in PICTURES]
        assert take(source).samples.tobytes() == PICTURES[-1]
    assert source.faults == {DROPPED: 6}
    assert sorted(kernel.queued) == [0, 1, 2, 3]
    assert source.read(0.0) is None


def test_the_rate_holds_pictures_back(kernel: FakeKernel) -> None:
    source = opened(kernel, rate=0.001)
    kernel.film += [(picture, 0) for picture in PICTURES[:2]]
    take(source)
    kernel.film.append((PICTURES[2], 0))
    assert source.read(0.01) is None
    assert source.faults == {DROPPED: 1}


def test_damaged_and_truncated_pictures_are_faults(kernel: FakeKernel) -> None:
    source = opened(kernel)
    kernel.film += [(PICTURES[0], v4l2.DAMAGED), (PICTURES[0][:-4], 0), (PICTURES[1], 0)]
    assert take(source).samples.tobytes() == PICTURES[1]
    assert source.faults == {DAMAGED: 1, TRUNCATED: 1}
    assert source.refused.startswith(r"\xff\xd8")


@pytest.mark.parametrize("padding", [0, 3])
def test_raw_pictures_may_have_longer_rows(kernel: FakeKernel, padding: int) -> None:
    kernel.row_padding = padding
    source = opened(kernel, format="yuyv", size=(4, 2))
    row = b"\x10\x80\xeb\x80" * 2 + bytes(padding)
    kernel.film += [(row, 0), (row + row, 0)]
    picture = take(source).picture
    assert picture
    assert (picture.width, picture.height) == (4, 2)
    form = PictureForm(PictureSpec(width=4, height=2, colour="gray", filter="nearest"))
    assert picture.fitted(form)[..., 0].tolist() == [[0, 255, 0, 255]] * 2
    assert source.faults == {TRUNCATED: 1}


def test_controls_are_set_by_name(kernel: FakeKernel) -> None:
    opened(kernel, controls={"brightness": 10, "white_balance_auto": 0})
    assert kernel.set == {"Brightness": 10, "White Balance, Auto": 0}


def test_formats_and_controls_are_listed(kernel: FakeKernel) -> None:
    device = VideoDevice("/dev/video0", kernel)
    assert device.card == "Fake Camera"
    assert device.formats() == [
        VideoFormat("MJPG", (VideoSize(1280, 720, (30.0,)), VideoSize(640, 480, (30.0, 15.0)))),
        VideoFormat("YUYV", (VideoSize(640, 480, (15.0,)), VideoSize(4, 2, (5.0,)))),
    ]
    assert device.controls() == [
        VideoControl(1, "brightness", -64, 64, 1, 0),
        VideoControl(2, "white_balance_auto", 0, 1, 1, 1),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (800, 600)}, "/dev/video0 has no 800 x 600 in MJPG; the nearest is 1280 x 720 in MJPG"),
        ({"controls": {"zoom": 1}}, "/dev/video0 has no control 'zoom'"),
    ],
)
def test_wishes_a_camera_cannot_fulfil_have_a_remedy(
    kernel: FakeKernel, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DeviceError, match=message) as error:
        opened(kernel, **options)
    assert error.value.hint
    assert not kernel.is_open


def test_a_device_that_captures_nothing_is_no_camera(kernel: FakeKernel) -> None:
    kernel.capabilities = v4l2.CAN_STREAM
    with pytest.raises(DeviceError, match="/dev/video0 captures no pictures") as error:
        opened(kernel)
    assert 'kind = "command"' in error.value.hint


@pytest.mark.parametrize("step", [v4l2.S_FMT, v4l2.REQBUFS, v4l2.STREAMON], ids=["format", "buffers", "start"])
def test_a_camera_in_use_is_closed_again(kernel: FakeKernel, step: int) -> None:
    kernel.fails[step] = errno.EBUSY
    with pytest.raises(DeviceError, match="/dev/video0 is in use by another program"):
        opened(kernel)
    assert not kernel.is_open


def test_a_camera_without_a_choice_of_rates_keeps_its_own(kernel: FakeKernel) -> None:
    kernel.fails[v4l2.S_PARM] = errno.ENOTTY
    opened(kernel, rate=5.0)
    assert kernel.rate is None


def test_a_camera_that_is_unplugged_is_gone(kernel: FakeKernel) -> None:
    source = opened(kernel)
    kernel.fails = {v4l2.DQBUF: errno.ENODEV, v4l2.STREAMOFF: errno.ENODEV}
    with pytest.raises(DeviceError, match="/dev/video0 is not there"):
        source.read(1.0)
    source.close()
    assert not kernel.is_open


def test_a_camera_that_hangs_is_given_up(kernel: FakeKernel) -> None:
    source = opened(kernel, timeout=0.05)
    with pytest.raises(DeviceError, match=r"/dev/video0 gives no picture for 0\.05 s"):
        source.read(60.0)


def test_a_missing_camera_names_those_there(tmp_path: Path) -> None:
    error = OSError(errno.ENOENT, "No such file")
    assert refusal("/dev/video7", error, tmp_path).hint == "plug it in"
    (tmp_path / "sys/class/video4linux/video0").mkdir(parents=True)
    assert "sandbox hides all devices" in refusal("/dev/video7", error, tmp_path).hint
    (tmp_path / "dev").mkdir()
    for name in ("video10", "video2", "videos"):
        (tmp_path / "dev" / name).touch()
    assert cameras(tmp_path / "dev") == [f"{tmp_path}/dev/video2", f"{tmp_path}/dev/video10"]
    assert refusal("/dev/video7", error, tmp_path).hint.endswith(f"{tmp_path}/dev/video2, {tmp_path}/dev/video10")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EPERM, "the service's sandbox blocks /dev/video0"),
        (errno.EACCES, "not allowed to open /dev/video0"),
        (errno.ENOTTY, "/dev/video0 is no camera"),
        (errno.EIO, "/dev/video0 fails as a camera: made up"),
    ],
)
def test_errors_have_a_remedy(kernel: FakeKernel, number: int, message: str) -> None:
    kernel.fails[0] = number
    with pytest.raises(DeviceError, match=message) as error:
        opened(kernel)
    assert error.value.hint
    assert error.value.retryable


def test_a_real_kernel_refuses_a_file_that_is_no_camera() -> None:
    with pytest.raises(DeviceError, match="/dev/null is no camera"):
        CameraSource(device="/dev/null").open()


def test_the_sandbox_must_permit_cameras() -> None:
    assert CameraSource(device="/dev/video2").devices() == DeviceRequirements(
        paths=("/dev/video2",), groups=("video",), drivers={"video4linux": "videodev"}
    )


REQUESTS = (
    *("QUERYCAP", "ENUM_FMT", "S_FMT", "REQBUFS", "QUERYBUF", "QBUF", "DQBUF", "STREAMON", "STREAMOFF", "S_PARM"),
    *("S_CTRL", "QUERYCTRL", "ENUM_FRAMESIZES", "ENUM_FRAMEINTERVALS"),
)
PLACES = {
    "v4l2_format, fmt": 8,
    "v4l2_buffer, bytesused": 8,
    "v4l2_buffer, m": 64,
    "v4l2_buffer, length": 72,
    "v4l2_streamparm, parm.capture.timeperframe": 12,
    "v4l2_frmivalenum, discrete": 20,
    "v4l2_queryctrl, minimum": 40,
}


def test_layouts_and_requests_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    """The number of a request holds the size of the layout. Compiled, not run on a camera."""
    lines = [f'printf("%lu ", (unsigned long)(unsigned)VIDIOC_{name});' for name in REQUESTS]
    lines += [f'printf("%zu ", offsetof(struct {place}));' for place in PLACES]
    source = "\n".join(
        ["#include <linux/videodev2.h>", "#include <stdio.h>", "#include <stddef.h>", "int main(void) {", *lines, "}"]
    )
    (tmp_path / "print.c").write_text(source)
    subprocess.run(["cc", "-o", tmp_path / "print", tmp_path / "print.c"], check=True)
    printed = subprocess.run([tmp_path / "print"], check=True, capture_output=True, text=True).stdout
    assert [int(number) for number in printed.split()] == [
        *(getattr(v4l2, name) for name in REQUESTS),
        *PLACES.values(),
    ]
