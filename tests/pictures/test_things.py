"""Things have an edge all round, in every colour and light."""

import numpy as np
import pytest
from scipy import ndimage

from lenet_jax.pictures import things

SIDE = 120


def ring(size: float = 1) -> np.ndarray:
    """A ring of 100 on 40: [SIDE, SIDE]."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    radius = np.hypot(x, y) / size
    return np.float32(np.where((radius > 0.4) & (radius < 0.6), 100, 40))


def test_a_ring_and_its_hole_are_found_with_their_boxes():
    found = [thing for thing in things.find_things(ring()) if thing.closed > 0.9]
    boxes = {(t.sign, t.box.top, t.box.bottom) for t in found}
    assert any(sign == 1 and abs(a - 24) < 3 and abs(b - 96) < 3 for sign, a, b in boxes)
    assert any(sign == -1 and abs(a - 36) < 3 and abs(b - 84) < 3 for sign, a, b in boxes)


def test_what_touches_the_border_says_so():
    thing = max(things.find_things(ring(2)), key=lambda thing: thing.size * (thing.sign == 1))
    assert thing.border > 0.1
    assert thing.cut > 0.1


@pytest.mark.parametrize("scene", ["nothing", "a slope", "grain"])
def test_where_there_is_nothing_no_thing_is_closed(scene):
    rows = np.mgrid[:SIDE, :SIDE][0].astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 20, (SIDE, SIDE)).astype(np.float32)
    grey = {"nothing": 0 * rows + 77, "a slope": 2 * rows, "grain": 128 + grain}[scene]
    assert [thing for thing in things.find_things(grey) if thing.closed >= 0.8] == []


def test_the_local_median_has_the_pictures_shape_and_not_its_strokes():
    for shape in ((5, 3), (200, 333), (64, 64)):
        assert things.local_median(np.zeros(shape, np.float32)).shape == shape
        assert things.local_median(np.zeros((*shape, 3), np.float32)).shape == (*shape, 3)
    stroke = np.full((SIDE, SIDE), 200, np.float32)
    stroke[:, 50:60] = 0
    assert things.local_median(stroke).min() == 200


def test_colours_become_the_contrast_between_them():
    ink, paper = np.float32([214, 60, 60]), np.float32([50, 138, 60])  # of about equal luminance
    pixels = paper + (ink - paper) * (ring()[..., None] > 50)
    grey = things.flatten_colour(pixels)
    expected = np.linalg.norm(ink - paper) / np.sqrt(3)
    np.testing.assert_allclose(np.ptp(grey), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("mask", "fill", "convex"),
    [
        (np.ones((20, 30), bool), 1, 1),
        (np.tri(200, dtype=bool), 0.5, 1),
        (ring() > 50, np.pi / 4, 0.56),
    ],
)
def test_a_shape_is_told_by_its_hull(mask, fill, convex):
    np.testing.assert_allclose(things.shape(mask), (fill, convex), atol=0.02)


def test_holes_are_filled_and_bays_are_not():
    mask = np.ones((9, 9), bool)
    mask[3:5, 3:5] = False
    mask[6:, 7] = False
    expected = np.ones((9, 9), bool)
    expected[6:, 7] = False
    np.testing.assert_array_equal(things.fill_holes(mask), expected)


def test_masks_are_dilated_and_filled_as_by_scipy():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (9, 1), (30, 20)):
        mask = rng.random(shape) < 0.4
        for times in (1, 2):
            expected = ndimage.binary_dilation(mask, things.EIGHT_NEIGHBOURS, times)
            np.testing.assert_array_equal(things.dilate(mask, times), expected)
        np.testing.assert_array_equal(things.fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_the_median_of_a_small_picture_is_scipys():
    grey = np.random.default_rng(0).uniform(0, 255, (40, 30)).astype(np.float32)
    expected = ndimage.median_filter(grey, 11, mode="nearest")
    np.testing.assert_allclose(things.local_median(grey), expected, rtol=1e-6)
    every_other = things.local_median(grey, every=2)
    np.testing.assert_allclose(every_other[::2, ::2], expected[::2, ::2], rtol=1e-6)
    between = (expected[:-2:2] + expected[2::2]) / 2
    np.testing.assert_allclose(every_other[1:-1:2, ::2], between[:, ::2], rtol=1e-6)


def test_evenly_lit_paper_needs_one_view_and_other_paper_two():
    slope = np.mgrid[:SIDE, :SIDE][0] / 4
    assert {thing.view for thing in things.find_things(np.float32(ring() + slope))} == {0}
    lamp = np.square(np.mgrid[-1 : 1 : SIDE * 1j, :SIDE][0])
    assert {thing.view for thing in things.find_things(np.float32(ring() + 40 * lamp))} == {0, 1}


def test_a_things_thickness_is_its_widest_strokes():
    bars = np.zeros((SIDE, SIDE), np.float32)
    bars[20:90, 40:50] = bars[60:64, 20:100] = 200
    thickest = max(things.find_things(bars), key=lambda thing: thing.contrast).thickness
    assert 8 <= thickest <= 14
