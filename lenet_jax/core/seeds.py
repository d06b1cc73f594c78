"""Random keys derived from a seed, alike for one network and for populations."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_key(key: ArrayLike) -> jax.Array:
    """A key as it is, or the key of an integer."""
    is_seed = jnp.ndim(key) == 0 and jnp.issubdtype(jnp.result_type(key), jnp.integer)
    return jax.random.key(key) if is_seed else jnp.asarray(key)


def init_key(seed: ArrayLike) -> jax.Array:
    """The key for drawing the initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def epoch_key(seed: ArrayLike, epoch: ArrayLike) -> jax.Array:
    """The key for the order of the images in an epoch; epochs count from 0."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)


def augment_key(epoch_key: jax.Array) -> jax.Array:
    """The key for the augmented images of an epoch; fold in the number of the step."""
    return jax.random.fold_in(epoch_key, 1)
