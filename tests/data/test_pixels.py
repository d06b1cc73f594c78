"""Whatever way round a file has its pixels, the network gets white on black, 0 to 255."""

import numpy as np
import pytest
from made_up import made_up

from lenet_jax import data
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.pixels import white_on_black

DIGITS = data.load("digits")
LABELS = np.zeros(50, np.uint8)
GREY = np.ascontiguousarray(DIGITS.train.images[:50, ..., 0])
WIDE = np.zeros_like(GREY)
WIDE[:, 2:-2, 2:-2] = GREY[:, 2:-2, 2:-2]  # paper all around


def turned(images):
    splits, change = white_on_black(RawSplits(images, LABELS, images[:20], LABELS[:20]))
    assert splits.train_images.dtype == np.uint8
    np.testing.assert_array_equal(splits.test_images, splits.train_images[:20])
    return splits.train_images, change


RIM = np.zeros_like(WIDE)
RIM[:, [0, -1]] = RIM[:, :, [0, -1]] = 20  # a dark frame of one pixel around a light inside
RIM[:, 1:-1, 1:-1] = 200
BLACK = np.zeros_like(WIDE)


@pytest.mark.parametrize("images", [WIDE, GREY, made_up(50, 1).train_images, WIDE // 2, RIM, BLACK])
def test_what_is_light_on_dark_or_unclear_stays(images):
    found, change = turned(images)
    assert found is images
    assert change == ""


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (180, 20), (200, 100)])
def test_dark_on_light_is_inverted(paper, ink):
    images = np.rint(paper - WIDE * ((paper - ink) / 255)).astype(np.uint8)
    found, change = turned(images)
    np.testing.assert_array_equal(found, 255 - images)
    assert change == "inverted, being dark on light"


def test_a_mask_becomes_black_and_white():
    mask = (WIDE > 127).astype(np.uint8)
    found, change = turned(mask)
    np.testing.assert_array_equal(found, 255 * mask)
    assert change == "scaled from 0..1 to 0..255"
    found, change = turned(1 - mask)
    np.testing.assert_array_equal(found, 255 * mask)
    assert change == "scaled from 0..1 to 0..255 and inverted, being dark on light"


def test_counts_of_ink_become_grey():
    found, change = turned(WIDE // 16)
    np.testing.assert_array_equal(found, np.rint(WIDE // 16 * (255 / (WIDE.max() // 16))))
    assert change == "scaled from 0..15 to 0..255"


def test_mnist_is_as_it_is(mnist_dir):
    splits = data.idx.load_folder(mnist_dir)
    assert white_on_black(splits)[1] == ""
    inverted = splits._replace(train_images=255 - splits.train_images)
    assert white_on_black(inverted)[1] == "inverted, being dark on light"
