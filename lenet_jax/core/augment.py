"""Augmented images: shift, rotation, scale, shear, elastic bending and mirroring, on the device.

Pure in the key: the same key gives the same images. B is the batch, S the side of an image, C its
channels.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

GRID = 6  # elastic bending: random arrows on a GRID x GRID lattice, spread smoothly over the image


class AugmentConfig(NamedTuple):
    """How far an augmented image may lie from its original; 0 leaves that part out, exactly.

    Numbers, so that `jax.vmap` can sweep them. The first four bound a uniform draw around 0.
    """

    shift: ArrayLike = 0.0  # pixels, along each axis
    rotation: ArrayLike = 0.0  # degrees
    scale: ArrayLike = 0.0  # 0.1 is 10 % larger or smaller, each axis by itself
    shear: ArrayLike = 0.0  # columns a row
    elastic: ArrayLike = 0.0  # standard deviation of a pixel's displacement, in pixels
    flip: ArrayLike | None = None  # share that is mirrored left to right; None for no such step


# What --augment=1 means; chosen on held-out training images, experiments/results/augment_search.md.
STANDARD = AugmentConfig(shift=1.4, rotation=7.0, scale=0.07, shear=0.07, elastic=0.5)
# By the names that data sets choose from. Characters are not mirrored: another may come of it.
STANDARDS = {
    "elastic": STANDARD,
    "shift_and_flip": AugmentConfig(shift=4.0, flip=0.5),  # as residual networks had CIFAR-10
}


def augment_config(amount: ArrayLike, kind: str = "elastic") -> AugmentConfig:
    """One of `STANDARDS` times `amount`: 0 leaves the images as they are.

    At most half of the images are mirrored: that is where the two sides are alike.

    >>> augment_config(2.0, "shift_and_flip").shift
    8.0
    """
    config = jax.tree.map(lambda number: amount * number, STANDARDS[kind])
    return config if config.flip is None else config._replace(flip=jnp.minimum(config.flip, 0.5))


def augment(
    key: jax.Array, images: jax.Array, config: AugmentConfig, *, axis_name: str | None = None
) -> jax.Array:
    """An augmented image of each image, about its centre.

    Args:
      key: decides the augmented images.
      images: uint8 [B, S, S, C], 0 the background.
      config: see `AugmentConfig`.
      axis_name: of a `jax.shard_map` over equal parts of a batch: the draws are the whole batch's.

    Returns:
      float32 [B, S, S, C], in the units of `images`.

    >>> images = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    >>> bool((augment(jax.random.key(0), images, AugmentConfig()) == images).all())
    True
    """
    batch, side = images.shape[:2]
    affine_key, elastic_key = jax.random.split(key)
    parts = 1 if axis_name is None else lax.axis_size(axis_name)
    draws = jax.random.uniform(affine_key, (6, parts * batch), minval=-1.0, maxval=1.0)
    arrows = jax.random.normal(elastic_key, (GRID**2, 2, parts * batch))
    own = lambda array: array
    if axis_name is not None:  # drawn for all, so that the devices' number does not matter
        first = lax.axis_index(axis_name) * batch
        own = lambda array: lax.dynamic_slice_in_dim(array, first, batch, -1)
    draws, arrows = own(draws), own(arrows)
    angle = jnp.deg2rad(config.rotation * draws[0])
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    shear = config.shear * draws[1]
    scale_y, scale_x = 1 + config.scale * draws[2], 1 + config.scale * draws[3]
    # Where a pixel comes from, seen from the centre: turned, then sheared, then scaled. Less where
    # it is, that is a sum of y, x and 1 for each axis.
    affine = [
        [scale_y * cosine - 1, scale_y * sine, config.shift * draws[4]],
        [
            scale_x * (shear * cosine - sine),
            scale_x * (cosine + shear * sine) - 1,
            config.shift * draws[5],
        ],
    ]
    bends = config.elastic * arrows
    weights = jnp.concatenate([jnp.array(affine).transpose(1, 0, 2), bends])  # [3 + GRID², 2, B]
    fields = weights.reshape(len(weights), -1).T @ _basis(side)  # [2 B, S S]
    down, right = fields.reshape(2, batch, side, side)
    if config.flip is not None:
        # A key of its own, so that with and without it the other draws are the same.
        chances = own(jax.random.uniform(jax.random.fold_in(key, 2), (parts * batch,)))
        is_mirrored = (chances < config.flip)[:, None, None, None]
        images = jnp.where(is_mirrored, images[:, :, ::-1], images)
    return warp(images, down, right)


def warp(images: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
    """The image whose pixel at (y, x) is the original's at (y + down, x + right), bilinearly.

    Args:
      images: uint8 [B, S, S, C]; outside lies background, 0.
      down, right: float [B, S, S], in pixels.

    Returns:
      float32 [B, S, S, C].
    """
    batch, side, _, channels = images.shape
    # The 2x2 pixels that an output lies between travel in one 32-bit word, since a gather is what
    # this costs: word [y, x] holds the pixels (y - 1, x - 1) to (y, x).
    planes = images.transpose(0, 3, 1, 2).reshape(batch * channels, side, side)
    framed = jnp.pad(planes.astype(jnp.uint32), ((0, 0), (1, 1), (1, 1)))
    words = (
        framed[:, :-1, :-1]
        | framed[:, :-1, 1:] << 8
        | framed[:, 1:, :-1] << 16
        | framed[:, 1:, 1:] << 24
    )
    # At -1 and at S there is nothing but background left: what lies further out is the same.
    down, right = (_repeat(field, channels) for field in (down, right))
    y = jnp.clip(jnp.arange(side)[None, :, None] + down, -1, side) + 1
    x = jnp.clip(jnp.arange(side)[None, None, :] + right, -1, side) + 1
    row, column = jnp.minimum(jnp.floor(y), side), jnp.minimum(jnp.floor(x), side)
    first = jnp.arange(len(planes))[:, None, None] * (side + 1) ** 2  # word of each plane
    at = first + (row * (side + 1) + column).astype(jnp.int32)
    # The barriers keep the gather out of its users' loops, which would run it once for each pixel
    # they take from the word.
    words, at = lax.optimization_barrier((words.ravel(), at))
    word = lax.optimization_barrier(words.at[at].get(mode="clip"))
    pixel = lambda bits: (word >> bits & 255).astype(jnp.float32)
    y, x = y - row, x - column
    top = pixel(0) * (1 - x) + pixel(8) * x
    bottom = pixel(16) * (1 - x) + pixel(24) * x
    planes = top * (1 - y) + bottom * y
    return planes.reshape(batch, channels, side, side).transpose(0, 2, 3, 1)


def _repeat(field: jax.Array, channels: int) -> jax.Array:
    """[B, S, S] -> [B C, S, S], the same for all channels of an image."""
    batch, *size = field.shape
    return jnp.broadcast_to(field[:, None], (batch, channels, *size)).reshape(-1, *size)


@cache
def _basis(side: int) -> np.ndarray:
    """What displacement fields are sums of, [3 + GRID², S S]: y, x, 1 and the lattice's bells.

    The bells are one spacing wide, and scaled so that independent arrows of variance 1 displace
    every pixel with variance 1. In NumPy, and so a constant of the compiled function.
    """
    at = np.arange(side) - (side - 1) / 2  # from the centre
    spacing = side / GRID
    points = (np.arange(GRID) - (GRID - 1) / 2) * spacing
    bells = np.exp(-0.5 * ((points[:, None] - at[None, :]) / spacing) ** 2)  # [GRID, S]
    bells /= np.sqrt(np.sum(bells**2, axis=0, keepdims=True))
    one = np.ones(side)
    factors = [(at, one), (one, at), (one, one), *((y, x) for y in bells for x in bells)]
    return np.stack([np.outer(y, x).ravel() for y, x in factors]).astype(np.float32)
