"""tensorflow-datasets without TensorFlow and without a network: local files, a local server.

The prepared copies are real ones, of few images, built in temporary folders.
"""

import functools
import gzip
import hashlib
import http.server
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lenet_jax import data
from lenet_jax.data import idx
from lenet_jax.data import tfds as catalog
from lenet_jax.data.idx import Splits

ROOT = str(Path(data.__file__).parents[2])
PREPARED = Path("mnist", "3.0.1")
TEST_RECORDS = PREPARED / "mnist-test.array_record-00000-of-00001"


def write_idx(folder: Path, splits: Splits) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, stem in idx.FILES.items():
        array = getattr(splits, part)
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"{stem}.gz").write_bytes(gzip.compress(head + array.tobytes(), 1))
    return folder


def made_up(train: int, test: int) -> Splits:
    rng = np.random.default_rng(0)
    return Splits(
        rng.integers(0, 256, (train, 28, 28), np.uint8),
        rng.integers(0, 10, train, np.uint8),
        rng.integers(0, 256, (test, 28, 28), np.uint8),
        rng.integers(0, 10, test, np.uint8),
    )


def assert_equal(splits: Splits, expected: Splits) -> None:
    for part, array in expected._asdict().items():
        np.testing.assert_array_equal(getattr(splits, part), array, err_msg=part, strict=True)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> SimpleNamespace:
    """60 and 30 made-up images as arrays, as IDX files and as a prepared copy of 'mnist'."""
    root = tmp_path_factory.mktemp("few")
    splits = made_up(60, 30)
    write_idx(root / "idx", splits)
    catalog.prepare("mnist", root / "prepared", root / "idx")
    return SimpleNamespace(splits=splits, idx=root / "idx", prepared=root / "prepared")


