"""What can be downloaded, in tensorflow-datasets' folder, without TensorFlow.

A copy that tensorflow-datasets prepared is read as it is. If there is none, the files are
downloaded and compared with its checksums: its own downloader knows no timeout, so that without a
network it tries for minutes, and a server that stalls blocks it for ever.

Decoding 70,000 PNG images takes 10 s, so either way the arrays are kept, as
`<folder>/<name>/lenet_jax.npz`: the four arrays of `RawSplits`, in the order of the files, so
that a run is the same wherever its data came from. If that file is damaged (zip checks a CRC-32)
or deleted, it is written again from the prepared copy or the network. Of an archive that holds
several data sets all are kept, so that it is downloaded once.
"""

import contextlib
import hashlib
import io
import os
import queue
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lenet_jax.data import archive, formats, idx
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO
from lenet_jax.files import atomic_write, expand_user

CONNECT_TIMEOUT_S = 3  # without an answer a server counts as unreachable
READ_TIMEOUT_S = 30  # without a byte a download is given up

_CACHE = "lenet_jax.npz"
_CHUNK = 1 << 16


class UnavailableError(ValueError):
    """The data set is not on this machine and cannot be downloaded."""


def default_folder() -> Path:
    """Where tensorflow-datasets keeps what it prepared.

    Raises:
      UnavailableError: that would be the home folder, and there is none.
    """
    if named := os.environ.get("TFDS_DATA_DIR"):
        return expand_user(named, "TFDS_DATA_DIR")
    try:
        return Path("~/tensorflow_datasets").expanduser()
    except RuntimeError as error:
        raise UnavailableError(
            "neither TFDS_DATA_DIR nor a home folder to look into: name a folder with --data_dir"
        ) from error


def load(name: str, folder: Path, log: Callable[[str], None]) -> RawSplits:
    """The arrays of a data set in tensorflow-datasets' `folder`, downloaded first if need be.

    Args:
      name: of a data set with a url in the registry.
      folder: as tensorflow-datasets' `data_dir`.
      log: is called with a line before each step that takes seconds.

    Raises:
      UnavailableError: it is not in `folder` and cannot be downloaded.
      ValueError: the copy in `folder` cannot be read.
    """
    splits = load_local(name, folder, log)
    return _download(name, folder, log) if splits is None else splits


def folder_of(name: str, folder: Path) -> Path:
    """Where in its `folder` tensorflow-datasets has a data set."""
    info = INFO[name]
    return (
        folder / info.tfds_class.lower() / info.tfds_config if info.tfds_config else folder / name
    )


def load_local(name: str, folder: Path, log: Callable[[str], None]) -> RawSplits | None:
    """As `load`, but None instead of a download."""
    cache = folder_of(name, folder) / _CACHE
    if (splits := _read_cache(cache, name)) is not None:
        return splits
    if not _is_prepared(name, folder):
        return None
    log(f"reading {name} from {folder}, once: later runs find it as {cache.name}")
    splits = read_prepared(name, folder)
    try:
        _write_cache(cache, splits)
    except OSError as error:  # a folder that others look after: reading it must be enough
        log(f"{error}; the next run reads as slowly")
    return splits


def read_prepared(name: str, folder: Path) -> RawSplits:
    """Reads tensorflow-datasets' prepared copy in `folder`, in the order of the files.

    Raises:
      ValueError: the copy is damaged.
    """
    tfds, info = _import_tfds(), INFO[name]
    arrays = []
    with _quiet(
        f"{folder_of(name, folder)}: the copy prepared by tensorflow-datasets cannot be read; "
        "remove it, or give another --data_dir"
    ):
        builder = _builder(tfds, name, folder)
        shape = builder.info.features["image"].shape
        shape = shape[:2] if shape[2] == 1 else shape
        for split in ("train", "test"):
            examples = _read_examples(builder, split, {"image": tfds.decode.SkipDecoding()})
            order = _stored_order(split, builder.info.splits[split].num_examples)
            images = np.empty((len(order), *shape), np.uint8)
            labels = np.empty(len(order), np.uint8)
            for i, example in zip(order, examples, strict=True):
                images[i] = _decode_png(example["image"])
                labels[i] = example["label"]
            arrays += [images, labels]
    splits = RawSplits(*arrays)
    origin = dict.fromkeys(RawSplits._fields, folder_of(name, folder))
    idx.check_splits(splits, origin, info.labels)
    return idx.from_emnist(splits, info.labels) if info.tfds_class == "EMNIST" else splits


def _read_examples(builder: Any, split: str, decoders: dict[str, Any]) -> list[dict[str, Any]]:
    info = builder.info
    if info.file_format.value != "tfrecord":
        source = builder.as_data_source(split, decoders=decoders)
        return source.__getitems__(range(len(source)))
    # As prepared with TensorFlow. tensorflow-datasets needs TensorFlow for the frame around the
    # records (length, its checksum, record, its checksum), but not for the records.
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


def _stored_order(split: str, count: int) -> list[int]:
    """The index of each stored example: tensorflow-datasets sorts by MD5 of split and key."""

    def digest(i: int) -> bytes:
        return hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest()

    return sorted(range(count), key=digest)


