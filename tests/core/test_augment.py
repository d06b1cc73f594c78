import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _results import path
from scipy import ndimage

from lenet_jax import data
from lenet_jax.core import augment as module
from lenet_jax.core.augment import STANDARD, STANDARDS, AugmentConfig, augment_config

KEY = jax.random.key(0)
# Compiled as a whole, which takes a tenth of the time of its operations one by one.
augment, warp = jax.jit(module.augment), jax.jit(module.warp)


@pytest.fixture(scope="module")
def images():
    return data.load("digits").train.images[:32]  # [32, 32, 32, 1] uint8


def constant(value):
    return jnp.full((32, 32, 32), value, jnp.float32)


def test_at_strength_0_a_copy_is_its_original_bit_for_bit(images):
    copies = augment(KEY, jnp.asarray(images), AugmentConfig())
    assert copies.dtype == jnp.float32
    np.testing.assert_array_equal(copies, images)


@pytest.mark.parametrize(("down", "right"), [(2, 0), (0, -3), (-1, 4), (40, 0), (0, -32)])
def test_a_whole_shift_is_numpys(images, down, right):
    padded = np.pad(images, ((0, 0), (50, 50), (50, 50), (0, 0)))
    wanted = padded[:, 50 + down : 82 + down, 50 + right : 82 + right]
    np.testing.assert_array_equal(warp(images, constant(down), constant(right)), wanted)


def test_a_field_of_fractions_is_scipys_bilinear_interpolation(images):
    random = np.random.default_rng(0)
    down, right = random.uniform(-6, 6, (2, 32, 32, 32)).astype(np.float32)
    got = np.asarray(warp(images, down, right))[..., 0]
    y, x = np.mgrid[:32, :32]
    for i, image in enumerate(images[..., 0].astype(float)):
        at = y + down[i].astype(float), x + right[i].astype(float)
        wanted = ndimage.map_coordinates(image, at, order=1, mode="grid-constant")
        np.testing.assert_allclose(got[i], wanted, atol=1e-3)
    assert not warp(images, constant(np.inf), constant(0)).any()


@pytest.mark.parametrize(
    ("only", "field"),
    [
        ({"rotation": 30.0}, "rotation"),
        ({"scale": 0.3}, "scale"),
        ({"shear": 0.3}, "shear"),
        ({"shift": 3.0}, "shift"),
    ],
)
def test_a_copy_is_the_affine_map_of_the_random_numbers_it_is_made_from(images, only, field):
    """The matrix of each distortion, written out in float64, and scipy's interpolation."""
    copies = np.asarray(augment(KEY, jnp.asarray(images), AugmentConfig(**only)))[..., 0]
    u = np.asarray(
        jax.random.uniform(jax.random.split(KEY)[0], (6, 32), minval=-1.0, maxval=1.0), float
    )
    amount = only[field]
    for i, image in enumerate(images[..., 0].astype(float)):
        angle, shift = np.deg2rad(amount * u[0, i]), np.zeros(2)
        matrix = {
            "rotation": [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]],
            "shear": [[1, 0], [amount * u[1, i], 1]],
            "scale": np.diag(1 + amount * u[2:4, i]),
            "shift": np.eye(2),
        }[field]
        if field == "shift":
            shift = amount * u[4:6, i]
        centre = np.full(2, 15.5)
        offset = centre + shift - np.array(matrix) @ centre
        wanted = ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(copies[i], wanted, atol=0.02)


def test_elastic_bending_has_the_given_standard_deviation_and_is_smooth():
    """Seen through an image of slopes: a copy's value is where its pixel came from."""
    slope = np.broadcast_to((np.arange(32) * 4 + 64)[None, None, :, None], (400, 32, 32, 1))
    copies = augment(KEY, jnp.asarray(slope.astype(np.uint8)), AugmentConfig(elastic=1.5))
    moved = (np.asarray(copies) - slope)[:, 8:24, 8:24, 0] / 4  # [400, 16, 16] pixels
    assert moved.std() == pytest.approx(1.5, rel=0.05)
    assert np.abs(moved.mean()) < 0.1
    assert np.diff(moved, axis=2).std() < 0.4  # independent pixels would differ by 2.1