@pytest.fixture
def copy(few, tmp_path) -> Path:
    """A prepared copy to damage."""
    shutil.copytree(few.prepared, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", fail)


# Prepared copies


def test_mnist_comes_back_from_a_prepared_copy_as_it_was_in_its_files(mnist_dir, tmp_path):
    full = idx.load_folder(mnist_dir)
    part = Splits(*(array[:2000] for array in full[:2]), *(array[:500] for array in full[2:]))
    catalog.prepare("mnist", tmp_path, write_idx(tmp_path / "idx", part))
    assert_equal(catalog.read_prepared("mnist", tmp_path), part)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_the_other_two_come_back_as_they_were_in_their_files(name, few, tmp_path):
    catalog.prepare(name, tmp_path, few.idx)
    assert_equal(catalog.read_prepared(name, tmp_path), few.splits)


def test_the_prepared_copy_is_an_ordinary_one(few):
    import tensorflow_datasets as tfds

    source = tfds.data_source(
        "mnist",
        split="test",
        data_dir=few.prepared,
        download=False,
        builder_kwargs={"file_format": "array_record"},
    )
    examples = source.__getitems__(range(len(source)))
    found = {(example["image"].tobytes(), int(example["label"])) for example in examples}
    assert found == {
        (image.tobytes(), int(label))
        for image, label in zip(few.splits.test_images, few.splits.test_labels, strict=True)
    }


def test_tensorflow_is_not_needed_and_nothing_is_printed(few, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('this test has no TensorFlow')")
    program = (
        "from pathlib import Path; from lenet_jax.data import catalog\n"
        f"catalog.prepare('mnist', Path({str(tmp_path)!r}), Path({str(few.idx)!r}))\n"
        f"print(len(catalog.read_prepared('mnist', Path({str(tmp_path)!r})).test_labels))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])}
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert (out.stdout, out.stderr) == ("30\n", "")


def test_a_copy_that_tensorflow_wrote_as_tfrecord_is_read(few, copy):
    import tensorflow_datasets as tfds
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
    builder = tfds.builder("mnist", data_dir=copy)
    assert builder.info.file_format.value == "tfrecord"

    assert_equal(catalog.read_prepared("mnist", copy), few.splits)

    records = copy / PREPARED / "mnist-test.tfrecord-00000-of-00001"
    whole = records.read_bytes()
    first = len(frame(b"")) + struct.unpack("<Q", whole[:8])[0]
    for damaged in (whole[:-100], whole[:first], whole[:5], b""):
        records.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read; remove it"):
            catalog.read_prepared("mnist", copy)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 4
    path.write_bytes(content)


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


def test_preparing_from_damaged_files_leaves_nothing_half_written(few, tmp_path):
    folder = shutil.copytree(few.idx, tmp_path / "idx")
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="t10k-labels"):
        catalog.prepare("mnist", tmp_path / "data", folder)
    assert not (tmp_path / "data").exists()


# The arrays kept beside the prepared copy


def test_the_second_load_needs_no_tensorflow_datasets(few, copy, monkeypatch):
    lines = []
    assert_equal(catalog.load("mnist", copy, lines.append), few.splits)
    assert len(lines) == 1
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    shutil.rmtree(copy / PREPARED)
    assert_equal(catalog.load("mnist", copy, lines.append), few.splits)
    assert len(lines) == 1
    assert sorted(path.name for path in (copy / "mnist").iterdir()) == ["lenet_jax.npz"]


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


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_damaged_arrays_are_read_again_from_the_prepared_copy(few, copy, damage):
    cache = copy / "mnist" / "lenet_jax.npz"
    for _ in range(2):
        assert_equal(catalog.load("mnist", copy, lambda line: None), few.splits)
        whole = hashlib.sha256(cache.read_bytes()).digest()
        damage(cache)
        assert hashlib.sha256(cache.read_bytes()).digest() != whole


def test_every_flipped_byte_of_the_arrays_is_noticed(few, copy):
    cache = copy / "mnist" / "lenet_jax.npz"
    catalog._write_cache(cache, few.splits)
    whole = cache.read_bytes()
    for at in range(40, len(whole), len(whole) // 200):
        changed = bytearray(whole)
        changed[at] ^= 1
        cache.write_bytes(changed)
        splits = catalog._read_cache(cache)  # a byte that carries no data may be ignored
        assert splits is None or all(map(np.array_equal, splits, few.splits)), at


def test_a_folder_that_cannot_be_written_is_still_read(few, copy, monkeypatch):
    def refuse(file, **arrays):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "savez", refuse)
    lines = []
    assert_equal(catalog.load("mnist", copy, lines.append), few.splits)
    assert "cannot be kept (Permission denied)" in lines[-1]
    assert [path.name for path in (copy / "mnist").iterdir()] == ["3.0.1"]


# The network


@pytest.mark.parametrize("name", catalog.SETS)
def test_the_addresses_are_those_whose_checksums_tensorflow_datasets_knows(name):
    import tensorflow_datasets as tfds

    class_name, url = catalog.SETS[name]
    builder = getattr(tfds.image_classification, class_name)
    assert url == builder.URL
    assert builder.name == name
    assert {f"{url}{stem}.gz" for stem in idx.FILES.values()} <= set(builder.url_infos)


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve(few, monkeypatch):
    """Makes a local server of few.idx the place that tensorflow-datasets knows for MNIST."""
    import tensorflow_datasets as tfds

    servers = []

    def start(handler=Handler) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(few.idx))
        )
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(catalog.SETS, "mnist", ("MNIST", url))
        stock = tfds.image_classification.MNIST
        known = next(iter(stock.url_infos.values()))
        infos = {}
        for path in few.idx.iterdir():
            content = path.read_bytes()
            infos[url + path.name] = type(known)(
                size=type(known.size)(len(content)),
                checksum=hashlib.sha256(content).hexdigest(),
                filename=path.name,
            )
        monkeypatch.setattr(stock, "url_infos", infos)
        return url

    monkeypatch.setenv("no_proxy", "*")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_is_not_here_is_downloaded_once(few, serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "made" / "here"))
    url = serve()
    lines = []
    dataset = data.load(None, None, lines.append)
    assert (dataset.name, dataset.note) == ("mnist", "")
    np.testing.assert_array_equal(dataset.test_labels, few.splits.test_labels)
    assert len(lines) == 6
    assert all(url in line for line in lines[:4])
    assert sorted(path.name for path in (tmp_path / "made" / "here").iterdir()) == [
        "downloads",
        "mnist",
    ]
    lines.clear()
    assert data.load(None, None, lines.append).source == dataset.source
    assert lines == []
    assert capfd.readouterr() == ("", "")


