"""Encoded pictures: every common format becomes the pixels a model takes, and hostile files cost nothing."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from edged.api import DeviceError
from edged.core.pictures import PictureForm, PictureSpec, Placement
from edged.core.types import DrawnBox
from edged.pictures.encoded import EncodedPicture

RED, GREEN, BLUE, WHITE = (250, 10, 20), (10, 240, 30), (20, 30, 230), (255, 255, 255)


def quarters(width=64, height=48, mode="RGB"):
    """Return an image whose quarters are red and green above, blue and white below."""
    image = Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, WHITE])
    image = image.resize((width, height), Image.Resampling.NEAREST)
    return image.quantize() if mode == "P" else image.convert(mode)


def encoded(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return EncodedPicture(file.getvalue())


def form(width=4, height=4, region=(0.0, 0.0, 1.0, 1.0), mask=(), **spec):
    return PictureForm(PictureSpec(width=width, height=height, **spec), region, mask)


def corners(pixels):
    """Return the colours of the four corners, as read."""
    return [tuple(pixels[row, column].tolist()) for row in (0, -1) for column in (0, -1)]


def near(found, expected, tolerance):
    return np.abs(np.array(found, int) - np.array(expected, int)).max() <= tolerance


@pytest.mark.parametrize(
    ("kind", "mode", "options", "tolerance"),
    [
        ("PNG", "RGB", {}, 0),
        ("PNG", "RGBA", {}, 0),
        ("PNG", "P", {}, 0),
        ("BMP", "RGB", {}, 0),
        ("GIF", "P", {}, 0),
        ("WEBP", "RGB", {"lossless": True}, 0),
        ("JPEG", "RGB", {"quality": 95}, 6),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}, 6),
        ("JPEG", "CMYK", {"quality": 95}, 6),
    ],
)
def test_every_common_format_is_decoded(kind, mode, options, tolerance):
    picture = encoded(quarters(mode=mode), kind, **options)
    assert (picture.width, picture.height) == (64, 48)
    assert near(corners(picture.fitted(form())), [RED, GREEN, BLUE, WHITE], tolerance)


def test_the_first_frame_of_an_animation_is_taken():
    first, second = quarters(mode="P"), Image.new("P", (64, 48))
    picture = encoded(first, "GIF", save_all=True, append_images=[second, second])
    assert corners(picture.fitted(form())) == [RED, GREEN, BLUE, WHITE]


def test_a_picture_of_16_bits_keeps_its_brightness():
    picture = encoded(Image.fromarray(np.array([[0, 0x8000], [0x4000, 0xFFFF]], np.uint16)))
    assert picture.fitted(form(2, 2, colour="gray"))[..., 0].tolist() == [[0, 0x80], [0x40, 0xFF]]


def test_a_picture_in_gray_has_one_channel():
    pixels = encoded(quarters()).fitted(form(colour="gray"))
    assert pixels.shape == (4, 4, 1)
    assert corners(pixels) == [(83,), (147,), (50,), (255,)]


def test_bgr_turns_the_channels_round():
    assert corners(encoded(quarters()).fitted(form(colour="bgr"))) == [each[::-1] for each in (RED, GREEN, BLUE, WHITE)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_stated_by_exif_are_obeyed(orientation):
    """The picture is stored as a camera held at an angle does, and read upright, with its boxes."""
    turns = [None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE"]
    turn = [*turns, "ROTATE_270"][orientation - 1]
    stored = quarters() if turn is None else quarters().transpose(Image.Transpose[turn])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = encoded(stored, "JPEG", quality=95, exif=exif)
    assert (picture.width, picture.height) == (64, 48)
    assert near(corners(picture.fitted(form())), [RED, GREEN, BLUE, WHITE], 6)
    assert picture.placement(form()) == Placement(64, 48, 0.0, 0.0, 16.0, 12.0, form())
    with Image.open(BytesIO(picture.jpeg())) as shown:
        assert shown.size == (64, 48)
        assert near(corners(np.asarray(shown)), [RED, GREEN, BLUE, WHITE], 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_turns_nothing():
    assert encoded(quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff").fitted(form()).shape == (4, 4, 3)


def test_a_letterboxed_picture_is_padded():
    pixels = encoded(quarters(64, 32)).fitted(form(fit="letterbox", pad=7, filter="area"))
    assert pixels[:, 0].tolist() == [[7] * 3, [*RED], [*BLUE], [7] * 3]


def test_a_region_alone_is_scaled():
    assert {*corners(encoded(quarters()).fitted(form(region=(0.5, 0.0, 1.0, 0.5))))} == {GREEN}


def test_masked_pixels_are_painted_over():
    """The mask is in fractions of the source's picture, also when a region is scaled."""
    right = ((0.75, 0.0), (1.0, 0.0), (1.0, 1.0), (0.75, 1.0))
    pixels = encoded(quarters()).fitted(form(region=(0.5, 0.0, 1.0, 0.5), mask=(right,), pad=9))
    assert pixels[0].tolist() == [[*GREEN], [*GREEN], [9] * 3, [9] * 3]


