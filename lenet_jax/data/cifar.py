"""CIFAR-10's binary files: 10,000 records each of a label and 32x32 pixels, red, green, blue.

A record is 3,073 bytes: the label, then 1,024 bytes per channel, each row by row
(https://www.cs.toronto.edu/~kriz/cifar.html). What most people have is the same as Python's
pickles, which are never read: a pickle can run any code.
"""

import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lenet_jax.data.idx import RawSplits

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAIN_FILES, TEST_FILE)
INNER = "cifar-10-batches-bin"  # the folder in the archive

_PIXELS = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # bytes


def find_folder(folders: Iterable[Path]) -> Path | None:
    """The first of `folders`, and of the archive's folders therein, with one of `FILES`."""
    candidates = [each for folder in folders for each in (folder, folder / INNER)]
    return _first_with(candidates, FILES)


def find_pickled(folders: Iterable[Path]) -> Path | None:
    """The first of `folders` in which the files for Python lie."""
    candidates = [each for folder in folders for each in (folder, folder / "cifar-10-batches-py")]
    return _first_with(candidates, [Path(name).stem for name in FILES])


def load_folder(folder: Path) -> RawSplits:
    """Reads the six files; images are uint8 [N, 32, 32, 3].

    Raises:
      ValueError: a file is missing or damaged; the message names it.
    """
    if missing := [name for name in FILES if not (folder / name).exists()]:
        raise ValueError(f"{folder}: {' and '.join(missing)} missing")
    images, labels = zip(*(_read(folder / name) for name in TRAIN_FILES), strict=True)
    return RawSplits(np.concatenate(images), np.concatenate(labels), *_read(folder / TEST_FILE))


def _first_with(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    names = list(names)
    return next((each for each in folders if any((each / n).is_file() for n in names)), None)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N]."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            raise ValueError(f"{path}: is not a file")
        if status.st_size == 0 or status.st_size % _RECORD:
            raise ValueError(
                f"{path}: holds {status.st_size:,} bytes, not a multiple of {_RECORD:,} (a label "
                "and 32x32 pixels of 3 bytes): unpack the archive again"
            )
        with path.open("rb") as file:
            content = file.read(status.st_size)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "its content does not fit into memory"
        raise ValueError(f"{path}: cannot be read ({reason})") from error
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.max() > 9:
        at = int(np.argmax(labels > 9))
        raise ValueError(f"{path}: label {labels[at]} at position {at}; labels are 0 to 9")
    images = records[:, 1:].reshape(-1, *_PIXELS).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.copy()
