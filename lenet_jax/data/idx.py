"""Reads MNIST's own file format, IDX, and refuses what is damaged in one sentence.

An IDX file is a magic number (two zero bytes, the type of the elements, the number of
dimensions), the dimensions as big-endian 32-bit numbers, and the elements in row-major order.
No number in a header is trusted before it has been compared with what the file holds.
"""

import math
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
SIZES = (28, 32)  # of a side: MNIST's, and the network's input

# The names of these files as people have them: as above, with a dot for a hyphen, and EMNIST's.
_NAME = re.compile(
    r"(?:emnist-(?P<part>\w+)-)?(?P<split>train|t10k|test)[-_.](?P<kind>images|labels)"
    r"[-_.]idx[13][-_.]ubyte(?:\.gz)?",
    re.IGNORECASE,
)
_DIMENSIONS = {0x0801: 1, 0x0803: 3}  # magic number of 1-byte elements -> number of dimensions
_MAX_DEFLATE_RATIO = 1032  # a 258-byte match costs at least 2 bits (zlib's technical notes)
_CHUNK = 1 << 21


class RawSplits(NamedTuple):
    """A data set as its files hold it: images uint8 [N, side, side] or, of colour, with 3 more.

    Labels are uint8 [N], from 0 on.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or plain (its first bytes decide, not its name).

    Args:
      path: a file of labels (1 dimension) or of images (3 dimensions), 1 byte per element.

    Returns:
      uint8 [N] or [N, height, width].

    Raises:
      ValueError: the file cannot be read, or is not exactly what its header declares; the message
        starts with its path. It takes no more memory than the file's content needs.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            raise ValueError(f"{path}: is not a file")
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if zipped:
                most = _MAX_DEFLATE_RATIO * status.st_size
                return _read_array(path, _Gunzip(file), most, exact=False)
            return _read_array(path, file, status.st_size, exact=True)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise ValueError(f"{path}: cannot be read ({_reason(error)})") from error


def _read_array(
    path: Path, stream: "IO[bytes] | _Gunzip", available: int, *, exact: bool
) -> np.ndarray:
    head = _read_at_most(stream, 4)
    if len(head) < 4:
        raise ValueError(f"{path}: holds {len(head)} bytes, too few for the header of an IDX file")
    (magic,) = struct.unpack(">I", head)
    if magic not in _DIMENSIONS:
        raise ValueError(
            f"{path}: is not an IDX file of bytes (magic number 0x{magic:08x}; labels have "
            f"0x00000801, images 0x00000803)"
        )
    rank = _DIMENSIONS[magic]
    head = _read_at_most(stream, 4 * rank)
    if len(head) < 4 * rank:
        raise ValueError(f"{path}: ends inside its header")
    shape = struct.unpack(f">{rank}I", head)
    size = math.prod(shape)
    declared = f"its header declares {'x'.join(map(str, shape))} bytes"
    if size == 0:
        raise ValueError(f"{path}: is empty: {declared}")
    offset = 4 + 4 * rank
    if size > available - offset or (exact and size < available - offset):
        held = f"{available - offset}" if exact else f"at most {available - offset}"
        raise ValueError(f"{path}: {declared}, but the file holds {held}")
    # One byte more than declared: only at the end of the stream does gzip compare its checksum.
    data = _read_at_most(stream, size + 1)
    if len(data) != size:
        held = "more" if len(data) > size else f"only {len(data)}"
        raise ValueError(f"{path}: {declared}, but the file holds {held}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_at_most(stream: IO[bytes], limit: int) -> bytearray:
    """Grows with what is really read, so that a false size costs no memory."""
    data = bytearray()
    while len(data) < limit and (chunk := stream.read(min(_CHUNK, limit - len(data)))):
        data += chunk
    return data


class _Gunzip:
    """The content of a gzipped file, decompressed in large pieces.

    `gzip.open` reads a thousand small ones, and for each waits for the other threads of Python.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._zipped = file, b""
        self._inflate = zlib.decompressobj(wbits=31)  # 31: with gzip's header and checksum

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none means the end, where the checksum is compared.

        Raises:
          EOFError: the file ends before the stream does.
          zlib.error: it is damaged.
        """
        data = b""
        while not data:
            if self._inflate.eof:
                self._zipped = self._inflate.unused_data.lstrip(b"\0") or self._file.read(_CHUNK)
                if not self._zipped:
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)  # streams may follow one another
            elif not self._zipped:
                self._zipped = self._file.read(_CHUNK)
                if not self._zipped:
                    raise EOFError
            data = self._inflate.decompress(self._zipped, size)
            self._zipped = self._inflate.unconsumed_tail
        return data


def _reason(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the gzip stream is cut short"
    if "incorrect data check" in str(error):
        return "the content does not have the checksum, CRC-32, that the gzip stream gives"
    if isinstance(error, MemoryError):
        return "its content does not fit into memory"
    return getattr(error, "strerror", None) or str(error)


def find_folder(folders: Iterable[Path], parts: Sequence[str] = ("",)) -> tuple[Path, str] | None:
    """The first of `folders` with IDX files, and the first of `parts` that they are of.

    A part is what EMNIST's files have in their names, such as "letters"; other files are of "".
    """
    for folder in folders:
        found = _find_files(folder)
        for part in parts:
            if part in found:
                return folder, part
    return None


def emnist_names(part: str) -> list[str]:
    """Of the four files of a part of EMNIST, as NIST names them."""
    return [f"emnist-{part}-{stem.replace('t10k', 'test')}" for stem in FILES.values()]


def load_folder(folder: Path, part: str = "", labels: range | None = None) -> RawSplits:
    """Reads the four files of a data set and checks that they belong together.

    Args:
      folder: holds the files named in `FILES`, or with the other names that people have, plain or
        with `.gz` after the name, each perhaps in a folder of its own name.
      part: of EMNIST, whose images are stored transposed and come back upright.
      labels: that are allowed, of which EMNIST's come back counted from 0; None for any.

    Raises:
      ValueError: a file is missing or damaged, or does not match the others; the message names it.
    """
    paths = _find_files(folder).get(part, {})
    if missing := [name for field, name in FILES.items() if field not in paths]:
        kind = f" of EMNIST's {part}" if part else ""
        raise ValueError(f"{folder}: {' and '.join(missing)}{kind} missing (plain or .gz)")
    arrays = {field: read_idx(paths[field]) for field in FILES}
    for field, array in arrays.items():
        if (array.ndim == 3) != field.endswith("images"):
            held = "labels" if field.endswith("images") else "images"
            raise ValueError(f"{paths[field]}: holds {held}; are two files swapped?")
    splits = RawSplits(**arrays)
    check_splits(splits, paths, labels)
    return from_emnist(splits, labels) if part else splits


def from_emnist(splits: RawSplits, labels: range | None) -> RawSplits:
    """Images upright, which EMNIST has transposed, and 0 for the first of `labels`."""
    first = np.uint8(labels.start if labels else 0)
    upright = lambda images: np.ascontiguousarray(images.transpose(0, 2, 1))
    return RawSplits(
        upright(splits.train_images),
        splits.train_labels - first,
        upright(splits.test_images),
        splits.test_labels - first,
    )


def check_splits(splits: RawSplits, origin: dict[str, Path], labels: range | None) -> None:
    """Raises ValueError, naming the file in `origin`, unless the four arrays make a data set.

    Labels must be in the range, if one is given.
    """
    for split in ("train", "test"):
        images, found = (getattr(splits, f"{split}_{part}") for part in ("images", "labels"))
        images_path, labels_path = origin[f"{split}_images"], origin[f"{split}_labels"]
        if images.shape[1:] not in [(side, side, *c) for side in SIZES for c in ((), (3,))]:
            size = "x".join(map(str, images.shape[1:]))
            raise ValueError(f"{images_path}: images are {size}; 28x28 or 32x32 are needed")
        if len(images) != len(found):
            raise ValueError(
                f"{images_path}: holds {len(images)} images, but {labels_path} holds "
                f"{len(found)} labels"
            )
        if labels and (found.min() < labels[0] or found.max() > labels[-1]):
            at = int(np.argmax((found < labels[0]) | (found > labels[-1])))
            raise ValueError(
                f"{labels_path}: label {found[at]} at position {at}; labels are {labels[0]} to "
                f"{labels[-1]}"
            )
    if splits.train_images.shape[1:] != splits.test_images.shape[1:]:
        raise ValueError(
            f"{origin['test_images']}: images are of another size than in {origin['train_images']}"
        )


def _find_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Of each part, "" if it is not EMNIST's, the file for each field of `RawSplits`."""
    found: dict[str, dict[str, Path]] = {}
    for path in _entries(folder):
        # A link that leads nowhere is a file to complain about, not one that is missing.
        if match := _NAME.fullmatch(path.name):
            split = "train" if match["split"].lower() == "train" else "test"
            files = found.setdefault((match["part"] or "").lower(), {})
            files.setdefault(f"{split}_{match['kind'].lower()}", path)
    return found


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, unzipped files first, and in folders that are named like a file."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: (path.suffix == ".gz", path.name))
        nested = [path for path in entries if _NAME.fullmatch(path.name) and path.is_dir()]
        files = [path for path in entries if path not in nested]
        return files + [path for inner in nested for path in sorted(inner.iterdir())]
    except OSError:  # there is no such folder
        return []
