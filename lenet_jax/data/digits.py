"""The 1,797 handwritten digits that come with scikit-learn: real data, no download.

They are the test set of UCI's "Optical Recognition of Handwritten Digits": the digits of 13 people,
reduced to 8x8 counts of 0 to 16 inked pixels.
"""

import importlib.util
from pathlib import Path

import numpy as np

from lenet_jax.core.model import IMAGE_SIZE
from lenet_jax.data import damage
from lenet_jax.data.idx import RawSplits

SOURCE = "the 1,797 digits that come with scikit-learn, enlarged from 8x8"


def load() -> RawSplits:
    """The digits as uint8 32x32 images, 1,437 to train on and 360 to test on.

    The split is fixed and stratified: sorted by label, every fifth digit is for testing.

    >>> [part.shape for part in load()]
    [(1437, 32, 32), (1437,), (360, 32, 32), (360,)]
    """
    table = _read_table()
    images, labels = _enlarge(table[:, :64].reshape(-1, 8, 8)), table[:, 64]
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return RawSplits(images[~is_test], labels[~is_test], images[is_test], labels[is_test])


def _read_table() -> np.ndarray:
    """uint8 [1797, 65]: 64 pixels and the label, from scikit-learn's file.

    `sklearn.datasets.load_digits` would spend over a second on imports.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ValueError("digits: come with scikit-learn; install it (pip install scikit-learn)")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    with damage.named(f"{path}: cannot be read; install scikit-learn again", FileNotFoundError):
        return np.loadtxt(path, np.uint8, delimiter=",").reshape(1797, 65)


def _enlarge(images: np.ndarray) -> np.ndarray:
    """Counts of 0 to 16, [N, 8, 8] -> grey values of 0 to 255, uint8 [N, 32, 32].

    By bilinear interpolation between pixel centres.
    """
    centres = np.clip((np.arange(IMAGE_SIZE) + 0.5) * 8 / IMAGE_SIZE - 0.5, 0, 7)  # in the old grid
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8)[None, :]))  # [32, 8]
    return np.rint(weights @ (images * (255 / 16)) @ weights.T).astype(np.uint8)