def test_it_is_pure_in_its_key_and_each_copy_is_another(images):
    same = jnp.broadcast_to(jnp.asarray(images[:1]), images.shape)
    copies = augment(KEY, same, STANDARD)
    np.testing.assert_array_equal(copies, augment(KEY, same, STANDARD))
    assert len({copy.tobytes() for copy in np.asarray(copies)}) == len(images)
    assert not np.array_equal(copies, augment(jax.random.key(1), same, STANDARD))


@pytest.fixture(scope="module")
def photographs():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)


def test_a_channel_of_a_colour_image_is_augmented_as_a_grey_image_is(photographs):
    copies = augment(KEY, jnp.asarray(photographs), STANDARD._replace(flip=0.5))
    assert copies.shape == photographs.shape
    for channel in range(3):
        grey = augment(KEY, photographs[..., channel : channel + 1], STANDARD._replace(flip=0.5))
        np.testing.assert_allclose(copies[..., channel], grey[..., 0], atol=1e-4)


def test_half_of_the_images_are_mirrored_and_the_others_as_they_were(photographs):
    many = np.tile(photographs, (40, 1, 1, 1))
    copies = np.asarray(augment(KEY, many, AugmentConfig(flip=0.5)))
    mirrored = (copies == many[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (copies == many).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(many))
    for flip, wanted in ((0.0, many), (1.0, many[:, :, ::-1])):
        np.testing.assert_array_equal(augment(KEY, many, AugmentConfig(flip=flip)), wanted)


def test_what_is_mirrored_is_shifted_by_the_same_draws(photographs):
    """So that the two parts can be looked at one by one, and one key still decides both."""
    shifted = augment(KEY, photographs[:, :, ::-1], AugmentConfig(shift=4.0))
    both = augment(KEY, photographs, AugmentConfig(shift=4.0, flip=1.0))
    np.testing.assert_allclose(both, shifted, atol=1e-4)


def test_only_data_sets_that_say_so_are_mirrored():
    assert [name for name, config in STANDARDS.items() if config.flip] == ["shift_and_flip"]
    shares = [float(augment_config(amount, "shift_and_flip").flip) for amount in (0, 0.5, 1, 3)]
    assert shares == [0, 0.25, 0.5, 0.5]  # half is where both sides are alike
    assert augment_config(3.0, "shift_and_flip").shift == 12.0


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"kind='flip': choose one of elastic, shift_and_flip"):
        augment_config(1.0, "flip")


def test_its_numbers_are_data_that_vmap_sweeps(images):
    amounts = jnp.array([0.0, 0.5, 1.0])
    images = jnp.asarray(images)
    for kind in STANDARDS:
        copies_of = lambda amount, kind=kind: augment(KEY, images, augment_config(amount, kind))
        for amount, copies in zip(amounts, jax.vmap(copies_of)(amounts), strict=True):
            np.testing.assert_allclose(copies, copies_of(amount), atol=2e-3)
        np.testing.assert_array_equal(copies_of(0.0), images)


def strengths():
    return {name: number for name, number in STANDARD._asdict().items() if number is not None}


def test_the_picture_of_the_distortions_is_of_todays():
    drawn = json.loads(path("augmented.json").read_text())["strengths"]
    assert drawn == strengths()


def test_the_standard_is_what_the_search_preferred():
    """Its candidates were multiples of the standard before; each error is in the table."""
    found = json.loads(path("augment_search.json").read_text())
    rows = [row for row in found["rows"] if row["row"] == "augmented"]
    best = min(rows, key=lambda row: row["error"])
    before = {"shift": 2.0, "rotation": 10.0, "scale": 0.1, "shear": 0.1, "elastic": 0.7}
    expected = {name: best["augment"] * number for name, number in before.items()}
    assert strengths() == pytest.approx(expected, rel=0.03)
    table = path("augment_search.md").read_text()
    assert all(f"({100 * row['error']:.2f})" in table for row in rows)
