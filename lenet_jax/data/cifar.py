"""CIFAR-10's binary files: records of a label and 32x32 pixels, 10,000 per file.

A record is 3,073 bytes: the label, then 1,024 bytes each of red, green and blue, row by row
(https://www.cs.toronto.edu/~kriz/cifar.html). The more common Python version of these files is
never read: it consists of pickles, and a pickle can run any code.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lenet_jax.core.model import IMAGE_SIZE
from lenet_jax.data import damage
from lenet_jax.data.idx import RawSplits, check_labels

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAIN_FILES, TEST_FILE)

_PIXELS = (3, IMAGE_SIZE, IMAGE_SIZE)
_RECORD = 1 + 3 * IMAGE_SIZE**2  # bytes


def find_folder(folders: Iterable[Path]) -> Path | None:
    """The first folder with one of `FILES`: one of `folders`, or the archive's folder inside it."""
    return _first_with(folders, "cifar-10-batches-bin", FILES)


def find_pickled(folders: Iterable[Path]) -> Path | None:
    """As `find_folder`, for the Python version of the files."""
    return _first_with(folders, "cifar-10-batches-py", [Path(name).stem for name in FILES])


def load_folder(folder: Path) -> RawSplits:
    """Reads the six files; images are uint8 [N, 32, 32, 3]."""
    if missing := [name for name in FILES if not (folder / name).exists()]:
        raise ValueError(f"{folder}: {' and '.join(missing)} missing")
    images, labels = zip(*(_read(folder / name) for name in TRAIN_FILES), strict=True)
    return RawSplits(np.concatenate(images), np.concatenate(labels), *_read(folder / TEST_FILE))


def _first_with(folders: Iterable[Path], inner: str, names: Iterable[str]) -> Path | None:
    candidates = (each for folder in folders for each in (folder, folder / inner))
    return next((each for each in candidates if any((each / n).is_file() for n in names)), None)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N]."""
    with damage.open_file(path) as (file, size):
        if size == 0 or size % _RECORD:
            cut = f"holds {size:,} bytes, not a multiple of {_RECORD:,}"
            raise ValueError(f"{path}: {cut}: unpack the archive again")
        records = np.frombuffer(file.read(size), np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0]
    check_labels(path, labels, range(10))
    images = records[:, 1:].reshape(-1, *_PIXELS).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.copy()
