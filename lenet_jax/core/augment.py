"""Augmented images: shift, rotation, scale, shear, elastic bending and mirroring, on the device.

The same key gives the same images. B is the batch, S the side of an image, C its channels.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

GRID = 6  # elastic bending: random displacements on a GRID x GRID lattice, smoothed over the image


class AugmentConfig(NamedTuple):
    """Strengths of the distortions, as numbers that `jax.vmap` can sweep; 0 has exactly no effect.

    The first four bound uniform draws around 0.
    """

    shift: ArrayLike = 0.0  # pixels, along each axis
    rotation: ArrayLike = 0.0  # degrees
    scale: ArrayLike = 0.0  # 0.1 is 10 % larger or smaller, independently per axis
    shear: ArrayLike = 0.0  # columns per row
    elastic: ArrayLike = 0.0  # standard deviation of a pixel's displacement, in pixels
    flip: ArrayLike | None = None  # fraction mirrored left to right; None: no such operation


# --augment=1, chosen on held-out training images: experiments/results/augment_search.md.
STANDARD = AugmentConfig(shift=1.4, rotation=7.0, scale=0.07, shear=0.07, elastic=0.5)
# Each data set names one. Characters are not mirrored, because that can give another character.
STANDARDS = {
    "elastic": STANDARD,
    "shift_and_flip": AugmentConfig(shift=4.0, flip=0.5),  # usual for residual networks on CIFAR-10
}


def augment_config(amount: ArrayLike, kind: str = "elastic") -> AugmentConfig:
    """One of `STANDARDS` times `amount`: 0 leaves the images as they are.

    At most half of the images are mirrored: more would favour the mirrored side.

    Raises:
      ValueError: there is no such kind.

    >>> augment_config(2.0, "shift_and_flip").shift
    8.0
    """
    if kind not in STANDARDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(STANDARDS)}")
    config = jax.tree.map(lambda number: amount * number, STANDARDS[kind])
    return config if config.flip is None else config._replace(flip=jnp.minimum(config.flip, 0.5))


def augment(
    key: jax.Array, images: jax.Array, config: AugmentConfig, *, axis_name: str | None = None
) -> jax.Array:
    """One augmented image per image, distorted about its centre.

    Args:
      key: decides the random draws.
      images: uint8 [B, S, S, C] with background 0.
      config: see `AugmentConfig`.
      axis_name: the axis of a `jax.shard_map` over equal parts of a batch.

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
    bends = jax.random.normal(elastic_key, (GRID**2, 2, parts * batch))
    # Drawn for the whole batch, so that the number of devices does not matter.
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    own: Any = lambda array: lax.dynamic_slice_in_dim(array, first, batch, -1)
    draws, bends = own(draws), config.elastic * own(bends)
    angle = jnp.deg2rad(config.rotation * draws[0])
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    shear = config.shear * draws[1]
    scale_y, scale_x = 1 + config.scale * draws[2], 1 + config.scale * draws[3]
    shift_y, shift_x = config.shift * draws[4], config.shift * draws[5]
    # The displacement of a pixel to its source: its position relative to the centre, rotated,
    # sheared and scaled, minus that position. On each axis it is a sum of multiples of y, x and 1.
    affine = [
        [scale_y * cosine - 1, scale_y * sine, shift_y],
        [scale_x * (shear * cosine - sine), scale_x * (cosine + shear * sine) - 1, shift_x],
    ]
    weights = jnp.concatenate([jnp.array(affine).transpose(1, 0, 2), bends])  # [3 + GRID², 2, B]
    fields = weights.reshape(len(weights), -1).T @ _basis(side)  # [2 B, S S]
    down, right = fields.reshape(2, batch, side, side)
    if config.flip is not None:
        # A separate key, so that mirroring does not change the other draws.
        chances = own(jax.random.uniform(jax.random.fold_in(key, 2), (parts * batch,)))
        is_mirrored = (chances < config.flip)[:, None, None, None]
        images = jnp.where(is_mirrored, images[:, :, ::-1], images)
    return warp(images, down, right)


def warp(images: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
    """Bilinear resampling: the pixel at (y, x) comes from (y + down, x + right).

    Args:
      images: uint8 [B, S, S, C]; pixels outside are 0.
      down, right: float [B, S, S], in pixels.

    Returns:
      float32 [B, S, S, C].
    """
    batch, side, _, channels = images.shape
    # The cost is the gather, so one 32-bit word holds the 2x2 pixels around an output: word [y, x]
    # holds the pixels (y - 1, x - 1) to (y, x).
    planes = images.transpose(0, 3, 1, 2).reshape(batch * channels, side, side)
    framed = jnp.pad(planes.astype(jnp.uint32), ((0, 0), (1, 1), (1, 1)))
    words = (
        framed[:, :-1, :-1]
        | framed[:, :-1, 1:] << 8
        | framed[:, 1:, :-1] << 16
        | framed[:, 1:, 1:] << 24
    )
    # At -1 and at S all is background, as it is further out.
    down, right = (_repeat(field, channels) for field in (down, right))
    y = jnp.clip(jnp.arange(side)[None, :, None] + down, -1, side) + 1
    x = jnp.clip(jnp.arange(side)[None, None, :] + right, -1, side) + 1
    row, column = jnp.minimum(jnp.floor(y), side), jnp.minimum(jnp.floor(x), side)
    first = jnp.arange(len(planes))[:, None, None] * (side + 1) ** 2  # word of each plane
    at = first + (row * (side + 1) + column).astype(jnp.int32)
    # The barriers keep XLA from fusing the gather into its consumers, which would repeat it for
    # each pixel they extract from the word.
    words, at = lax.optimization_barrier((words.ravel(), at))
    word = lax.optimization_barrier(words.at[at].get(mode="clip"))
    pixel = lambda bits: (word >> bits & 255).astype(jnp.float32)
    y, x = y - row, x - column
    top = pixel(0) * (1 - x) + pixel(8) * x
    bottom = pixel(16) * (1 - x) + pixel(24) * x
    planes = top * (1 - y) + bottom * y
    return planes.reshape(batch, channels, side, side).transpose(0, 2, 3, 1)


def _repeat(field: jax.Array, channels: int) -> jax.Array:
    """[B, S, S] -> [B C, S, S]: each field once per channel."""
    batch, *size = field.shape
    return jnp.broadcast_to(field[:, None], (batch, channels, *size)).reshape(-1, *size)


@cache
def _basis(side: int) -> np.ndarray:
    """The basis of displacement fields, [3 + GRID², S S]: y, x, 1 and Gaussians on the lattice.

    The Gaussians are one spacing wide and scaled so that independent displacements of variance 1
    move every pixel with variance 1. NumPy makes it a constant of the compiled function.
    """
    at = np.arange(side) - (side - 1) / 2  # from the centre
    spacing = side / GRID
    points = (np.arange(GRID) - (GRID - 1) / 2) * spacing
    gaussians = np.exp(-0.5 * ((points[:, None] - at[None, :]) / spacing) ** 2)  # [GRID, S]
    gaussians /= np.sqrt(np.sum(gaussians**2, axis=0, keepdims=True))
    one = np.ones(side)
    factors = [(at, one), (one, at), (one, one), *((y, x) for y in gaussians for x in gaussians)]
    return np.stack([np.outer(y, x).ravel() for y, x in factors]).astype(np.float32)
