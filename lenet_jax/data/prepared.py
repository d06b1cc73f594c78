"""Copies that tensorflow-datasets prepared, read without TensorFlow, and the arrays kept of them.

Decoding 70,000 PNG images takes 10 s. The arrays of a copy or a download are therefore kept
as `<folder>/<name>/lenet_jax.npz`: the fields of `RawSplits`, in the order of the published files,
so that a run does not depend on where its data came from. If that file is deleted or damaged (zip
checks a CRC-32), it is written again.
"""

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from lenet_jax.data import damage, idx, npz
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO
from lenet_jax.files import atomic_write


def folder_of(name: str, folder: Path) -> Path:
    """The data set's own folder in `folder`, which is tensorflow-datasets' `data_dir`."""
    part = INFO[name].emnist_part
    return folder / "emnist" / part if part else folder / name


def describe_missing(name: str, folder: Path) -> str:
    """Says what `folder` lacks, to follow "there are"."""
    cache = _cache(name, folder)
    damaged = f" ({cache} is damaged)" if cache.exists() else ""
    kind = "IDX" if INFO[name].idx_parts else "binary"
    return f"neither {kind} files nor a prepared copy of {name} in {folder}{damaged}"


def load(name: str, folder: Path, log: Callable[[str], None]) -> RawSplits | None:
    """The arrays of a data set in tensorflow-datasets' `folder`, or None if they are not there.

    `log` is called with a line before a copy is read, which takes seconds.
    """
    if (splits := read_cache(name, folder)) is not None:
        return splits
    if (splits := read(name, folder, log)) is not None:
        try:
            write_cache(name, folder, splits)
        except OSError as error:  # the folder may belong to somebody else: reading has to suffice
            log(f"{error}; the next run reads as slowly")
    return splits


def read(name: str, folder: Path, log: Callable[[str], None]) -> RawSplits | None:
    """As `load`, but always from the prepared copy, and without keeping the arrays."""
    info, where = INFO[name], folder_of(name, folder)
    if not any(where.glob("*/dataset_info.json")):  # importing tensorflow-datasets takes a second
        return None
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        remedy = "install it, or use --dataset=digits"
        raise ValueError(f"tensorflow-datasets cannot be imported ({error}); {remedy}") from error
    with _reading(where):
        builder_class = getattr(tfds.image_classification, info.tfds_class)
        builder = builder_class(data_dir=folder, config=info.emnist_part or None)
        is_prepared = builder.is_prepared()
    if not is_prepared:
        return None
    log(f"reading {name} from {folder}, once: later runs find it as {_cache(name, folder).name}")
    decoders = {"image": tfds.decode.SkipDecoding()}
    with _reading(where):
        train, test = (_read_split(builder, split, decoders) for split in ("train", "test"))
    splits = RawSplits(*train, *test)
    idx.check_splits(splits, dict.fromkeys(RawSplits._fields, where), info.labels)
    return idx.from_emnist(splits, info.first_label) if info.emnist_part else splits


@contextmanager
def _reading(where: Path) -> Iterator[None]:
    """Silences tensorflow-datasets' bars, and names a damaged copy."""
    from google.protobuf import json_format, message

    # Opened here, because array_record reports an unreadable file like a damaged one.
    for path in filter(Path.is_file, where.glob("*/*")):
        path.open("rb").close()
    remedy = "remove it, or give another --data_dir"
    failure = f"{where}: the copy prepared by tensorflow-datasets cannot be read; {remedy}"
    sink, of_a_copy = io.StringIO(), (FileNotFoundError, json_format.Error, message.Error)
    with damage.named(failure, *of_a_copy), redirect_stdout(sink), redirect_stderr(sink):
        yield


def _read_split(
    builder: Any, split: str, decoders: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels in the order of the published files.

    tensorflow-datasets sorts examples by the MD5 digest of split and index.
    """
    from PIL import Image

    shape = builder.info.features["image"].shape
    digest = lambda i: hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest()
    order = sorted(range(builder.info.splits[split].num_examples), key=digest)
    images = np.empty((len(order), *(shape[:2] if shape[2] == 1 else shape)), np.uint8)
    labels = np.empty(len(order), np.uint8)
    for i, example in zip(order, _read_examples(builder, split, decoders), strict=True):
        with Image.open(io.BytesIO(example["image"]), formats=("PNG",)) as image:
            images[i], labels[i] = np.asarray(image), example["label"]
    return images, labels


def _read_examples(builder: Any, split: str, decoders: dict[str, Any]) -> list[dict[str, Any]]:
    info = builder.info
    if info.file_format.value != "tfrecord":
        source = builder.as_data_source(split, decoders=decoders)
        return source.__getitems__(range(len(source)))
    # Prepared with TensorFlow. tensorflow-datasets needs TensorFlow for the frame around a record
    # (its length, a checksum, the record, a checksum), but not for the record.
    return [
        info.features.deserialize_example_np(record, decoders=decoders)
        for path in info.splits[split].filepaths
        for record in _read_tfrecord(path.read_bytes())
    ]


def _read_tfrecord(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        yield data[start + 12 : start + 12 + length]
        start += length + 16


def _cache(name: str, folder: Path) -> Path:
    return folder_of(name, folder) / "lenet_jax.npz"


def read_cache(name: str, folder: Path) -> RawSplits | None:
    """The arrays that `write_cache` wrote, or None if they are missing or damaged."""
    cache, labels = _cache(name, folder), range(len(INFO[name].classes))
    try:
        splits = RawSplits(*(npz.read_array(cache, part) for part in RawSplits._fields))
        idx.check_splits(splits, dict.fromkeys(RawSplits._fields, cache), labels)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return splits


def write_cache(name: str, folder: Path, splits: RawSplits) -> None:
    """Keeps the arrays of a data set in `folder`; an OSError names the file."""
    stream, cache = io.BytesIO(), _cache(name, folder)
    np.savez(stream, **splits._asdict())
    cache.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(cache, stream.getvalue())
