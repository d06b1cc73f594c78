"""Data sets as NumPy archives, in the layouts of Keras and of KMNIST's authors."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lenet_jax.data import damage, idx
from lenet_jax.data.idx import RawSplits

# Where each field of `RawSplits` is: the file's name after the data set's, and the array in it.
LAYOUTS = (
    ((".npz", "x_train"), (".npz", "y_train"), (".npz", "x_test"), (".npz", "y_test")),
    (
        *(("-train-imgs.npz", "arr_0"), ("-train-labels.npz", "arr_0")),
        *(("-test-imgs.npz", "arr_0"), ("-test-labels.npz", "arr_0")),
    ),
)


def find(folders: Iterable[Path], name: str) -> dict[str, tuple[Path, str]] | None:
    """The file and the array of each field of `RawSplits`, in the first folder that has all."""
    for folder in folders:
        for layout in LAYOUTS:
            places = [(folder / f"{name}{end}", key) for end, key in layout]
            if all(path.is_file() for path, _ in places):
                return dict(zip(RawSplits._fields, places, strict=True))
    return None


def load(found: Mapping[str, tuple[Path, str]]) -> RawSplits:
    """Reads what `find` found and checks that it is a data set."""
    splits = RawSplits(**{part: _read(path, key, part) for part, (path, key) in found.items()})
    idx.check_splits(splits, {part: path for part, (path, _) in found.items()})
    return splits


def read_array(path: Path, key: str) -> np.ndarray:
    """An array in an .npz file, which is never unpickled."""
    # Opened here, because `np.load(path)` leaves a damaged file open.
    with damage.named(f"{path}: {key} cannot be read"), path.open("rb") as file:
        return np.load(file, allow_pickle=False)[key]


def _read(path: Path, key: str, part: str) -> np.ndarray:
    array = read_array(path, key)
    rank = 3 if part.endswith("images") else 1
    if array.ndim != rank or array.size == 0 or array.dtype.kind not in "ui":
        needed = f"whole numbers of {rank} dimension{'s' * (rank > 1)} are needed"
        raise ValueError(f"{path}: {key} is {array.dtype} {list(array.shape)}; {needed}")
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"{path}: {key} has values outside 0 to 255")
    return array.astype(np.uint8)
