"""Prepared copies are read without TensorFlow, and the arrays kept of them serve as well.

The copies are real ones, of few images, built in temporary folders.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import CACHE_DAMAGE, assert_equal, flip_a_byte, prepare, refuse_to_write

from lenet_jax import data
from lenet_jax.data import idx, prepared
from lenet_jax.data.idx import RawSplits

ROOT = str(Path(data.__file__).parents[2])
PREPARED = Path("mnist", "3.0.1")
TEST_RECORDS = PREPARED / "mnist-test.array_record-00000-of-00001"


def read(name: str, folder: Path) -> RawSplits | None:
    return prepared.read(name, folder, lambda line: None)


# Prepared copies


def test_mnist_comes_back_from_a_prepared_copy_as_it_was_in_its_files(mnist_dir, tmp_path):
    full = idx.load_folder(mnist_dir)
    part = RawSplits(*(array[:2000] for array in full[:2]), *(array[:500] for array in full[2:]))
    prepare("mnist", tmp_path, part)
    assert_equal(read("mnist", tmp_path), part)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_the_other_two_come_back_as_they_were_in_their_files(name, few, tmp_path):
    prepare(name, tmp_path, few.splits)
    assert_equal(read(name, tmp_path), few.splits)


@pytest.mark.parametrize("part", ["letters", "balanced", "digits"])
def test_emnist_comes_back_upright_and_counted_from_0(part, few, tmp_path):
    first = np.uint8(part == "letters")  # of which tensorflow-datasets keeps NIST's numbers
    prepare(f"emnist_{part}", tmp_path, RawSplits(
        few.splits.train_images.transpose(0, 2, 1).copy(), few.splits.train_labels + first,
        few.splits.test_images.transpose(0, 2, 1).copy(), few.splits.test_labels + first,
    ))  # fmt: skip
    assert_equal(read(f"emnist_{part}", tmp_path), few.splits)
    dataset = data.load(f"emnist_{part}", str(tmp_path))
    assert dataset.source == f"tensorflow-datasets' folder {tmp_path / 'emnist' / part}"
    assert (tmp_path / "emnist" / part / "lenet_jax.npz").exists()
    again = data.load(f"emnist_{part}", str(tmp_path))
    np.testing.assert_array_equal(again.train.labels, few.splits.train_labels)
    np.testing.assert_array_equal(again.train.images, dataset.train.images)


def test_images_in_colour_come_back_with_their_channels(few, tmp_path):
    rng = np.random.default_rng(1)
    colour = few.splits._replace(
        train_images=rng.integers(0, 256, (60, 32, 32, 3), np.uint8),
        test_images=rng.integers(0, 256, (30, 32, 32, 3), np.uint8),
    )
    prepare("cifar10", tmp_path, colour)
    assert_equal(read("cifar10", tmp_path), colour)
    for _ in range(2):  # from the copy, then from the arrays beside it
        dataset = data.load("cifar10", str(tmp_path))
        np.testing.assert_array_equal(dataset.test.images, colour.test_images)
        assert len(dataset.train.mean) == 3


def test_tensorflow_is_not_needed_and_nothing_is_printed(few, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('this test has no TensorFlow')")
    code = (
        "from pathlib import Path; from lenet_jax.data import prepared\n"
        f"print(len(prepared.read('mnist', Path({str(few.prepared)!r}), str).test_labels))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert (out.stdout, out.stderr) == ("30\n", "")


def test_a_copy_that_tensorflow_wrote_as_tfrecord_is_read(few, copy):
    import tensorflow_datasets
    from array_record.python import array_record_module

    def frame(record: bytes) -> bytes:  # the two checksums are not looked at
        return struct.pack("<QI", len(record), 0) + record + bytes(4)

    for split in ("train", "test"):
        source = copy / PREPARED / f"mnist-{split}.array_record-00000-of-00001"
        reader = array_record_module.ArrayRecordReader(str(source))
        records = [reader.read([i])[0] for i in range(reader.num_records())]
        source.with_name(f"mnist-{split}.tfrecord-00000-of-00001").write_bytes(
            b"".join(map(frame, records))
        )
        reader.close()
        source.unlink()
    info = copy / PREPARED / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    builder = tensorflow_datasets.builder("mnist", data_dir=copy)
    assert builder.info.file_format.value == "tfrecord"

    assert_equal(read("mnist", copy), few.splits)

    records = copy / PREPARED / "mnist-test.tfrecord-00000-of-00001"
    intact = records.read_bytes()
    first = len(frame(b"")) + struct.unpack("<Q", intact[:8])[0]
    for damaged in (intact[:-100], intact[:first], intact[:5], b""):
        records.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read; remove it"):
            read("mnist", copy)


DAMAGE = {
    "records cut": lambda copy: (copy / TEST_RECORDS).write_bytes(b"x" * 1000),
    "records empty": lambda copy: (copy / TEST_RECORDS).write_bytes(b""),
    "records missing": lambda copy: (copy / TEST_RECORDS).unlink(),
    "a byte flipped": lambda copy: flip_a_byte(copy / TEST_RECORDS),
    "metadata cut": lambda copy: (copy / PREPARED / "dataset_info.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_prepared_copy_is_named_with_what_to_do(copy, damage, capfd):
    damage(copy)
    with pytest.raises(ValueError, match="remove it") as caught:
        data.load(None, str(copy))
    message = str(caught.value)
    assert message.startswith(str(copy / "mnist"))
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


# The arrays kept beside the prepared copy


def test_the_second_load_needs_no_tensorflow_datasets(few, copy, monkeypatch):
    lines = []
    assert_equal(prepared.load("mnist", copy, lines.append), few.splits)
    assert len(lines) == 1
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    shutil.rmtree(copy / PREPARED)
    assert_equal(prepared.load("mnist", copy, lines.append), few.splits)
    assert len(lines) == 1
    assert sorted(path.name for path in (copy / "mnist").iterdir()) == ["lenet_jax.npz"]


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_damaged_arrays_are_read_again_from_the_prepared_copy(few, copy, damage):
    cache = copy / "mnist" / "lenet_jax.npz"
    for _ in range(2):
        assert_equal(prepared.load("mnist", copy, lambda line: None), few.splits)
        intact = hashlib.sha256(cache.read_bytes()).digest()
        damage(cache)
        assert hashlib.sha256(cache.read_bytes()).digest() != intact


def test_every_flipped_byte_of_the_arrays_is_noticed(few, copy):
    cache = copy / "mnist" / "lenet_jax.npz"
    prepared.write_cache("mnist", copy, few.splits)
    intact = cache.read_bytes()
    for at in range(40, len(intact), len(intact) // 200):
        changed = bytearray(intact)
        changed[at] ^= 1
        cache.write_bytes(changed)
        splits = prepared.read_cache("mnist", copy)  # a byte that carries no data may be ignored
        assert splits is None or all(map(np.array_equal, splits, few.splits)), at


def test_a_folder_that_cannot_be_written_to_is_still_read(few, copy, monkeypatch):
    refuse_to_write(monkeypatch)
    lines = []
    assert_equal(prepared.load("mnist", copy, lines.append), few.splits)
    assert "lenet_jax.npz: cannot be written to (Permission denied)" in lines[-1]
    assert [path.name for path in (copy / "mnist").iterdir()] == ["3.0.1"]


def test_without_tensorflow_datasets_its_prepared_copy_is_an_error(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"tensorflow-datasets cannot be imported .*; install it"):
        data.load(None, str(copy))
