"""MNIST, Fashion-MNIST and KMNIST through tensorflow-datasets, without TensorFlow.

tensorflow-datasets' own builders need TensorFlow to prepare these three, and its downloader knows
no timeout: without a network it tries for minutes, at a server that stalls it waits for ever. So
the four files are fetched here and checked against its checksums, and a subclass of its builder
writes them as array_record, which needs no TensorFlow; the result is the ordinary prepared copy.

Decoding 70,000 PNG images takes 10 s, so the first read leaves the arrays beside the prepared
copy, as `<folder>/<name>/lenet_jax.npz`: the four arrays of `Splits`, in the order of the IDX
files, so that a run is the same wherever its data came from. The file is only a cache; if it is
damaged (zip checks a CRC-32) or deleted, it is written again from the prepared copy.
"""

import contextlib
import hashlib
import io
import os
import queue
import struct
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lenet_jax.data import idx
from lenet_jax.data.idx import Splits

# tensorflow-datasets' class and its URL, known here so that an offline run need not import it
SETS = {
    "mnist": ("MNIST", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "fashion_mnist": (
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "kmnist": ("KMNIST", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
}
PATIENCE = 3  # seconds that a server has to answer before it counts as out of reach
STALL = 30  # seconds without a byte after which a download is given up

Report = Callable[[str], None]


class UnavailableError(ValueError):
    """The data set is not on this machine and cannot be brought here."""


def default_folder() -> Path:
    """Where tensorflow-datasets keeps what it prepared."""
    return Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def load(name: str, folder: Path, report: Report) -> Splits:
    """The arrays of a data set in tensorflow-datasets' `folder`, put there first if need be.

    Args:
      name: one of `SETS`.
      folder: as tensorflow-datasets' `data_dir`.
      report: is called with a line before each step that takes seconds.

    Raises:
      UnavailableError: it is not in `folder` and cannot be downloaded.
      ValueError: the copy in `folder` cannot be read.
    """
    cache = folder / name / "lenet_jax.npz"
    if (splits := _read_cache(cache)) is not None:
        return splits
    if not _is_prepared(name, folder):
        _download_and_prepare(name, folder, report)
    report(f"reading {name} from {folder}, once: later runs find it as {cache.name}")
    splits = read_prepared(name, folder)
    try:
        _write_cache(cache, splits)
    except OSError as error:  # a folder that others look after: reading it must be enough
        report(f"{cache}: cannot be kept ({error.strerror}); the next run reads as slowly")
    return splits


def prepare(name: str, folder: Path, idx_folder: Path) -> None:
    """Writes tensorflow-datasets' prepared copy into `folder`, from the IDX files in `idx_folder`.

    Raises:
      ValueError: the IDX files are damaged, or tensorflow-datasets could not write.
    """
    splits = idx.load_folder(idx_folder)
    parts = {
        "train": (splits.train_images, splits.train_labels),
        "test": (splits.test_images, splits.test_labels),
    }
    tfds = _import_tfds()
    stock = _stock_builder(tfds, name)

    class Builder(stock, skip_registration=True):  # stock's name: the same folder and metadata
        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            return {split: self._generate_examples(*arrays) for split, arrays in parts.items()}

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"image": _encode_png(image), "label": int(label)}  # i is stock's key, too

    Builder.name = stock.name
    with _speaking_for_tfds(f"{folder}: {name} cannot be prepared"):
        builder = Builder(data_dir=folder, file_format="array_record")
        try:
            builder.download_and_prepare()
        except OSError:
            if not builder.is_prepared():  # else another process was faster
                raise


def read_prepared(name: str, folder: Path) -> Splits:
    """Reads tensorflow-datasets' prepared copy in `folder`, in the order of the IDX files.

    Raises:
      ValueError: the copy is damaged.
    """
    tfds = _import_tfds()
    arrays = []
    with _speaking_for_tfds(
        f"{folder / name}: the copy prepared by tensorflow-datasets cannot be read; remove it, or "
        "give another --data_dir"
    ):
        builder = _stock_builder(tfds, name)(data_dir=folder)
        for split in ("train", "test"):
            examples = _read_examples(builder, split, {"image": tfds.decode.SkipDecoding()})
            order = _stored_order(split, builder.info.splits[split].num_examples)
            images = np.empty((len(order), 28, 28), np.uint8)
            labels = np.empty(len(order), np.uint8)
            for i, example in zip(order, examples, strict=True):
                images[i] = _decode_png(example["image"])
                labels[i] = example["label"]
            arrays += [images, labels]
    splits = Splits(*arrays)
    idx.check_splits(splits, dict.fromkeys(Splits._fields, folder / name))
    return splits


def _read_examples(builder: Any, split: str, decoders: dict[str, Any]) -> list[dict[str, Any]]:
    info = builder.info
    if info.file_format.value != "tfrecord":
        source = builder.as_data_source(split, decoders=decoders)
        return source.__getitems__(range(len(source)))
    # What a machine with TensorFlow prepared. tensorflow-datasets needs TensorFlow for the frame
    # around the records (length, its checksum, record, its checksum), but not for the records.
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
    """Which example stands at each place: tensorflow-datasets sorts by MD5 of split and key."""

    def digest(i: int) -> bytes:
        return hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest()

    return sorted(range(count), key=digest)


def _download_and_prepare(name: str, folder: Path, report: Report) -> None:
    _, url = SETS[name]
    files = ", ".join(f"{stem}.gz" for stem in idx.FILES.values())
    missing = f"neither IDX files nor a prepared copy of {name} in {folder}"
    instead = f"put {files} into a folder and name it with --data_dir"
    if reason := _unreachable(f"{url}{idx.FILES['test_labels']}.gz"):
        raise UnavailableError(f"{missing}, and {url} cannot be reached ({reason}): {instead}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as downloads:
            _download(name, Path(downloads), report)
            report(f"preparing {name} in {folder}, once: takes about 20 s")
            prepare(name, folder, Path(downloads))
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"{missing}, and it cannot be put there ({error}): {instead}"
        ) from error


def _download(name: str, folder: Path, report: Report) -> None:
    """Fetches the four IDX files, each checked against tensorflow-datasets' checksum."""
    _, base = SETS[name]
    known = _stock_builder(_import_tfds(), name).url_infos
    for stem in idx.FILES.values():
        url, path = f"{base}{stem}.gz", folder / f"{stem}.gz"
        report(f"downloading {url} ({known[url].size})")
        path.write_bytes(_fetch(url, int(known[url].size)))
        if hashlib.sha256(path.read_bytes()).hexdigest() != known[url].checksum:
            raise ValueError(f"{url}: is not the file that tensorflow-datasets knows")


def _fetch(url: str, size: int) -> bytes:
    import urllib.request
    from http.client import HTTPException

    try:
        with urllib.request.urlopen(url, timeout=STALL) as response:
            return response.read(size + 1)
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url}: {_words(error)}") from error


def _unreachable(url: str) -> str | None:
    """Why `url` does not answer, known within `PATIENCE` seconds, or None if it does."""
    import urllib.request

    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=PATIENCE):
                answers.put(None)
        except Exception as error:  # whatever it is, the main thread says it
            answers.put(_words(error))

    # In a thread, because no timeout covers the look-up of the name.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PATIENCE)
    except queue.Empty:
        return f"no answer within {PATIENCE} s"


