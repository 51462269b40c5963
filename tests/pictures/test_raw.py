"""Uncompressed pictures become the pixels a model takes, the simplest way without Pillow."""

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from edged.core.pictures import PictureForm, PictureSpec, Placement
from edged.core.types import DrawnBox
from edged.pictures.encoded import EncodedPicture
from edged.pictures.raw import RawPicture

SIZE = 48, 64


def form(width=16, height=12, region=(0.0, 0.0, 1.0, 1.0), **spec):
    return PictureForm(PictureSpec(width=width, height=height, **spec), region)


def random_rgb():
    return np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)


def yuyv_of(luma, blue, red):
    """Return a picture of one colour."""
    pixels = np.empty((*SIZE, 2), np.uint8)
    pixels[..., 0], pixels[:, 0::2, 1], pixels[:, 1::2, 1] = luma, blue, red
    return RawPicture(pixels, "yuyv")


def test_nearest_takes_the_pixel_below_the_middle():
    columns = np.arange(8, dtype=np.uint8)[None].repeat(2, axis=0)
    picture = RawPicture(columns, "gray")
    assert picture.fitted(form(4, 1, filter="nearest", colour="gray"))[0, :, 0].tolist() == [1, 3, 5, 7]
    assert picture.fitted(form(8, 1, (0.5, 0, 1, 1), filter="nearest", colour="gray"))[0, :, 0].tolist() == [
        *(4, 4, 5, 5, 6, 6, 7, 7)
    ]


@pytest.mark.parametrize("name", ["nearest", "bilinear", "area"])
@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("colour", ["rgb", "bgr", "gray"])
def test_raw_and_encoded_pictures_become_the_same(name, fit, colour):
    pixels = random_rgb()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    wanted = form(15, 11, (0.1, 0.2, 0.9, 1.0), filter=name, fit=fit, colour=colour)
    raw, decoded = RawPicture(pixels, "rgb").fitted(wanted), EncodedPicture(file.getvalue()).fitted(wanted)
    assert np.abs(raw.astype(int) - decoded).max() <= 1


@pytest.mark.parametrize("name", ["nearest", "bilinear", "area"])
@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 1)),
        ((41, 240, 110), (0, 0, 255)),
    ],
)
def test_the_colours_of_webcams_are_understood(name, yuv, rgb):
    """The values are those of the colour bars of ITU-R 601."""
    pixels = yuyv_of(*yuv).fitted(form(filter=name))
    assert np.abs(pixels.reshape(-1, 3).astype(int) - rgb).max() <= 1


def test_brightness_of_a_webcam_fills_the_range():
    assert yuyv_of(235, 90, 90).fitted(form(colour="gray", filter="nearest")).ravel().tolist() == [255] * 192
    assert yuyv_of(10, 90, 90).fitted(form(colour="gray")).ravel().tolist() == [0] * 192


def test_gray_becomes_rgb():
    pixels = RawPicture(np.full(SIZE, 77, np.uint8), "gray").fitted(form())
    assert pixels.shape == (12, 16, 3)
    assert {*pixels.ravel().tolist()} == {77}


def test_a_placement_leads_back():
    assert RawPicture(random_rgb(), "rgb").placement(form()) == Placement(64, 48, 0.0, 0.0, 4.0, 4.0, form())


@pytest.mark.parametrize("colour", ["rgb", "gray", "yuyv"])
def test_every_kind_can_be_shown_as_a_jpeg(colour):
    pixels = {"rgb": random_rgb(), "gray": random_rgb()[..., 0], "yuyv": random_rgb()[..., :2]}[colour]
    shown = RawPicture(np.ascontiguousarray(pixels), colour).jpeg([DrawnBox(1, 2, 30, 40, "cat")], 32)
    with Image.open(BytesIO(shown)) as image:
        assert (image.format, image.size) == ("JPEG", (32, 24))


WITHOUT_PILLOW = """
import sys
sys.modules["PIL"] = None
import numpy as np
from edged.api import DeviceError
from edged.core.pictures import PictureForm, PictureSpec
from edged.pictures.raw import RawPicture
picture = RawPicture(np.zeros((8, 8, 2), np.uint8), "yuyv")
print(picture.fitted(PictureForm(PictureSpec(width=4, height=2, filter="nearest"))).shape)
try:
    picture.fitted(PictureForm(PictureSpec(width=4, height=2)))
except DeviceError as error:
    print(error.message, error.hint, sep="; ")
"""


def test_nearest_takes_no_pillow_and_other_filters_say_so():
    done = subprocess.run([sys.executable, "-c", WITHOUT_PILLOW], capture_output=True, text=True, check=True)
    shape, refusal = done.stdout.splitlines()
    assert shape == "(2, 4, 3)"
    assert refusal.startswith("reading pictures takes Pillow, which cannot be imported")
    assert refusal.endswith("; pip install 'edged[image]'")
