"""tensorflow-datasets without TensorFlow and without a network: local files, a local server.

The prepared copies are real ones, of few images, built in temporary folders.
"""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_cifar import write as write_cifar

from lenet_jax import data
from lenet_jax.data import idx, tfds
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO, Checksum

ROOT = str(Path(data.__file__).parents[2])
PREPARED = Path("mnist", "3.0.1")
TEST_RECORDS = PREPARED / "mnist-test.array_record-00000-of-00001"


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

    how = {"file_format": "array_record", "config": info.tfds_config or None}
    Builder(data_dir=folder, **how).download_and_prepare()


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> SimpleNamespace:
    """60 and 30 made-up images as arrays, as IDX files and as a prepared copy of 'mnist'."""
    root = tmp_path_factory.mktemp("few")
    splits = made_up(60, 30)
    write_idx(root / "idx", splits)
    prepare("mnist", root / "prepared", splits)
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
    part = RawSplits(*(array[:2000] for array in full[:2]), *(array[:500] for array in full[2:]))
    prepare("mnist", tmp_path, part)
    assert_equal(tfds.read_prepared("mnist", tmp_path), part)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_the_other_two_come_back_as_they_were_in_their_files(name, few, tmp_path):
    prepare(name, tmp_path, few.splits)
    assert_equal(tfds.read_prepared(name, tmp_path), few.splits)


@pytest.mark.parametrize("part", ["letters", "balanced", "digits"])
def test_emnist_comes_back_upright_and_counted_from_0(part, few, tmp_path):
    first = np.uint8(part == "letters")  # of which tensorflow-datasets keeps NIST's numbers
    prepare(f"emnist_{part}", tmp_path, RawSplits(
        few.splits.train_images.transpose(0, 2, 1).copy(), few.splits.train_labels + first,
        few.splits.test_images.transpose(0, 2, 1).copy(), few.splits.test_labels + first,
    ))  # fmt: skip
    assert_equal(tfds.read_prepared(f"emnist_{part}", tmp_path), few.splits)
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
    assert_equal(tfds.read_prepared("cifar10", tmp_path), colour)
    for _ in range(2):  # from the copy, then from the arrays beside it
        dataset = data.load("cifar10", str(tmp_path))
        np.testing.assert_array_equal(dataset.test.images, colour.test_images)
        assert len(dataset.train.mean) == 3


