"""Data sets as uint8 arrays in memory: `load(name, data_dir)` finds one and checks it.

NumPy only; what a source needs beyond that is imported when that source is read. All readers
refuse a missing or damaged file with a ValueError, one sentence that names the file. An error of
the machine passes, and `load` makes one sentence of it.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.core.model import IMAGE_SIZE
from lenet_jax.core.split import Split
from lenet_jax.data import damage, digits, download, formats, prepared
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.pixels import white_on_black
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user

__all__ = ["DATASETS", "Dataset", "Split", "load"]

DATASETS = tuple(INFO)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split: images uint8 [N, 32, 32, channels], labels int32 [N].

    Both splits have the mean and the standard deviation of the training pixels before padding,
    divided by 255 (0.1307 and 0.3081 for MNIST), as tuples if there are several channels.
    """

    name: str
    source: str  # where the images came from
    classes: tuple[str, ...]  # what the labels mean
    train: Split
    test: Split
    note: str = ""  # why these are the digits, if MNIST was not available


def load(
    name: str | None = None,
    data_dir: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Loads a data set from files in `data_dir`; by default from this machine or by download.

    In `data_dir` it looks for IDX files, an .npz file or CIFAR-10's binary files, under their usual
    names, then for a copy that tensorflow-datasets prepared; nothing is downloaded into it. By
    default it looks in tensorflow-datasets' folder (the environment variable TFDS_DATA_DIR, else
    ~/tensorflow_datasets), and downloads once what is not there. The default name is "mnist", or
    "digits" if MNIST is unavailable. A damaged file is an error, not a reason to look further.
    Images that are dark on light, or masks of 0 and 1, are made white on black. A user's own files
    may have more classes, which are named by their numbers.

    `log` is called with a line before each step that takes seconds, and for each change.

    Raises:
      ValueError: the data set is unknown, unavailable or damaged; one sentence says what was
        tried, and what to do.

    >>> dataset = load("digits")
    >>> dataset.train.images.shape, dataset.train.labels.shape
    ((1437, 32, 32, 1), (1437,))
    """
    if name not in (None, *DATASETS):
        raise ValueError(f"--dataset={name}: choose one of {', '.join(DATASETS)}")
    folder = None if data_dir is None else _existing(data_dir)
    try:
        if name == "digits":
            return _dataset(name, digits.SOURCE, digits.load())
        return _load_named(name or "mnist", folder, log) if folder else _load_default(name, log)
    except BrokenPipeError:  # the reader of `log`'s output has gone
        raise
    except (MemoryError, OSError) as error:  # the machine's, not the files'
        what = getattr(error, "filename", None) or data_dir or name or "mnist"
        raise ValueError(f"{what}: cannot be read ({damage.reason(error)})") from error


def _load_default(name: str | None, log: Callable[[str], None]) -> Dataset:
    """The data set from tensorflow-datasets' folder, or by download; the digits only if unnamed."""
    wanted = name or "mnist"
    try:
        folder = download.default_folder()
        splits = prepared.load(wanted, folder, log) or download.download(wanted, folder, log)
    except download.UnavailableError as error:
        if name:
            remedy = "or use --dataset=digits"
            raise ValueError(f"--dataset={name}: there are {error}, {remedy}") from error
        note = f"using digits, because there are {error}"
        return _dataset("digits", digits.SOURCE, digits.load(), note)
    return _dataset(wanted, _tfds_source(wanted, folder), splits)


def _load_named(name: str, data_dir: Path, log: Callable[[str], None]) -> Dataset:
    """The data set `name` from files or a prepared copy in `data_dir`."""
    if (found := formats.read(name, data_dir)) is None:
        if (splits := prepared.load(name, data_dir, log)) is not None:
            return _dataset(name, _tfds_source(name, data_dir), splits)
        raise ValueError(
            f"--data_dir={data_dir}: there are {prepared.describe_missing(name, data_dir)}; it "
            f"{_listing(data_dir)}. Wanted are {formats.describe_wanted(name, data_dir)}; without "
            f"--data_dir {name} is downloaded, or use --dataset=digits"
        )
    source, splits = found
    if splits.train_images.ndim == 3:  # photographs in colour have no paper
        splits, change = white_on_black(splits)
        if change:
            log(f"note: the images from {source} were {change}; predict does so with pictures")
            source += f", {change}"
    dataset = _dataset(name, source, splits)
    if dataset.classes != INFO[name].classes:
        log(f"note: the labels of {source} {_describe_classes(dataset)}")
    return dataset


def _describe_classes(dataset: Dataset) -> str:
    """How many classes there are, and which have no training image: a sign of damage."""
    count = len(dataset.classes)
    empty = np.flatnonzero(np.bincount(dataset.train.labels, minlength=count) == 0)
    hint = f"; no image of class {_join(empty)} to train on: is a label damaged?"
    return f"go up to {count - 1}: {count} classes{hint if len(empty) else ''}"


def _tfds_source(name: str, folder: Path) -> str:
    return f"tensorflow-datasets' folder {prepared.folder_of(name, folder)}"


def _listing(folder: Path) -> str:
    names = sorted(f"{path.name}{'/' * path.is_dir()}" for path in folder.iterdir())
    return f"holds {_join(names)}" if names else "is empty"


def _join(items: Sequence[Any], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def _existing(data_dir: str) -> Path:
    folder = expand_user(data_dir, "--data_dir")
    try:
        os.listdir(folder if data_dir else "")  # Path("") would be the current folder
    except OSError as error:
        raise ValueError(f"--data_dir={data_dir}: cannot be read ({error.strerror})") from error
    return folder.absolute()


def _dataset(name: str, source: str, splits: RawSplits, note: str = "") -> Dataset:
    mean, std = _mean_and_std(splits.train_images)
    if not np.all(std):
        of = " of a channel" if np.ndim(std) else ""
        raise ValueError(f"{name} from {source}: all training pixels{of} are equal")
    train, test = (
        Split(_pad(images), labels.astype(np.int32), mean, std)
        for images, labels in (splits[:2], splits[2:])
    )
    count, classes = 1 + max(train.labels.max(), test.labels.max()), INFO[name].classes
    if count > len(classes):
        classes = tuple(map(str, range(count)))
    return Dataset(name, source, classes, train, test, note)


def _mean_and_std(images: np.ndarray) -> tuple[Any, Any]:
    """Of pixels in 0..1, from exact integer sums; in colour two tuples, a number per channel."""
    if images.ndim == 4:
        channels = (_mean_and_std(images[..., i]) for i in range(images.shape[3]))
        return tuple(zip(*channels, strict=True))
    total, size = int(images.sum(dtype=np.uint64)), images.size
    squares = int(np.einsum("nhw,nhw->", images, images, dtype=np.uint64))
    return total / size / 255, math.sqrt(squares * size - total**2) / size / 255


def _pad(images: np.ndarray) -> np.ndarray:
    """[N, side, side] or [N, side, side, C] -> [N, 32, 32, 1 or C], padded with zeros."""
    images = images if images.ndim == 4 else images[..., None]
    margin = (IMAGE_SIZE - images.shape[1]) // 2
    padded = np.zeros((len(images), IMAGE_SIZE, IMAGE_SIZE, images.shape[3]), np.uint8)
    inside = slice(margin, IMAGE_SIZE - margin)
    padded[:, inside, inside] = images  # np.pad takes longer
    return padded
