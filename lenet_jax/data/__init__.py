"""Data sets as uint8 arrays in memory: `load(name, data_dir)` finds one and checks it.

NumPy only; what a source needs beyond that is imported when that source is read.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lenet_jax.core.split import Split
from lenet_jax.data import digits, idx, tfds
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user

__all__ = ["DATASETS", "Dataset", "Split", "load"]

DATASETS = tuple(INFO)
SIDE = 32  # of an image, as the network wants it


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, each in the order of its source.

    Images are uint8 [N, 32, 32, 1], labels int32 [N]. Both splits have the mean and the standard
    deviation of the training pixels before padding, divided by 255: MNIST's are 0.1307 and 0.3081.
    `source` says where the images came from, `classes` what the labels mean; `note`, if not empty,
    says why they are not MNIST although no other data set was asked for.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    note: str = ""


def load(
    name: str | None = None,
    data_dir: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Loads a data set, from IDX files in `data_dir` if they lie there, else as it can be had.

    `digits` is always there. The others come from IDX files in `data_dir/name` or `data_dir`, else
    from tensorflow-datasets' folder, else from the network, once. Without a name it is MNIST, or
    the digits if MNIST is neither on this machine nor can be downloaded; `note` then says why.
    What is found but damaged is an error, not a reason to look further.

    Args:
      name: one of `DATASETS`, or None.
      data_dir: a folder of IDX files, or of tensorflow-datasets (default: the environment variable
        TFDS_DATA_DIR, else ~/tensorflow_datasets).
      log: is called with a line before each step that takes seconds.

    Raises:
      ValueError: the data set is unknown, cannot be had or is damaged; one sentence says what was
        tried, and what to do.

    >>> dataset = load("digits")
    >>> dataset.train.images.shape, dataset.train.labels.shape
    ((1437, 32, 32, 1), (1437,))
    """
    if name not in (None, *DATASETS):
        raise ValueError(f"--dataset={name}: choose one of {', '.join(DATASETS)}")
    folder = None if data_dir is None else _existing(data_dir)
    if name == "digits":
        return _dataset(name, digits.SOURCE, digits.load())
    wanted = name or "mnist"
    if folder and (found := idx.find_folder(folder, wanted)):
        return _dataset(wanted, f"IDX files in {found}", idx.load_folder(found))
    folder = folder or tfds.default_folder()
    try:
        splits = tfds.load(wanted, folder, log)
    except tfds.UnavailableError as error:
        if name:
            raise ValueError(f"{error}, or use --dataset=digits") from error
        note = f"using digits, because there are {error}"
        return _dataset("digits", digits.SOURCE, digits.load(), note)
    return _dataset(wanted, f"tensorflow-datasets' folder {folder / wanted}", splits)


def _existing(data_dir: str) -> Path:
    folder = expand_user(data_dir, "--data_dir")
    try:
        os.listdir(folder if data_dir else "")  # Path("") is the current folder, "" is none
    except OSError as error:
        raise ValueError(f"--data_dir={data_dir}: cannot be read ({error.strerror})") from error
    return folder


def _dataset(name: str, source: str, splits: RawSplits, note: str = "") -> Dataset:
    mean, std = _mean_and_std(splits.train_images)
    if std == 0:
        raise ValueError(f"{name} from {source}: all training pixels are equal, nothing to learn")
    train, test = (
        Split(_pad(images), labels.astype(np.int32), mean, std)
        for images, labels in (splits[:2], splits[2:])
    )
    return Dataset(name, source, INFO[name].classes, train, test, note)


def _mean_and_std(images: np.ndarray) -> tuple[float, float]:
    """Of pixels in 0..1, from exact integer sums, in slices that need little memory."""
    slices = [images[start : start + 1000] for start in range(0, len(images), 1000)]
    total = sum(int(part.sum(dtype=np.uint64)) for part in slices)
    squares = sum(int(np.square(part, dtype=np.uint16).sum(dtype=np.uint64)) for part in slices)
    size = images.size
    return total / size / 255, math.sqrt(squares * size - total**2) / size / 255


def _pad(images: np.ndarray) -> np.ndarray:
    """[N, side, side] -> [N, 32, 32, 1], padded with zeros."""
    margin = (SIDE - images.shape[1]) // 2
    padded = np.zeros((len(images), SIDE, SIDE, 1), np.uint8)
    padded[:, margin : SIDE - margin, margin : SIDE - margin, 0] = images
    return padded