def _download(name: str, folder: Path, log: Callable[[str], None]) -> RawSplits:
    """Fetches the files and keeps their arrays: all of them or nothing."""
    info, missing, instead = INFO[name], describe_missing(name, folder), formats.how_to_get(name)
    smallest = min(info.files, key=lambda file: info.files[file].size)
    if reason := _unreachable(f"{info.url}{smallest}"):
        raise UnavailableError(f"{missing}, and {info.url} cannot be reached ({reason}): {instead}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # There, so that a folder that cannot be written to is known before the download.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as downloads:
            for file, (size, sha256) in info.files.items():
                log(f"downloading {info.url}{file} ({size:,} bytes)")
                if _fetch(f"{info.url}{file}", size, Path(downloads, file)) != sha256:
                    raise ValueError(
                        f"{info.url}{file}: is not the file that tensorflow-datasets knows"
                    )
            return _keep(name, folder, Path(downloads), log)
    except (OSError, ValueError, ImportError) as error:
        raise UnavailableError(
            f"{missing}, and it cannot be put there ({error}): {instead}"
        ) from error


def _keep(name: str, folder: Path, downloads: Path, log: Callable[[str], None]) -> RawSplits:
    """Of `downloads` the arrays of `name`, kept in `folder` like those in the same archive."""
    together = [each for each in INFO if INFO[each].files == INFO[name].files]
    wanted = {file for each in together for file in formats.file_names(each)}
    for file in INFO[name].files:
        if file.endswith(archive.SUFFIXES):
            log(f"unpacking {file}")
            path = downloads / file
            archive.unpack(path, downloads, lambda member: member.removesuffix(".gz") in wanted)
            path.unlink()  # half a gigabyte less while the arrays are written
    for each in sorted(together, key=lambda each: each == name):  # `name` last, to return it
        found = formats.read(each, downloads)
        if found is None:
            raise ValueError(f"{', '.join(formats.file_names(each))} missing in the download")
        cache = folder_of(each, folder) / _CACHE
        cache.parent.mkdir(parents=True, exist_ok=True)
        _write_cache(cache, found[1])
    return found[1]


def describe_missing(name: str, folder: Path) -> str:
    """What is not in `folder`, after "there are"."""
    cache = folder_of(name, folder) / _CACHE
    damaged = f" ({cache} is damaged)" if cache.exists() else ""
    kind = "IDX" if INFO[name].idx_parts else "binary"
    return f"neither {kind} files nor a prepared copy of {name} in {folder}{damaged}"


def _fetch(url: str, size: int, file: Path) -> str:
    """Writes at most one byte more than `size`, with a progress bar if this is a terminal.

    Returns:
      The SHA-256 of what is written.
    """
    import urllib.request
    from http.client import HTTPException

    from tqdm import tqdm

    digest, left = hashlib.sha256(), size + 1
    with (
        file.open("xb") as stream,
        tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None) as bar,
    ):
        try:
            with urllib.request.urlopen(url, timeout=READ_TIMEOUT_S) as response:
                while chunk := response.read(min(_CHUNK, left)):
                    stream.write(chunk)
                    digest.update(chunk)
                    left -= len(chunk)
                    bar.update(len(chunk))
        except (OSError, HTTPException) as error:
            raise ValueError(f"{url}: {_error_text(error)}") from error
    return digest.hexdigest()


def _unreachable(url: str) -> str | None:
    """Why `url` does not answer, known within `CONNECT_TIMEOUT_S`, or None if it does."""
    import urllib.request

    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S):
                answers.put(None)
        except Exception as error:  # whatever it is, the main thread says it
            answers.put(_error_text(error))

    # In a thread, because no timeout covers the look-up of the name.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=CONNECT_TIMEOUT_S)
    except queue.Empty:
        return f"no answer within {CONNECT_TIMEOUT_S} s"


def _error_text(error: Exception) -> str:
    if hasattr(error, "close"):  # an HTTPError is also the open response
        error.close()
    return str(error).removeprefix("<urlopen error ").removesuffix(">")


def _is_prepared(name: str, folder: Path) -> bool:
    # Look before importing tensorflow-datasets, which takes a second.
    if not any(folder_of(name, folder).glob("*/dataset_info.json")):
        return False
    tfds, where = _import_tfds(), folder_of(name, folder)
    with _quiet(f"{where}: cannot be read; remove it or give another --data_dir"):
        return _builder(tfds, name, folder).is_prepared()


def _import_tfds() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"tensorflow-datasets cannot be imported ({error}); install it, or use --dataset=digits"
        ) from error
    return tensorflow_datasets


def _builder(tfds: ModuleType, name: str, folder: Path) -> Any:
    builder_class = getattr(tfds.image_classification, INFO[name].tfds_class)
    return builder_class(data_dir=folder, config=INFO[name].tfds_config or None)


@contextlib.contextmanager
def _quiet(failure: str) -> Iterator[None]:
    """Silences tensorflow-datasets' bars, and makes one sentence of whatever it raises."""
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    except Exception as error:  # RuntimeError, KeyError, protobuf's errors: no common base class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{failure} ({type(error).__name__}: {reason})") from error


def _decode_png(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)


def _read_cache(path: Path, name: str) -> RawSplits | None:
    """The arrays of `name` in `path`, or None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            splits = RawSplits(*(arrays[part] for part in RawSplits._fields))
        idx.check_splits(
            splits, dict.fromkeys(RawSplits._fields, path), range(len(INFO[name].classes))
        )
    except Exception:  # damage shows in a dozen ways, and all mean: write it again
        return None
    return splits


def _write_cache(path: Path, splits: RawSplits) -> None:
    stream = io.BytesIO()
    np.savez(stream, **splits._asdict())
    atomic_write(path, stream.getvalue())
