"""Reads MNIST's file format, IDX.

An IDX file is a magic number (two zero bytes, the type of the elements, the number of
dimensions), the dimensions as big-endian 32-bit numbers, and the elements in row-major order.
No number in a header is trusted before it has been compared with the file's content.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from lenet_jax.core.model import IMAGE_SIZE
from lenet_jax.data import damage

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
SIZES = (28, IMAGE_SIZE)  # the sides of an image that are accepted: MNIST's, and the network's

# The names that these files have in practice: the above, with a dot for a hyphen, and EMNIST's.
_NAME = re.compile(
    r"(?:emnist-(?P<part>\w+)-)?(?P<split>train|t10k|test)[-_.](?P<kind>images|labels)"
    r"[-_.]idx[13][-_.]ubyte(?:\.gz)?",
    re.IGNORECASE,
)
_DIMENSIONS = {0x0801: 1, 0x0803: 3}  # magic number of 1-byte elements -> number of dimensions
_MAX_HEADER = 16  # bytes
_MAX_DEFLATE_RATIO = 1032  # a 258-byte match costs at least 2 bits (zlib's technical notes)
_CHUNK = 1 << 18


class RawSplits(NamedTuple):
    """A data set as its files hold it: images uint8 [N, side, side], in colour [N, side, side, 3].

    Labels are uint8 [N], counted from 0.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array in an IDX file: labels [N] or images [N, height, width].

    Its first bytes decide whether it is gzipped, not its name. Whatever is not exactly what the
    header declares is refused, without more memory than the content needs.
    """
    path = Path(path)
    with damage.open_file(path) as (file, available):
        zipped = file.read(2) == b"\x1f\x8b"
        shape = _parse_header(path, _read_first(file, _MAX_HEADER, zipped))
        start, size = 4 + 4 * len(shape), math.prod(shape)
        declared = f"its header declares {'x'.join(map(str, shape))} bytes"
        if size == 0:
            raise ValueError(f"{path}: is empty: {declared}")
        most = (available * _MAX_DEFLATE_RATIO if zipped else available) - start
        if size > most or (size < most and not zipped):
            held = f"at most {most}" if zipped else most
            raise ValueError(f"{path}: {declared}, but the file holds {held}")
        # One byte more than declared: zlib compares the checksum at the end of the stream.
        data = _read_first(file, start + size + 1, zipped)
    if len(data) != start + size:
        held = "more" if len(data) > start + size else f"only {len(data) - start}"
        raise ValueError(f"{path}: {declared}, but the file holds {held}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _parse_header(path: Path, head: bytes | bytearray) -> tuple[int, ...]:
    """The dimensions, from the first bytes of a file."""
    magic = int.from_bytes(head[:4])
    rank = _DIMENSIONS.get(magic, 0)
    if len(head) < 4 + 4 * rank:
        raise ValueError(f"{path}: holds {len(head)} bytes and ends inside its header")
    if not rank:
        found = f"magic number 0x{magic:08x}; labels have 0x00000801, images 0x00000803"
        raise ValueError(f"{path}: is not an IDX file of bytes ({found})")
    return struct.unpack_from(f">{rank}I", head, 4)


def _read_first(file: IO[bytes], limit: int, zipped: bool) -> bytearray:
    """The first `limit` bytes of the content, or all of it; a false limit costs no memory.

    `gzip.open` reads a thousand small pieces, and waits for Python's other threads before each.
    """
    file.seek(0)
    if not zipped:
        return bytearray(file.read(limit))
    data, chunk, stream = bytearray(), b"", zlib.decompressobj(wbits=31)  # 31: gzip's format
    while len(data) < limit:
        if not (chunk or (chunk := file.read(_CHUNK))):
            raise EOFError
        data += stream.decompress(chunk, min(_CHUNK, limit - len(data)))
        chunk = stream.unconsumed_tail
        if stream.eof:  # another stream may follow, after zeros
            if not (chunk := stream.unused_data.lstrip(b"\0") or file.read(_CHUNK)):
                break
            stream = zlib.decompressobj(wbits=31)
    return data


def find_folder(folders: Iterable[Path], parts: Sequence[str] = ("",)) -> tuple[Path, str] | None:
    """The first of `folders` with IDX files of one of `parts`, and the first such part.

    A part is a word in the names of EMNIST's files, such as "letters"; other files have "".
    """
    found = ((folder, _find_files(folder)) for folder in folders)
    return next(
        ((folder, part) for folder, files in found for part in parts if part in files), None
    )


def load_folder(folder: Path, part: str = "", labels: range | None = None) -> RawSplits:
    """Reads the four files of a data set and checks that they belong together.

    Their names are those in `FILES` or another common spelling, plain or with `.gz`; each may lie
    in a folder of its own name. Only `labels` are allowed, if given. A `part` of EMNIST is returned
    upright, and its labels are counted from 0.
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
    return from_emnist(splits, labels.start if labels else 0) if part else splits


