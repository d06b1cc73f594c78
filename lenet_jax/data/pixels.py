"""How a data set's files have their pixels, where that is not as MNIST has them."""

import numpy as np

from lenet_jax.data.idx import RawSplits

_MOST_LEVELS = 16  # a largest value up to this is a count or a mask, not a grey value
_SAMPLE = 1000  # images that are looked at


def white_on_black(splits: RawSplits) -> tuple[RawSplits, str]:
    """The images white on black, from 0 to 255, and what had to be done for it, if anything.

    Everything else relies on that: padding and distortions fill with 0, and pictures and drawings
    are brought to it. Paper is what lies at the border of most images.
    """
    largest = max(int(splits.train_images.max()), int(splits.test_images.max()))
    table, done = np.arange(256.0), []  # the new value of each pixel value
    if 0 < largest <= _MOST_LEVELS:
        table = np.minimum(table * 255 / largest, 255)
        done.append(f"scaled from 0..{largest} to 0..255")
    if _is_dark_on_light(splits.train_images):
        table = 255 - table
        done.append("inverted, being dark on light")
    if not done:
        return splits, ""
    images = {name: getattr(splits, name) for name in ("train_images", "test_images")}
    values = np.rint(table).astype(np.uint8)
    return splits._replace(**{k: values[v] for k, v in images.items()}), " and ".join(done)


def _is_dark_on_light(images: np.ndarray) -> bool:
    """Whether the border is clearly in the light half of the values that the images have."""
    images = images[:: -(-len(images) // _SAMPLE)]
    low, high = np.percentile(images, [1, 99])
    frame = np.ones(images.shape[1:], bool)
    frame[1:-1, 1:-1] = False
    return bool(np.median(images[:, frame]) > low + 5 / 8 * (high - low))
