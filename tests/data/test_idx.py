"""The IDX reader gives the right array or one sentence with the file's name, whatever the bytes."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lenet_jax.data import idx

IMAGES = (np.arange(3 * 28 * 28) % 251).astype(np.uint8).reshape(3, 28, 28)
LABELS = np.array([7, 0, 9], np.uint8)


def encode(array: np.ndarray, shape: tuple[int, ...] | None = None, kind: int = 0x08) -> bytes:
    """The bytes of an IDX file; `shape` is the one its header claims."""
    shape = array.shape if shape is None else shape
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + array.tobytes()


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


PLAIN = encode(IMAGES)
GZIP = gzip.compress(PLAIN, mtime=0)
HUGE = 0xFFFFFFFF

DAMAGED = {
    "empty": (b"", "ends inside its header"),
    "3 bytes": (PLAIN[:3], "ends inside its header"),
    "inside the header": (PLAIN[:9], "holds 9 bytes and ends inside"),
    "header only": (PLAIN[:16], "declares 3x28x28 bytes, but the file holds 0"),
    "cut in half": (PLAIN[: len(PLAIN) // 2], "but the file holds"),
    "last byte missing": (PLAIN[:-1], "but the file holds 2351"),
    "a byte too many": (PLAIN + b"\0", "but the file holds 2353"),
    "declares more": (encode(IMAGES, (4, 28, 28)), "declares 4x28x28"),
    "declares less": (encode(IMAGES, (2, 28, 28)), "declares 2x28x28"),
    "declares 4 billion": (encode(IMAGES, (HUGE, 28, 28)), f"declares {HUGE}x28x28"),
    "declares 2**96": (encode(IMAGES, (HUGE, HUGE, HUGE)), "but the file holds"),
    "no examples": (encode(IMAGES[:0]), "is empty"),
    "no pixels": (encode(IMAGES[:0], (HUGE, 0, HUGE)), "is empty"),
    "floats": (encode(IMAGES, kind=0x0D), "magic number 0x00000d03"),
    "2 dimensions": (encode(IMAGES[0]), "magic number 0x00000802"),
    "4 dimensions": (encode(IMAGES[None]), "magic number 0x00000804"),
    "a text": (b"<html>not found</html>", "is not an IDX file"),
    "gz: nothing after its magic": (GZIP[:2], "cut short"),
    "gz: cut in its header": (GZIP[:8], "cut short"),
    "gz: cut in the IDX header": (GZIP[:14], "cut short"),
    "gz: cut in half": (GZIP[: len(GZIP) // 2], "cut short"),
    "gz: without its trailer": (GZIP[:-8], "cut short"),
    "gz: last byte missing": (GZIP[:-1], "cut short"),
    "gz: checksum wrong": (flip(GZIP, -7), "CRC"),
    "gz: length wrong": (flip(GZIP, -1), "length"),
    "gz: stored block flipped": (flip(gzip.compress(PLAIN, 0, mtime=0), 500), "CRC"),
    "gz: deflate stream wrong": (GZIP[:10] + b"\xff" * 40, "cannot be read"),
    "gz: unknown method": (flip(GZIP, 2), "cannot be read"),
    "gz: rubbish behind": (GZIP + b"rubbish", "cannot be read"),
    "gz: empty inside": (gzip.compress(b""), "ends inside its header"),
    "gz: a text inside": (gzip.compress(b"hello, world"), "is not an IDX file"),
    "gz: a byte too many": (gzip.compress(PLAIN + b"\0"), "holds more"),
    "gz: declares more": (gzip.compress(encode(IMAGES, (4, 28, 28))), "holds only 2352"),
    "gz: declares less": (gzip.compress(encode(IMAGES, (2, 28, 28))), "holds more"),
    "gz: declares 4 billion": (gzip.compress(encode(IMAGES, (HUGE, 28, 28))), "holds at most"),
}


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "train-images-idx3-ubyte") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(("data", "complaint"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong(write, data, complaint):
    path = write(data)
    with pytest.raises(ValueError, match=r".") as caught:
        idx.read_idx(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize("data", [PLAIN, GZIP], ids=["plain", "gz"])
@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_the_content_decides_whether_a_file_is_gzipped(write, data, name):
    np.testing.assert_array_equal(idx.read_idx(write(data, name)), IMAGES)


def test_several_gzip_members_are_one_file(write):
    path = write(gzip.compress(PLAIN[:1000]) + gzip.compress(PLAIN[1000:]))
    np.testing.assert_array_equal(idx.read_idx(path), IMAGES)


def test_what_is_no_readable_file_is_named(tmp_path, write, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path, complaint in (
        (tmp_path, "is not a file"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / "absent", "No such file"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            idx.read_idx(path)
        assert str(path) in str(caught.value)

    path = write(PLAIN)

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"ubyte: cannot be read \(Permission denied\)"):
        idx.read_idx(path)


LIES = {
    "plain": encode(IMAGES, (HUGE, 28, 28)),
    "more than gzip can shrink": gzip.compress(encode(IMAGES, (HUGE, 28, 28))),
    "as much as gzip can shrink": gzip.compress(
        encode(np.random.default_rng(0).integers(0, 256, 100_000, np.uint8), (100_000, 28, 28))
    ),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES)
def test_a_lying_header_costs_no_memory(write, data):
    path = write(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="but the file holds"):
            idx.read_idx(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20  # the third one claims 78 MB


@settings(max_examples=300, deadline=None)
@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9)))
def test_every_array_comes_back(tmp_path_factory, array):
    path = tmp_path_factory.getbasetemp() / "array"
    for data in (encode(array), gzip.compress(encode(array), 1)):
        path.write_bytes(data)
        if array.ndim == 2:
            with pytest.raises(ValueError, match="magic"):
                idx.read_idx(path)
        else:
            np.testing.assert_array_equal(idx.read_idx(path), array, strict=True)


@st.composite
def mutated(draw) -> bytes:
    """A valid file, plain or gzipped, with bytes changed, removed and added."""
    array = draw(st.sampled_from([IMAGES[:1], LABELS]))
    data = encode(array)
    if draw(st.booleans()):
        data = gzip.compress(data, draw(st.sampled_from([0, 9])), mtime=0)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)) | st.integers(0, min(30, len(data))))
        removed = draw(st.integers(0, 4) | st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + removed :]
    return data


@settings(max_examples=1000, deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.binary(max_size=60).map(lambda tail: b"\0\0\x08\x01" + tail)
    | st.binary(max_size=60).map(lambda tail: b"\0\0\x08\x03" + tail)
    | st.binary(max_size=60).map(lambda tail: b"\x1f\x8b\x08\0" + tail)
    | st.binary(max_size=60).map(gzip.compress)
    | mutated()
)
def test_any_bytes_give_the_right_array_or_a_named_complaint(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    try:
        array = idx.read_idx(path)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    else:
        # It was accepted, so it must be, byte for byte, the encoding of what came back.
        assert encode(array) == (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)


PARTS = {
    "train-images-idx3-ubyte": encode(IMAGES),
    "train-labels-idx1-ubyte": encode(LABELS),
    "t10k-images-idx3-ubyte": encode(IMAGES[:2]),
    "t10k-labels-idx1-ubyte": encode(LABELS[:2]),
}
UNFIT = {
    "fewer labels": ("train-labels", LABELS[:2], "3 images, but"),
    "more labels": ("t10k-labels", LABELS, "2 images, but"),
    "27x28": ("train-images", IMAGES[:, 1:], "27x28; 28x28 or 32x32"),
    "30x30": ("train-images", np.zeros((3, 30, 30), np.uint8), "30x30; 28x28 or 32x32"),
    "two sizes": ("t10k-images", np.zeros((2, 32, 32), np.uint8), "differ in size from"),
    "images for labels": ("train-labels", IMAGES, "holds images"),
    "labels for images": ("t10k-images", LABELS[:2], "holds labels"),
}


def write_folder(folder: Path, changed: dict[str, bytes | None] | None = None, suffix: str = ""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (PARTS | (changed or {})).items():
        if data is not None:
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return folder


def full_name(start: str) -> str:
    return next(name for name in PARTS if name.startswith(start))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_four_files_is_a_data_set(tmp_path, suffix):
    splits = idx.load_folder(write_folder(tmp_path, suffix=suffix))
    expected = (IMAGES, LABELS, IMAGES[:2], LABELS[:2])
    for part, array in zip(splits, expected, strict=True):
        np.testing.assert_array_equal(part, array, strict=True)


@pytest.mark.parametrize(("start", "array", "complaint"), UNFIT.values(), ids=UNFIT)
def test_files_that_do_not_belong_together_are_named(tmp_path, start, array, complaint):
    name = full_name(start)
    write_folder(tmp_path, {name: encode(array)})
    with pytest.raises(ValueError, match=complaint) as caught:
        idx.load_folder(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(("labels", "bad"), [(range(10), 10), (range(10), 255), (range(1, 27), 0)])
def test_a_label_that_is_no_class_is_named(tmp_path, labels, bad):
    name = full_name("t10k-labels")
    labels_of = lambda *numbers: encode(np.array(numbers, np.uint8))
    train = {full_name("train-labels"): labels_of(labels[0], 5, labels[-1])}
    write_folder(tmp_path, {name: labels_of(3, bad), **train})
    said = f"label {bad} at position 1; labels are {labels[0]} to {labels[-1]}"
    with pytest.raises(ValueError, match=said) as caught:
        idx.load_folder(tmp_path, labels=labels)
    assert name in str(caught.value)
    assert idx.load_folder(tmp_path).test_labels.tolist() == [3, bad]  # of one's own: all are


def test_missing_files_are_named(tmp_path):
    gone = ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte")
    write_folder(tmp_path, dict.fromkeys(gone))
    with pytest.raises(ValueError, match=r" and ".join(gone) + " missing"):
        idx.load_folder(tmp_path)


def test_a_link_to_nowhere_is_named(tmp_path):
    write_folder(tmp_path, {"train-labels-idx1-ubyte": None})
    (tmp_path / "train-labels-idx1-ubyte.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz: cannot be read"):
        idx.load_folder(tmp_path)


def test_the_first_folder_with_files_and_the_first_part_are_found(tmp_path):
    folders = [tmp_path / "kmnist", tmp_path]
    assert idx.find_folder(folders) is None
    write_folder(tmp_path)
    assert idx.find_folder(folders) == (tmp_path, "")
    inner = write_folder(tmp_path / "kmnist", suffix=".gz")
    assert idx.find_folder(folders) == (inner, "")
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").touch()
    assert idx.find_folder([tmp_path], ["letters", ""]) == (tmp_path, "letters")
    assert idx.find_folder([tmp_path], ["balanced", "", "letters"]) == (tmp_path, "")
    assert idx.find_folder(folders, ["balanced"]) is None


def test_an_unzipped_file_goes_before_a_zipped_one(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not read")
    np.testing.assert_array_equal(idx.load_folder(tmp_path).train_images, IMAGES)


def test_mnist_is_read_as_it_is_known(mnist_dir):
    splits = idx.load_folder(mnist_dir)
    assert splits.train_images.shape == (60000, 28, 28)
    assert splits.test_images.shape == (10000, 28, 28)
    assert splits.train_images.mean() == pytest.approx(33.318421, abs=5e-7)
    assert splits.test_images.mean() == pytest.approx(33.791224, abs=5e-7)
    assert splits.test_labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert np.bincount(splits.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert np.bincount(splits.test_labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip


def test_emnists_images_are_turned_upright_and_its_labels_counted_from_0():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, 28, 28)).astype(np.uint8) for _ in range(2)]
    labels = [np.arange(1, 4, dtype=np.uint8), np.arange(2, 5, dtype=np.uint8)]
    splits = idx.RawSplits(images[0], labels[0], images[1], labels[1])
    upright = idx.from_emnist(splits, 1)
    np.testing.assert_array_equal(upright.train_images[2, 5, 7], images[0][2, 7, 5])
    np.testing.assert_array_equal(upright.test_images, images[1].transpose(0, 2, 1))
    assert upright.train_labels.tolist() == [0, 1, 2]
    assert upright.test_labels.tolist() == [1, 2, 3]
