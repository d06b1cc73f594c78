"""A split of a data set, as everything that trains or measures takes it."""

from typing import NamedTuple

from jax.typing import ArrayLike


class Split(NamedTuple):
    """Images with their labels, and what normalises them; a pytree.

    N is the number of images. `mean` and `std` are those of the *training* split's pixels, in a
    test split too: a network sees other images normalised as it was trained.
    """

    images: ArrayLike  # uint8 [N, 32, 32, 1]
    labels: ArrayLike | None  # int32 [N]; None if they are not known
    mean: ArrayLike  # of the training pixels, in 0..1
    std: ArrayLike