def test_tensorflow_is_not_needed_and_nothing_is_printed(few, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('this test has no TensorFlow')")
    code = (
        "from pathlib import Path; from lenet_jax.data import tfds\n"
        f"print(len(tfds.read_prepared('mnist', Path({str(few.prepared)!r})).test_labels))"
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

    assert_equal(tfds.read_prepared("mnist", copy), few.splits)

    records = copy / PREPARED / "mnist-test.tfrecord-00000-of-00001"
    intact = records.read_bytes()
    first = len(frame(b"")) + struct.unpack("<Q", intact[:8])[0]
    for damaged in (intact[:-100], intact[:first], intact[:5], b""):
        records.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read; remove it"):
            tfds.read_prepared("mnist", copy)


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


# The arrays kept beside the prepared copy


def test_the_second_load_needs_no_tensorflow_datasets(few, copy, monkeypatch):
    lines = []
    assert_equal(tfds.load("mnist", copy, lines.append), few.splits)
    assert len(lines) == 1
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    shutil.rmtree(copy / PREPARED)
    assert_equal(tfds.load("mnist", copy, lines.append), few.splits)
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
        assert_equal(tfds.load("mnist", copy, lambda line: None), few.splits)
        intact = hashlib.sha256(cache.read_bytes()).digest()
        damage(cache)
        assert hashlib.sha256(cache.read_bytes()).digest() != intact


def test_every_flipped_byte_of_the_arrays_is_noticed(few, copy):
    cache = copy / "mnist" / "lenet_jax.npz"
    tfds._write_cache(cache, few.splits)
    intact = cache.read_bytes()
    for at in range(40, len(intact), len(intact) // 200):
        changed = bytearray(intact)
        changed[at] ^= 1
        cache.write_bytes(changed)
        splits = tfds._read_cache(cache, "mnist")  # a byte that carries no data may be ignored
        assert splits is None or all(map(np.array_equal, splits, few.splits)), at


def refuse_to_write(monkeypatch) -> None:
    """What a read-only folder does, to root too."""
    opened = Path.open

    def refuse(path, mode="r", **options):
        if set(mode) & set("wxa"):
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", refuse)


def test_a_folder_that_cannot_be_written_to_is_still_read(few, copy, monkeypatch):
    refuse_to_write(monkeypatch)
    lines = []
    assert_equal(tfds.load("mnist", copy, lines.append), few.splits)
    assert "lenet_jax.npz: cannot be written to (Permission denied)" in lines[-1]
    assert [path.name for path in (copy / "mnist").iterdir()] == ["3.0.1"]


# The network


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve_archive(tmp_path, monkeypatch):
    """Makes a local server the place that data sets' one archive is downloaded from."""
    servers = []

    def start(archive: Path, names: list[str]) -> str:
        handler = functools.partial(Handler, directory=str(archive.parent))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        url, content = f"http://127.0.0.1:{server.server_port}/", archive.read_bytes()
        files = {archive.name: Checksum(len(content), hashlib.sha256(content).hexdigest())}
        for name in names:
            monkeypatch.setitem(INFO, name, dataclasses.replace(INFO[name], url=url, files=files))
        return url

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


EMNIST = ["emnist_letters", "emnist_balanced", "emnist_digits"]


def test_emnists_archive_is_downloaded_once_for_all_its_data_sets(
    few, serve_archive, tmp_path, capfd
):
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for part in ("letters", "balanced", "digits", "byclass"):
            labels = few.splits.train_labels + np.uint8(part == "letters")
            write_idx(tmp_path / part, few.splits._replace(
                train_labels=labels, test_labels=labels[:30]
            ))  # fmt: skip
            for stem in idx.FILES.values():
                name = f"gzip/emnist-{part}-{stem.replace('t10k', 'test')}.gz"
                archive.write(tmp_path / part / f"{stem}.gz", name)
    url = serve_archive(tmp_path / "gzip.zip", EMNIST)
    size = (tmp_path / "gzip.zip").stat().st_size
    for number, name in enumerate(EMNIST):
        lines = []
        dataset = data.load(name, None, lines.append)
        np.testing.assert_array_equal(dataset.train.labels, few.splits.train_labels)
        upright = few.splits.train_images.transpose(0, 2, 1)
        np.testing.assert_array_equal(dataset.train.images[:, 2:30, 2:30, 0], upright)
        said = [f"downloading {url}gzip.zip ({size:,} bytes)", "unpacking gzip.zip"]
        assert lines == ([] if number else said)
    here = tmp_path / "tfds" / "emnist"
    assert {path for path in here.rglob("*") if path.is_file()} == {
        here / part / "lenet_jax.npz" for part in ("letters", "balanced", "digits")
    }
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == ["emnist"]
    assert capfd.readouterr() == ("", "")


def write_cifar_archive(folder: Path) -> Path:
    write_cifar(folder / "cifar-10-batches-bin")
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-bin", "cifar-10-batches-bin")
    return folder / "cifar-10-binary.tar.gz"


def test_cifars_archive_is_downloaded_and_unpacked(serve_archive, tmp_path):
    url, lines = serve_archive(write_cifar_archive(tmp_path), ["cifar10"]), []
    dataset = data.load("cifar10", None, lines.append)
    assert lines[0].startswith(f"downloading {url}cifar-10-binary.tar.gz (")
    wanted = data.load("cifar10", str(tmp_path))
    np.testing.assert_array_equal(dataset.train.images, wanted.train.images)
    np.testing.assert_array_equal(dataset.test.labels, wanted.test.labels)
    files = [path for path in (tmp_path / "tfds").rglob("*") if path.is_file()]
    assert files == [tmp_path / "tfds" / "cifar10" / "lenet_jax.npz"]


def test_an_archive_that_is_not_the_known_one_is_not_unpacked(serve_archive, tmp_path):
    path = write_cifar_archive(tmp_path)
    url = serve_archive(path, ["cifar10"])
    flip_a_byte(path)
    with pytest.raises(ValueError, match="is not the file that tensorflow-datasets") as caught:
        data.load("cifar10", None)
    assert f"unpack {url}cifar-10-binary.tar.gz into a folder" in str(caught.value)
    assert list((tmp_path / "tfds").iterdir()) == []


@pytest.mark.parametrize("name", [*EMNIST, "cifar10"])
def test_offline_what_comes_in_an_archive_is_told_with_its_address(
    name, offline, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="cannot be reached") as caught:
        data.load(name, None)
    (file,) = INFO[name].files
    assert f"unpack {INFO[name].url}{file} into a folder" in str(caught.value)


@pytest.fixture
def serve(few, monkeypatch):
    """Makes a local server of few.idx the place that MNIST is downloaded from."""
    servers = []
    contents = {f"{stem}.gz": (few.idx / f"{stem}.gz").read_bytes() for stem in idx.FILES.values()}
    files = {
        file: Checksum(len(content), hashlib.sha256(content).hexdigest())
        for file, content in contents.items()
    }

    def start(handler=Handler) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(few.idx))
        )
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(INFO, "mnist", dataclasses.replace(INFO["mnist"], url=url, files=files))
        return url

    monkeypatch.setenv("no_proxy", "*")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_is_not_here_is_downloaded_once(few, serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "made" / "here"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # it is not needed
    url = serve()
    lines = []
    dataset = data.load(None, None, lines.append)
    assert (dataset.name, dataset.note) == ("mnist", "")
    np.testing.assert_array_equal(dataset.test.labels, few.splits.test_labels)
    assert len(lines) == 4
    assert all(url in line for line in lines)
    here = tmp_path / "made" / "here"
    assert sorted(here.rglob("*")) == [here / "mnist", here / "mnist" / "lenet_jax.npz"]
    lines.clear()
    again = data.load(None, None, lines.append)
    assert again.source == dataset.source
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    assert lines == []
    assert capfd.readouterr() == ("", "")


def test_processes_that_download_at_once_do_not_disturb_one_another(few, serve, tmp_path):
    serve()
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: tfds.load("mnist", tmp_path, lambda line: None), range(4))
    for splits in found:
        assert_equal(splits, few.splits)
    assert sorted(tmp_path.rglob("*")) == [
        tmp_path / "mnist",
        tmp_path / "mnist" / "lenet_jax.npz",
    ]


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_damaged_arrays_of_a_download_are_downloaded_again(damage, few, serve, tmp_path):
    cache = tmp_path / "mnist" / "lenet_jax.npz"
    cache.parent.mkdir()
    tfds._write_cache(cache, few.splits)
    damage(cache)
    serve()
    lines = []
    assert_equal(tfds.load("mnist", tmp_path, lines.append), few.splits)
    assert len(lines) == 4
    assert_equal(tfds._read_cache(cache, "mnist"), few.splits)


def test_offline_damaged_arrays_of_a_download_are_named(offline, tmp_path):
    cache = tmp_path / "mnist" / "lenet_jax.npz"
    cache.parent.mkdir()
    cache.write_bytes(b"PK")
    with pytest.raises(ValueError, match=re.escape(f"({cache} is damaged)")):
        data.load("mnist", str(tmp_path))


def test_where_a_download_cannot_be_kept_nothing_is_left(serve, tmp_path, monkeypatch):
    serve()
    refuse_to_write(monkeypatch)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be put there .*Permission denied"):
        data.load("mnist", None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


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
    monkeypatch.setattr(tfds, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(tfds, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    serve(handler)
    started = time.monotonic()
    with pytest.raises(ValueError, match="--dataset=digits") as caught:
        data.load("mnist", None)
    assert time.monotonic() - started < 5
    handler.stop.set() if hasattr(handler, "stop") else None
    message = str(caught.value)
    assert reason in message
    assert "train-images-idx3-ubyte.gz" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_offline_a_named_data_set_says_what_was_tried_and_what_to_do(
    name, offline, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(ValueError, match="--dataset=digits") as caught:
        data.load(name, None)
    assert time.monotonic() - started < 2
    message = str(caught.value)
    for part in (name, str(tmp_path), INFO[name].url, "Name or service not known"):
        assert part in message
    assert all(f"{stem}.gz" in message for stem in idx.FILES.values())
    assert list(tmp_path.iterdir()) == []


def test_offline_the_default_is_digits_and_says_why(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = data.load(None, None)
    assert dataset.name == "digits"
    assert dataset.note.startswith("using digits, because there are neither IDX files nor")
    assert "\n" not in dataset.note


def test_a_name_server_that_never_answers_costs_only_the_timeout(tmp_path, monkeypatch):
    stop = threading.Event()

    def wait(*args, **kwargs):
        stop.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", wait)
    assert tfds.CONNECT_TIMEOUT_S <= 3
    monkeypatch.setattr(tfds, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    started = time.monotonic()
    assert "no answer within 0.2 s" in data.load(None, None).note
    assert time.monotonic() - started < 2
    stop.set()


def test_without_tensorflow_datasets_its_prepared_copy_is_an_error(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"tensorflow-datasets cannot be imported .*; install it"):
        data.load(None, str(copy))


def test_the_default_folder_is_that_of_tensorflow_datasets(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert tfds.default_folder() == Path("/home/somebody/tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", "/data/tfds")
    assert tfds.default_folder() == Path("/data/tfds")
