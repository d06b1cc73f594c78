"""A split of a data set: the input of all training and evaluation."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike


class Split(NamedTuple):
    """N images with their labels and normalisation; a pytree.

    A test split, too, has the `mean` and `std` of the *training* split's pixels: a network must see
    all images normalised as in its training.
    """

    images: jax.Array | np.ndarray  # uint8 [N, 32, 32, channels]
    labels: Any  # int32 [N], of the same array types; None if unknown
    mean: ArrayLike | tuple[float, ...]  # of the training pixels, in 0..1; one per channel
    std: ArrayLike | tuple[float, ...]


def take(split: Split, rows: np.ndarray | slice) -> Split:
    """The examples at `rows`, an index [K] or a mask [N], with the whole split's normalisation."""
    return split._replace(images=split.images[rows], labels=split.labels[rows])
