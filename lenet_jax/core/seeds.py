"""From a seed to keys, the same way for one network and for populations."""

import jax
from jax.typing import ArrayLike


def init_key(seed: ArrayLike) -> jax.Array:
    """Of the random parameters."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def epoch_key(seed: ArrayLike, epoch: ArrayLike) -> jax.Array:
    """Of the order of the images in an epoch, which are counted from 0."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)


def augment_key(epoch_key: jax.Array) -> jax.Array:
    """Of the augmented images of an epoch; fold the number of the step in."""
    return jax.random.fold_in(epoch_key, 1)