class Tampered(Handler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"something else")


class Stalled(Handler):
    stop = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"\x1f\x8b")
        self.wfile.flush()
        self.stop.wait(20)


class Silent(Handler):
    stop = threading.Event()

    def do_HEAD(self):
        self.stop.wait(20)


class Absent(Handler):
    def do_HEAD(self):
        self.send_error(404)


class Vanished(Handler):
    def do_GET(self):
        self.send_error(503)


class BrokenOff(Handler):
    def do_GET(self):
        self.wfile.write(b"HTTP/1.1 ")


SERVERS = {
    Tampered: "is not the file that tensorflow-datasets knows",
    Stalled: "timed out",
    Silent: "cannot be reached",
    Absent: "HTTP Error 404",
    Vanished: "HTTP Error 503",
    BrokenOff: "cannot be put there",
}


@pytest.mark.parametrize(
    ("handler", "reason"), SERVERS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_a_server_that_fails_ends_in_one_sentence(handler, reason, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "STALL", 0.5)
    monkeypatch.setattr(catalog, "PATIENCE", 0.5)
    serve(handler)
    started = time.monotonic()
    with pytest.raises(ValueError, match="--dataset=digits") as caught:
        data.load("mnist", str(tmp_path))
    assert time.monotonic() - started < 5
    handler.stop.set() if hasattr(handler, "stop") else None
    message = str(caught.value)
    assert reason in message
    assert "train-images-idx3-ubyte.gz" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", catalog.SETS)
def test_offline_a_named_data_set_says_what_was_tried_and_what_to_do(name, offline, tmp_path):
    started = time.monotonic()
    with pytest.raises(ValueError, match="--dataset=digits") as caught:
        data.load(name, str(tmp_path))
    assert time.monotonic() - started < 2
    message = str(caught.value)
    for part in (name, str(tmp_path), catalog.SETS[name][1], "Name or service not known"):
        assert part in message
    assert all(f"{stem}.gz" in message for stem in idx.FILES.values())
    assert list(tmp_path.iterdir()) == []


def test_offline_the_default_is_digits_and_says_why(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = data.load(None, None)
    assert dataset.name == "digits"
    assert dataset.note.startswith("using digits, because there are neither IDX files nor")
    assert "\n" not in dataset.note


def test_a_name_server_that_never_answers_costs_only_the_patience(tmp_path, monkeypatch):
    stop = threading.Event()

    def wait(*args, **kwargs):
        stop.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", wait)
    assert catalog.PATIENCE <= 3
    monkeypatch.setattr(catalog, "PATIENCE", 0.2)
    started = time.monotonic()
    assert "no answer within 0.2 s" in data.load(None, str(tmp_path)).note
    assert time.monotonic() - started < 2
    stop.set()


def test_without_tensorflow_datasets_the_default_is_digits(serve, tmp_path, monkeypatch):
    serve()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    dataset = data.load(None, str(tmp_path))
    assert dataset.name == "digits"
    assert "tensorflow-datasets cannot be imported" in dataset.note


def test_the_default_folder_is_that_of_tensorflow_datasets(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert catalog.default_folder() == Path("/home/somebody/tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", "/data/tfds")
    assert catalog.default_folder() == Path("/data/tfds")
