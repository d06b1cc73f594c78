"""Downloads end in the arrays of the published files, or in one sentence; from a local server."""

import dataclasses
import functools
import hashlib
import http.server
import re
import socket
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_up import CACHE_DAMAGE, assert_equal, flip_a_byte, refuse_to_write, write_idx
from test_cifar import write as write_cifar

from lenet_jax import data
from lenet_jax.data import download, idx, prepared
from lenet_jax.data.registry import INFO


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", fail)


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
        files = {archive.name: (len(content), hashlib.sha256(content).hexdigest())}
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
    with pytest.raises(ValueError, match="differs from tensorflow-datasets' checksum") as caught:
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
        file: (len(content), hashlib.sha256(content).hexdigest())
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
        found = pool.map(
            lambda _: download.download("mnist", tmp_path, lambda line: None), range(4)
        )
    for splits in found:
        assert_equal(splits, few.splits)
    assert sorted(tmp_path.rglob("*")) == [
        tmp_path / "mnist",
        tmp_path / "mnist" / "lenet_jax.npz",
    ]


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_damaged_arrays_of_a_download_are_downloaded_again(
    damage, few, serve, tmp_path, monkeypatch
):
    cache = tmp_path / "mnist" / "lenet_jax.npz"
    cache.parent.mkdir()
    prepared.write_cache("mnist", tmp_path, few.splits)
    damage(cache)
    serve()
    lines = []
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    data.load("mnist", None, lines.append)
    assert len(lines) == 4
    assert_equal(prepared.read_cache("mnist", tmp_path), few.splits)


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
    with pytest.raises(ValueError, match=r"the download failed .*Permission denied"):
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
    Tampered: "differs from tensorflow-datasets' checksum",
    Stalled: "timed out",
    Silent: "cannot be reached",
    Absent: "HTTP Error 404",
    Vanished: "HTTP Error 503",
    BrokenOff: "the download failed",
}


@pytest.mark.parametrize(
    ("handler", "reason"), SERVERS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_a_server_that_fails_ends_in_one_sentence(handler, reason, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(download, "CONNECT_TIMEOUT_S", 0.5)
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
    assert download.CONNECT_TIMEOUT_S <= 3
    monkeypatch.setattr(download, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    started = time.monotonic()
    assert "no answer within 0.2 s" in data.load(None, None).note
    assert time.monotonic() - started < 2
    stop.set()


def test_a_file_without_end_is_read_one_byte_too_far_and_no_further(serve_archive, tmp_path):
    """The checksum then differs, and the disk is not filled."""
    archive = tmp_path / "served" / "long.bin"
    archive.parent.mkdir()
    archive.write_bytes(bytes(300_000))
    url = serve_archive(archive, [])
    digest = download._fetch(f"{url}long.bin", 100_000, tmp_path / "kept")
    assert (tmp_path / "kept").stat().st_size == 100_001
    assert digest == hashlib.sha256(bytes(100_001)).hexdigest()


def test_the_default_folder_is_that_of_tensorflow_datasets(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert download.default_folder() == Path("/home/somebody/tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", "/data/tfds")
    assert download.default_folder() == Path("/data/tfds")
