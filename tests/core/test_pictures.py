"""The geometry of pictures: regions, ways of scaling, and the way back to the source's picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.pictures import PictureForm, PictureSpec, Placement, default_spec, place, scaling


def form(fit="stretch", width=100, height=100, **options):
    return PictureForm(PictureSpec(width=width, height=height, fit=fit), **options)


def test_a_stretched_picture_fills_the_models_picture():
    assert scaling(form(), 640, 480) == ((0, 0, 640, 480), (0, 0, 100, 100))
    assert place(form(), 640, 480) == Placement(640, 480, 0.0, 0.0, 6.4, 4.8, form())


def test_a_letterboxed_picture_is_padded_on_both_ends():
    assert scaling(form("letterbox"), 640, 480) == ((0, 0, 640, 480), (0, 12, 100, 87))
    placement = place(form("letterbox"), 640, 480)
    assert placement.point(0, 12) == (0.0, 0.0)
    assert placement.point(100, 87) == pytest.approx((640.0, 480.0))


def test_a_cropped_picture_loses_both_ends_of_its_longer_side():
    assert scaling(form("crop"), 640, 480) == ((80, 0, 560, 480), (0, 0, 100, 100))
    assert place(form("crop"), 640, 480) == Placement(640, 480, 80.0, 0.0, 4.8, 4.8, form("crop"))


def test_a_region_grows_to_whole_pixels():
    assert scaling(form(region=(0.25, 0.0, 0.501, 0.5)), 640, 480).source == (160, 0, 321, 240)
    assert scaling(form(region=(0.9999, 0.9999, 1.0, 1.0)), 10, 10).source == (9, 9, 10, 10)


def test_a_box_of_the_model_is_clipped_to_the_sources_picture():
    assert place(form(region=(0.5, 0.0, 1.0, 1.0)), 640, 480).box(50, -10, 120, 50) == (480.0, 0.0, 640.0, 240.0)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((96, 64), PictureSpec(width=64, height=96, colour="gray")),
        ((96, 64, 1), PictureSpec(width=64, height=96, colour="gray")),
        ((96, 64, 3), PictureSpec(width=64, height=96)),
        ((3, 96, 64), None),
        ((7,), None),
    ],
)
def test_the_default_picture_follows_from_the_shape_of_a_sample(shape, spec):
    assert default_spec(shape) == spec


fractions = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[0] < pair[1])
sides = st.integers(1, 5000)


@given(st.sampled_from(["stretch", "letterbox", "crop"]), sides, sides, sides, sides, fractions, fractions)
def test_the_filled_box_leads_back_to_the_scaled_box(fit, width, height, wide, high, across, down):
    region = across[0], down[0], across[1], down[1]
    wanted = form(fit, min(width, 300), min(height, 300), region=region)
    source, target = scaling(wanted, wide, high)
    assert 0 <= source[0] < source[2] <= wide + 1e-6
    assert 0 <= source[1] < source[3] <= high + 1e-6
    assert 0 <= target[0] < target[2] <= wanted.spec.width
    assert 0 <= target[1] < target[3] <= wanted.spec.height
    assert place(wanted, wide, high).box(*target) == pytest.approx(source)
