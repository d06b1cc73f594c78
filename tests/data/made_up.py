"""Made-up data sets, and how their files are written and damaged."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from lenet_jax.data import idx
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO


def write_idx(folder: Path, splits: RawSplits) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, stem in idx.FILES.items():
        array = getattr(splits, part)
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"{stem}.gz").write_bytes(gzip.compress(head + array.tobytes(), 1))
    return folder


def made_up(train: int, test: int) -> RawSplits:
    rng = np.random.default_rng(0)
    return RawSplits(
        rng.integers(0, 256, (train, 28, 28), np.uint8),
        rng.integers(0, 10, train, np.uint8),
        rng.integers(0, 256, (test, 28, 28), np.uint8),
        rng.integers(0, 10, test, np.uint8),
    )


def assert_equal(splits: RawSplits, expected: RawSplits) -> None:
    for part, array in expected._asdict().items():
        np.testing.assert_array_equal(getattr(splits, part), array, err_msg=part, strict=True)


def encode_png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def prepare(name: str, folder: Path, splits: RawSplits) -> None:
    """Has tensorflow-datasets itself prepare its copy, as array_record: needs no TensorFlow."""
    import tensorflow_datasets

    parts = {"train": splits[:2], "test": splits[2:]}
    info = INFO[name]
    stock = getattr(tensorflow_datasets.image_classification, INFO[name].tfds_class)

    class Builder(stock, skip_registration=True):
        name = stock.name  # the same folder and metadata

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*arrays) for split, arrays in parts.items()}

        def _generate_examples(self, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                example = {"image": encode_png(image), "label": int(label)}
                # i is stock's key, too
                yield i, example | ({"id": f"{i:05d}"} if name == "cifar10" else {})

    how = {"file_format": "array_record", "config": info.emnist_part or None}
    Builder(data_dir=folder, **how).download_and_prepare()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 4
    path.write_bytes(content)


def overwrite_a_label(path: Path) -> None:
    arrays = dict(np.load(path))
    arrays["test_labels"][3] = 10
    np.savez(path, **arrays)


CACHE_DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "a byte flipped": flip_a_byte,
    "a text": lambda path: path.write_text("not a zip"),
    "one bare array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "another's arrays": lambda path: np.savez(path, x_train=np.zeros(3)),
    "objects": lambda path: np.savez(path, train_images=np.array([{}], object)),
    "label 10": overwrite_a_label,
}


def refuse_to_write(monkeypatch) -> None:
    """What a read-only folder does, to root too."""
    opened = Path.open

    def refuse(path, mode="r", **options):
        if set(mode) & set("wxa"):
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", refuse)
