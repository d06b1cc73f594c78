"""Data sets as NumPy's archives, as Keras and the authors of KMNIST give them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lenet_jax.data import idx
from lenet_jax.data.idx import RawSplits

# Where the fields of `RawSplits` are: the file's name after the data set's, and the array therein.
LAYOUTS = (
    ((".npz", "x_train"), (".npz", "y_train"), (".npz", "x_test"), (".npz", "y_test")),
    (
        *(("-train-imgs.npz", "arr_0"), ("-train-labels.npz", "arr_0")),
        *(("-test-imgs.npz", "arr_0"), ("-test-labels.npz", "arr_0")),
    ),
)


def find(folders: Iterable[Path], name: str) -> dict[str, tuple[Path, str]] | None:
    """File and array of each field of `RawSplits`, from the first of `folders` that has them."""
    for folder in folders:
        for layout in LAYOUTS:
            places = [(folder / f"{name}{end}", key) for end, key in layout]
            if all(path.is_file() for path, _ in places):
                return dict(zip(RawSplits._fields, places, strict=True))
    return None


def load(found: Mapping[str, tuple[Path, str]]) -> RawSplits:
    """Reads what `find` found, never with pickles, and checks that it is a data set.

    Raises:
      ValueError: a file is damaged, or its arrays are not images or labels; the message names it.
    """
    splits = RawSplits(**{part: _read(path, key, part) for part, (path, key) in found.items()})
    idx.check_splits(splits, {part: path for part, (path, _) in found.items()}, None)
    return splits


def _read(path: Path, key: str, part: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[key]
    except Exception as error:  # zip's, zlib's and NumPy's own; damage shows in a dozen ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: {key} cannot be read ({reason})") from error
    rank = 3 if part.endswith("images") else 1
    if array.ndim != rank or array.size == 0 or array.dtype.kind not in "ui":
        raise ValueError(
            f"{path}: {key} is {array.dtype} {list(array.shape)}; whole numbers of {rank} "
            f"dimension{'s' * (rank > 1)} are needed"
        )
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"{path}: {key} has values outside 0 to 255")
    return array.astype(np.uint8)
