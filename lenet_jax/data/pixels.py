"""Brings pixels that are not as MNIST's into their form."""

import numpy as np

from lenet_jax.data.idx import RawSplits

_MOST_LEVELS = 16  # a largest value up to this is a count or a mask, not a grey value
_SAMPLE = 1000  # about as many images are examined


def white_on_black(splits: RawSplits) -> tuple[RawSplits, str]:
    """The images white on black, from 0 to 255, and what was done to them, or "".

    Everything else relies on this form: padding and augmentation fill with 0, and pictures and
    drawings are brought to it. Most images have paper at their border.
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
    values = np.rint(table).astype(np.uint8)
    train, test = values[splits.train_images], values[splits.test_images]
    return splits._replace(train_images=train, test_images=test), " and ".join(done)


def _is_dark_on_light(images: np.ndarray) -> bool:
    """Whether the border is clearly in the light half of the range of values."""
    images = images[:: -(-len(images) // _SAMPLE)]
    low, high = np.percentile(images, [1, 99])
    frame = np.ones(images.shape[1:], bool)
    frame[1:-1, 1:-1] = False
    return bool(np.median(images[:, frame]) > low + 5 / 8 * (high - low))