def test_pipelines_that_want_the_same_share_one_picture():
    picture = encoded(quarters())
    assert picture.fitted(form()) is picture.fitted(form())
    assert picture.fitted(form()) is not picture.fitted(form(8, 8))


def test_a_jpeg_decoded_at_a_smaller_scale_shows_the_same():
    """Smooth content, 16 times as large as wanted: libjpeg's small scale must agree with the whole picture."""
    rows, columns = np.mgrid[0:960, 0:1280]
    smooth = np.stack([rows // 4, columns // 6, (rows + columns) // 10], axis=-1).astype(np.uint8)
    small = encoded(Image.fromarray(smooth), "JPEG", quality=95).fitted(form(80, 60))
    whole = encoded(Image.fromarray(smooth)).fitted(form(80, 60))
    assert near(small, whole, 4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused(kind, share):
    noise = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).convert("P" if kind == "GIF" else "RGB").save(file, kind)
    data = file.getvalue()
    with pytest.raises(DeviceError, match="a picture cannot be decoded") as caught:
        EncodedPicture(data[: int(share * len(data))]).fitted(form())
    assert "whole pictures" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff", b"<html>401</html>", bytes(1000)])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(DeviceError, match="a picture cannot be decoded: no JPEG, PNG, BMP, GIF or WebP"):
        EncodedPicture(data).fitted(form())


def png_head(width, height):
    """Return the beginning of a PNG of this size, enough for its head."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    idat = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(10_000, 10_000), (50_000, 50_000), (6_000, 5_000)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_head(size):
    with pytest.raises(DeviceError, match=r"too many pixels \(.*64 megapixels are allowed, and 24 if") as caught:
        EncodedPicture(png_head(*size)).fitted(form())
    assert "smaller pictures" in caught.value.hint


def test_a_small_region_of_a_large_jpeg_is_decoded_too():
    """Or else the picture is lost to all other pipelines of the source as well."""
    file = BytesIO()
    Image.new("L", (6_000, 5_000), 128).save(file, "JPEG")
    pixels = EncodedPicture(file.getvalue()).fitted(form(32, 32, region=(0.5, 0.5, 0.505, 0.505), colour="gray"))
    assert set(pixels.ravel().tolist()) == {128}


def test_a_picture_of_too_many_bytes_is_refused():
    with pytest.raises(DeviceError, match="a picture has more than 64 MiB"):
        EncodedPicture(bytes((64 << 20) + 1)).fitted(form())  # as much as a source reads of a larger file


MEASURE = """
import resource, sys
from edged.core.pictures import PictureForm, PictureSpec
from edged.pictures.encoded import EncodedPicture
from edged.pictures.pillow import require_pillow
data = open(sys.argv[1], "rb").read()
require_pillow()
form = PictureForm(PictureSpec(width=96, height=96))
EncodedPicture(open(sys.argv[2], "rb").read()).fitted(form)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
EncodedPicture(data).fitted(form)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_jpeg_of_sixty_megapixels_takes_little_memory(tmp_path):
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    Image.new("L", (9_000, 6_666), 128).save(large, "JPEG")
    quarters().save(small, "JPEG")
    done = subprocess.run([sys.executable, "-c", MEASURE, large, small], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24_000  # KiB; the pixels alone have 180 MB in RGB


def test_a_jpeg_that_needs_no_change_is_shown_as_received():
    picture = encoded(quarters(), "JPEG")
    assert picture.jpeg() is picture._data
    assert picture.jpeg(max_width=64) is picture._data


def test_boxes_are_drawn_into_a_smaller_jpeg():
    shown = encoded(Image.new("RGB", (640, 480), WHITE)).jpeg([DrawnBox(160, 120, 480, 360, "person 0.93")], 320)
    with Image.open(BytesIO(shown)) as image:
        assert (image.format, image.size) == ("JPEG", (320, 240))
        pixels = np.asarray(image).astype(int)
    assert near(pixels[80:180:10, 240], [[255, 64, 0]] * 10, 120)
    assert near(pixels[200, ::20], [[255] * 3] * 16, 4)


@pytest.mark.parametrize("text", ["", "Straße 人", "x" * 1000, "two\nlines"])
def test_any_text_and_any_box_can_be_drawn(text):
    boxes = [DrawnBox(-10, -10, 1e9, 1e9, text), DrawnBox(50, 40, 10, 5, text), DrawnBox(0, 0, 0, 0, text)]
    assert encoded(quarters()).jpeg(boxes)[:2] == b"\xff\xd8"
