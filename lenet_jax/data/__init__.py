"""Data sets as uint8 arrays in memory: `load(name, data_dir)` finds one and checks it.

NumPy only; what a source needs beyond that is imported when that source is read.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.core.split import Split
from lenet_jax.data import digits, formats, tfds
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.pixels import white_on_black
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user

__all__ = ["DATASETS", "Dataset", "Split", "load"]

DATASETS = tuple(INFO)
SIDE = 32  # of an image, as the network wants it


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, each in the order of its source.

    Images are uint8 [N, 32, 32, channels], labels int32 [N]. Both splits have the mean and the
    standard deviation of the training pixels before padding, divided by 255: MNIST's are 0.1307 and
    0.3081. Of several channels they are tuples. `source` says where the images came from, `classes`
    what the labels mean; `note`, if not empty, says why they are not MNIST although no other data
    set was asked for.
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
    """Loads a data set, from files in `data_dir` if one is named, else as it can be had.

    `digits` is always there. The others come from IDX files, an .npz file or CIFAR-10's binary
    files in `data_dir`, under the names that people have, or from a copy that tensorflow-datasets
    prepared there; nothing is downloaded into it. Without `data_dir` it is tensorflow-datasets'
    folder, else the network, once. With neither name nor folder it is MNIST, or the digits if MNIST
    is neither on this machine nor can be downloaded; `note` then says why. What is found but
    damaged is an error, not a reason to look further. Images that are dark on light, or masks of 0
    and 1, are made white on black, and files of one's own may have more classes, which are called
    by their numbers: both `log` says.

    Args:
      name: one of `DATASETS`, or None.
      data_dir: a folder of IDX files, an .npz file or of tensorflow-datasets (default: the
        environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets, if they lie there).
      log: is called with a line before each step that takes seconds, and for each change.

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
    if folder is not None:
        return _load_folder(wanted, folder, log)
    try:
        folder = tfds.default_folder()
        splits = tfds.load(wanted, folder, log)
    except tfds.UnavailableError as error:
        if name:
            raise ValueError(f"{error}, or use --dataset=digits") from error
        note = f"using digits, because there are {error}"
        return _dataset("digits", digits.SOURCE, digits.load(), note)
    return _dataset(wanted, _tfds_source(wanted, folder), splits)


def _load_folder(name: str, data_dir: Path, log: Callable[[str], None]) -> Dataset:
    """The data set `name` from whatever in `data_dir` fits.

    Raises:
      ValueError: nothing does, and the message lists what lies there; or what does is damaged.
    """
    if (found := formats.read(name, data_dir)) is None:
        if (splits := tfds.load_local(name, data_dir, log)) is not None:
            return _dataset(name, _tfds_source(name, data_dir), splits)
        raise ValueError(
            f"--data_dir={data_dir}: there are {tfds.describe_missing(name, data_dir)}; it "
            f"{_listing(data_dir)}. Wanted are {formats.describe_wanted(name, data_dir)}; without "
            f"--data_dir {name} is downloaded, or use --dataset=digits"
        )
    source, splits = found
    if splits.train_images.ndim == 3:  # photographs in colour have no paper
        splits, change = white_on_black(splits)
        if change:
            log(f"note: the images from {source} are {change}, as pictures and drawings will be")
            source += f", {change}"
    classes = _class_names(name, splits)
    if classes != INFO[name].classes:
        log(f"note: the labels of {source} go up to {classes[-1]}: {len(classes)} classes")
    return _dataset(name, source, splits, classes=classes)


def _class_names(name: str, splits: RawSplits) -> tuple[str, ...]:
    """The registry's, or the numbers of all classes if there are more."""
    count = 1 + int(max(splits.train_labels.max(), splits.test_labels.max()))
    known = INFO[name].classes
    return known if count <= len(known) else tuple(map(str, range(count)))


def _tfds_source(name: str, folder: Path) -> str:
    return f"tensorflow-datasets' folder {tfds.folder_of(name, folder)}"


def _listing(folder: Path, most: int = 8) -> str:
    names = sorted(f"{path.name}{'/' * path.is_dir()}" for path in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"holds {', '.join(names[:most])}{more}" if names else "is empty"


def _existing(data_dir: str) -> Path:
    folder = expand_user(data_dir, "--data_dir")
    try:
        os.listdir(folder if data_dir else "")  # Path("") is the current folder, "" is none
    except OSError as error:
        raise ValueError(f"--data_dir={data_dir}: cannot be read ({error.strerror})") from error
    return folder.absolute()


def _dataset(
    name: str,
    source: str,
    splits: RawSplits,
    note: str = "",
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    mean, std = _mean_and_std(splits.train_images)
    if not np.all(std):
        of = "" if np.ndim(std) == 0 else " of a channel"
        raise ValueError(
            f"{name} from {source}: all training pixels{of} are equal, nothing to learn"
        )
    train, test = (
        Split(_pad(images), labels.astype(np.int32), mean, std)
        for images, labels in (splits[:2], splits[2:])
    )
    return Dataset(name, source, classes or INFO[name].classes, train, test, note)


def _mean_and_std(images: np.ndarray) -> tuple[Any, Any]:
    """Of pixels in 0..1: a number each, or of images in colour a tuple of one per channel.

    From exact integer sums, in slices that need little memory.
    """
    if images.ndim == 4:
        channels = (_mean_and_std(images[..., i]) for i in range(images.shape[3]))
        return tuple(zip(*channels, strict=True))
    slices = [images[start : start + 1000] for start in range(0, len(images), 1000)]
    total = sum(int(part.sum(dtype=np.uint64)) for part in slices)
    squares = sum(int(np.square(part, dtype=np.uint16).sum(dtype=np.uint64)) for part in slices)
    size = images.size
    return total / size / 255, math.sqrt(squares * size - total**2) / size / 255


def _pad(images: np.ndarray) -> np.ndarray:
    """[N, side, side] or [N, side, side, C] -> [N, 32, 32, 1 or C], padded with zeros."""
    images = images if images.ndim == 4 else images[..., None]
    margin = (SIDE - images.shape[1]) // 2
    padded = np.zeros((len(images), SIDE, SIDE, images.shape[3]), np.uint8)
    padded[:, margin : SIDE - margin, margin : SIDE - margin] = images
    return padded
