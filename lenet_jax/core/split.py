"""A split of a data set, as everything that trains or measures takes it."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike


class Split(NamedTuple):
    """Images with their labels, and what normalises them; a pytree.

    N is the number of images. `mean` and `std` are those of the *training* split's pixels, in a
    test split too: a network sees other images normalised as it was trained.
    """

    images: jax.Array | np.ndarray  # uint8 [N, 32, 32, channels]
    labels: Any  # int32 [N], likewise; None if they are not known
    mean: ArrayLike | tuple[float, ...]  # of the training pixels, in 0..1; for each channel
    std: ArrayLike | tuple[float, ...]


def take(split: Split, rows: np.ndarray | slice) -> Split:
    """The examples at `rows`, which are indices or a slice, with the normalisation of all."""
    return split._replace(images=split.images[rows], labels=split.labels[rows])
