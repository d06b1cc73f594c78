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
from lenet_jax.data import digits, idx, npz, tfds
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.pixels import white_on_black
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user, require_utf8

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
    """Loads a data set, from files in `data_dir` if one is named, else as it can be had.

    `digits` is always there. The others come from IDX files or an .npz file in `data_dir`, under
    the names that people have, or from a copy that tensorflow-datasets prepared there; nothing is
    downloaded into it. Without `data_dir` it is tensorflow-datasets' folder, else the network,
    once. With neither name nor folder it is MNIST, or the digits if MNIST is neither on this
    machine nor can be downloaded; `note` then says why. What is found but damaged is an error, not
    a reason to look further. Images that are dark on light, or masks of 0 and 1, are made white on
    black, which `log` and the `source` say.

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
    return _dataset(wanted, f"tensorflow-datasets' folder {folder / wanted}", splits)


def _load_folder(name: str, data_dir: Path, log: Callable[[str], None]) -> Dataset:
    """The data set `name` from whatever in `data_dir` fits.

    Raises:
      ValueError: nothing does, and the message lists what lies there; or what does is damaged.
    """
    info = INFO[name]
    # As it was unpacked: by hand, by torchvision, by Keras, from EMNIST's archive.
    inner = (name, name.replace("_", "-"), f"{info.tfds_class}/raw", "", "raw", "gzip")
    folders = [data_dir / each for each in inner]
    if found := idx.find_folder(folders, info.idx_parts):
        folder, part = found
        kind = f"EMNIST's IDX files of {part}" if part else "IDX files"
        source, splits = f"{kind} in {folder}", idx.load_folder(folder, part)
    elif archives := npz.find(folders, name):
        source, splits = f"{archives['train_images'][0]}", npz.load(archives)
    elif (splits := tfds.load_local(name, data_dir, log)) is not None:
        return _dataset(name, f"tensorflow-datasets' folder {data_dir / name}", splits)
    else:
        raise ValueError(
            f"--data_dir={data_dir}: there are {tfds.describe_missing(name, data_dir)}; it "
            f"{_listing(data_dir)}. Wanted are {', '.join(idx.FILES.values())} (plain or .gz) or "
            f"{name}.npz; without --data_dir {name} is downloaded, or use --dataset=digits"
        )
    splits, change = white_on_black(splits)
    if change:
        log(f"note: the images from {source} are {change}, as pictures and drawings will be")
        source += f", {change}"
    return _dataset(name, source, splits)


def _listing(folder: Path, most: int = 8) -> str:
    names = sorted(f"{path.name}{'/' * path.is_dir()}" for path in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"holds {', '.join(names[:most])}{more}" if names else "is empty"


def _existing(data_dir: str) -> Path:
    folder = require_utf8(expand_user(data_dir, "--data_dir"), "--data_dir")
    try:
        os.listdir(folder if data_dir else "")  # Path("") is the current folder, "" is none
    except OSError as error:
        raise ValueError(f"--data_dir={data_dir}: cannot be read ({error.strerror})") from error
    return folder.absolute()


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