def _words(error: Exception) -> str:
    if hasattr(error, "close"):  # an HTTPError is also the open answer
        error.close()
    return str(error).removeprefix("<urlopen error ").removesuffix(">")


def _is_prepared(name: str, folder: Path) -> bool:
    # Look before importing tensorflow-datasets, which takes a second.
    if not any((folder / name).glob("*/dataset_info.json")):
        return False
    tfds = _import_tfds()
    with _speaking_for_tfds(
        f"{folder / name}: cannot be read; remove it or give another --data_dir"
    ):
        return _stock_builder(tfds, name)(data_dir=folder).is_prepared()


def _import_tfds() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"tensorflow-datasets cannot be imported ({error}); install it, or use --dataset=digits"
        ) from error
    return tensorflow_datasets


def _stock_builder(tfds: ModuleType, name: str) -> Any:
    class_name, _ = SETS[name]
    return getattr(tfds.image_classification, class_name)


@contextlib.contextmanager
def _speaking_for_tfds(failure: str) -> Iterator[None]:
    """Silences tensorflow-datasets' bars, and makes one sentence of whatever it raises."""
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    except Exception as error:  # RuntimeError, KeyError, protobuf's errors: it has no base class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{failure} ({type(error).__name__}: {reason})") from error


def _encode_png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def _decode_png(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)


def _read_cache(path: Path) -> Splits | None:
    """The arrays in `path`, or None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            splits = Splits(*(arrays[part] for part in Splits._fields))
        idx.check_splits(splits, dict.fromkeys(Splits._fields, path))
    except Exception:  # damage shows in a dozen ways, and all mean: read the prepared copy again
        return None
    return splits


def _write_cache(path: Path, splits: Splits) -> None:
    """Writes under another name first, so that no reader ever sees half a file."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as file:
            np.savez(file, **splits._asdict())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