def from_emnist(splits: RawSplits, first_label: int) -> RawSplits:
    """EMNIST's transposed images upright, and its labels counted from 0."""
    train, test = (np.ascontiguousarray(images.transpose(0, 2, 1)) for images in splits[::2])
    train_labels, test_labels = (labels - np.uint8(first_label) for labels in splits[1::2])
    return RawSplits(train, train_labels, test, test_labels)


def check_splits(splits: RawSplits, origin: dict[str, Path], labels: range | None = None) -> None:
    """Refuses arrays that do not make a data set, or have others than `labels`, if given."""
    for split in ("train", "test"):
        images, found = (getattr(splits, f"{split}_{part}") for part in ("images", "labels"))
        images_path, labels_path = origin[f"{split}_images"], origin[f"{split}_labels"]
        if images.shape[1:] not in [(side, side, *c) for side in SIZES for c in ((), (3,))]:
            size = "x".join(map(str, images.shape[1:]))
            raise ValueError(f"{images_path}: images are {size}; 28x28 or 32x32 are needed")
        if len(images) != len(found):
            held = f"holds {len(images)} images, but {labels_path} holds {len(found)} labels"
            raise ValueError(f"{images_path}: {held}")
        if labels:
            check_labels(labels_path, found, labels)
    if splits.train_images.shape[1:] != splits.test_images.shape[1:]:
        train, test = origin["train_images"], origin["test_images"]
        raise ValueError(f"{test}: its images differ in size from {train}")


def check_labels(path: Path, found: np.ndarray, labels: range) -> None:
    """Refuses the file `path` if one of the labels [N] in it is not allowed."""
    wrong = (found < labels[0]) | (found > labels[-1])
    if wrong.any():
        at, allowed = int(np.argmax(wrong)), f"labels are {labels[0]} to {labels[-1]}"
        raise ValueError(f"{path}: label {found[at]} at position {at}; {allowed}")


def _find_files(folder: Path) -> dict[str, dict[str, Path]]:
    """The files for the fields of `RawSplits`, by part of EMNIST; "" for other files.

    A link that leads nowhere counts as a file, so that the message names it.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in _list_files(folder):
        if match := _NAME.fullmatch(path.name):
            split = "train" if match["split"].lower() == "train" else "test"
            files = found.setdefault((match["part"] or "").lower(), {})
            files.setdefault(f"{split}_{match['kind'].lower()}", path)
    return found


def _list_files(folder: Path) -> list[Path]:
    """The entries of a folder, unzipped files first, then of folders that are named like a file."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: (path.suffix == ".gz", path.name))
        nested = [path for path in entries if _NAME.fullmatch(path.name) and path.is_dir()]
        files = [path for path in entries if path not in nested]
        return files + [path for inner in nested for path in sorted(inner.iterdir())]
    except (FileNotFoundError, NotADirectoryError):
        return []
