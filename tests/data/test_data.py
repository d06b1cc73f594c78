"""`load` finds the data set that was meant, in the form that the network wants, or says why not."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up, write_idx

from lenet_jax import data
from lenet_jax.data import download, idx
from lenet_jax.data.idx import RawSplits


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """A tensorflow-datasets folder that is empty, and no network."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(download, "_unreachable", lambda url: "no network in this test")


def test_mnist_has_the_shapes_and_the_scale_that_are_known(mnist_dir):
    dataset = data.load("mnist", str(mnist_dir))
    assert dataset.train.images.shape == (60000, 32, 32, 1)
    assert dataset.test.images.shape == (10000, 32, 32, 1)
    assert (dataset.train.images.dtype, dataset.train.labels.dtype) == (np.uint8, np.int32)
    assert (round(dataset.train.mean, 4), round(dataset.train.std, 4)) == (0.1307, 0.3081)
    assert (dataset.name, dataset.note) == ("mnist", "")
    assert str(mnist_dir) in dataset.source


def test_images_lie_in_the_middle_of_zeros(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
    splits = made_up(5, 3)
    dataset = data.load("mnist", str(write_idx(tmp_path, splits)))
    for found, images in (
        (dataset.train.images, splits.train_images),
        (dataset.test.images, splits.test_images),
    ):
        expected = torch.nn.functional.pad(torch.from_numpy(images), (2, 2, 2, 2))
        np.testing.assert_array_equal(found[..., 0], expected.numpy(), strict=True)
    np.testing.assert_array_equal(dataset.train.labels, splits.train_labels.astype(np.int32))
    np.testing.assert_array_equal(dataset.test.labels, splits.test_labels.astype(np.int32))


@pytest.mark.parametrize("count", [1, 999, 1000, 1001])
def test_mean_and_standard_deviation_are_those_of_the_unpadded_training_pixels(tmp_path, count):
    splits = made_up(count, 1)
    dataset = data.load("mnist", str(write_idx(tmp_path, splits)))
    pixels = splits.train_images.astype(np.float64) / 255
    for split in (dataset.train, dataset.test):
        assert split.mean == pytest.approx(pixels.mean(), rel=1e-13)
        assert split.std == pytest.approx(pixels.std(), rel=1e-12)


def test_images_of_32x32_are_kept_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8)
    labels = np.arange(4, dtype=np.uint8)
    dataset = data.load(
        "kmnist", str(write_idx(tmp_path, RawSplits(images, labels, images, labels)))
    )
    np.testing.assert_array_equal(dataset.train.images[..., 0], images)
    assert dataset.train.mean == pytest.approx(images.mean() / 255)


def test_images_without_contrast_are_refused(tmp_path):
    images, labels = np.full((4, 28, 28), 7, np.uint8), np.arange(4, dtype=np.uint8)
    write_idx(tmp_path, RawSplits(images, labels, images, labels))
    with pytest.raises(ValueError, match="all training pixels are equal"):
        data.load("mnist", str(tmp_path))


# Which data set


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"=minst: .* mnist, .*kmnist, .*cifar10, digits"):
        data.load("minst", None)


@pytest.mark.parametrize("name", [None, *data.DATASETS])
@pytest.mark.parametrize("kind", ["absent", "a file", ""])
def test_a_data_dir_that_is_no_folder_is_refused(name, kind, tmp_path):
    (tmp_path / "a file").write_text("")
    data_dir = kind and str(tmp_path / kind)
    with pytest.raises(ValueError, match=r"No such file|Not a directory") as caught:
        data.load(name, data_dir)
    assert str(caught.value).startswith(f"--data_dir={data_dir}: ")


def test_a_data_dir_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.os, "listdir", refuse)
    with pytest.raises(ValueError, match=r"^--data_dir=.*\(Permission denied\)"):
        data.load(None, str(tmp_path))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path / "here", made_up(3, 2))
    assert len(data.load("mnist", "~/here").train.labels) == 3


@pytest.mark.parametrize("name", [None, "mnist", "fashion_mnist", "kmnist"])
def test_idx_files_in_data_dir_are_taken_first(name, tmp_path, nothing_here):
    dataset = data.load(name, str(write_idx(tmp_path / "mine", made_up(3, 2))))
    assert (dataset.name, dataset.note) == (name or "mnist", "")
    assert dataset.source == f"IDX files in {tmp_path / 'mine'}"


@pytest.mark.parametrize("name", [None, "mnist"])
def test_damaged_idx_files_are_an_error_even_where_digits_would_do(name, tmp_path, nothing_here):
    write_idx(tmp_path, made_up(3, 2))
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz: cannot be read"):
        data.load(name, str(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte missing"):
        data.load(name, str(tmp_path))


@pytest.mark.parametrize("name", [None, "mnist", "kmnist"])
@pytest.mark.parametrize("names", [(), ("train.csv",), [f"{i}.png" for i in range(20)]])
def test_a_data_dir_in_which_nothing_fits_is_an_error_that_lists_what_lies_there(
    name, names, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "_unreachable", lambda url: pytest.fail("it asks the network"))
    for each in names:
        (tmp_path / each).touch()
    with pytest.raises(ValueError, match="train-images-idx3-ubyte") as caught:
        data.load(name, str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"--data_dir={tmp_path}: ")
    assert f"{name or 'mnist'}.npz" in message
    assert all(each in message for each in sorted(names)[:8])
    assert ("and 12 more" in message) == (len(names) == 20)
    assert "\n" not in message


def test_without_a_name_and_without_mnist_it_is_digits_with_a_note(nothing_here):
    dataset = data.load(None, None)
    assert dataset.name == "digits"
    assert "no network in this test" in dataset.note


def test_a_data_dir_of_nobody_is_refused():
    with pytest.raises(ValueError, match=r"^--data_dir=~nobody-of-that-name/x: "):
        data.load("mnist", "~nobody-of-that-name/x")


def test_without_a_home_folder_there_is_no_mnist_but_the_digits(monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    dataset = data.load(None, None)
    assert dataset.name == "digits"
    assert dataset.note.startswith("using digits, because there are neither TFDS_DATA_DIR nor a ho")
    with pytest.raises(ValueError, match="--dataset=digits"):
        data.load("mnist", None)


def test_digits_asked_for_come_without_a_note(nothing_here):
    assert data.load("digits", None).note == ""


# Under the names that people have


LAYOUTS = {
    "a dot": lambda stem: stem.replace("-idx", ".idx"),
    "Kaggle": lambda stem: f"{stem}/{stem}",
    "Kaggle, a dot": lambda stem: f"{stem}/{stem.replace('-idx', '.idx')}",
    "torchvision": lambda stem: f"FashionMNIST/raw/{stem}",
    "in torchvision's folder": lambda stem: f"raw/{stem}",
    "Keras": lambda stem: f"fashion-mnist/{stem}.gz",
    "MNIST's test": lambda stem: stem.replace("t10k", "test"),
    "capitals": lambda stem: stem.upper(),
}


@pytest.mark.parametrize("rename", LAYOUTS.values(), ids=LAYOUTS)
def test_idx_files_are_found_under_the_names_that_people_have(rename, tmp_path, nothing_here):
    splits = made_up(3, 2)
    write_idx(tmp_path / "before", splits)
    for stem in idx.FILES.values():
        path = tmp_path / "data" / rename(stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "before" / f"{stem}.gz").rename(path)
    dataset = data.load("fashion_mnist", str(tmp_path / "data"))
    np.testing.assert_array_equal(dataset.train.images[:, 2:30, 2:30, 0], splits.train_images)
    np.testing.assert_array_equal(dataset.test.labels, splits.test_labels)
    assert dataset.source.startswith(f"IDX files in {tmp_path / 'data'}")


def write_emnist(folder, part, splits):
    """As NIST gives them: each image transposed, and letters from 1 on."""
    first = np.uint8(part == "letters")
    splits = splits._replace(
        train_labels=splits.train_labels + first, test_labels=splits.test_labels + first
    )
    write_idx(folder, splits._replace(
        train_images=splits.train_images.transpose(0, 2, 1).copy(),
        test_images=splits.test_images.transpose(0, 2, 1).copy(),
    ))  # fmt: skip
    for path in folder.glob("t*-ubyte.gz"):
        path.rename(folder / f"emnist-{part}-{path.name.replace('t10k', 'test')}")


@pytest.mark.parametrize("part", ["digits", "mnist"])
def test_emnists_digits_are_mnist_and_upright(part, tmp_path, nothing_here):
    splits = made_up(3, 2)
    write_emnist(tmp_path / "gzip", part, splits)
    write_emnist(tmp_path / "gzip", "letters", made_up(5, 5))
    dataset = data.load(None, str(tmp_path))
    np.testing.assert_array_equal(dataset.train.images[:, 2:30, 2:30, 0], splits.train_images)
    np.testing.assert_array_equal(dataset.test.images[:, 2:30, 2:30, 0], splits.test_images)
    assert dataset.source == f"EMNIST's IDX files of {part} in {tmp_path / 'gzip'}"
    with pytest.raises(ValueError, match="gzip/"):
        data.load("kmnist", str(tmp_path))


EMNIST = {
    "letters": ("emnist_letters", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "balanced": ("emnist_balanced", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"),
    "digits": ("emnist_digits", "0123456789"),
}


@pytest.mark.parametrize("part", EMNIST)
@pytest.mark.parametrize("inner", ["", "gzip", "EMNIST/raw"])
def test_each_part_of_emnist_is_a_data_set_with_its_classes(part, inner, tmp_path, nothing_here):
    (name, classes), splits = EMNIST[part], made_up(60, 50)
    count = len(classes)
    train_labels, test_labels = (np.arange(n, dtype=np.uint8) % count for n in (60, 50))
    splits = splits._replace(train_labels=train_labels, test_labels=test_labels)
    write_emnist(tmp_path / inner, part, splits)
    dataset = data.load(name, str(tmp_path))
    assert (dataset.name, "".join(dataset.classes)) == (name, classes)
    np.testing.assert_array_equal(dataset.train.images[:, 2:30, 2:30, 0], splits.train_images)
    np.testing.assert_array_equal(dataset.test.images[:, 2:30, 2:30, 0], splits.test_images)
    np.testing.assert_array_equal(dataset.train.labels, train_labels)
    np.testing.assert_array_equal(dataset.test.labels, test_labels)
    assert dataset.source == f"EMNIST's IDX files of {part} in {tmp_path / inner}"
    others = [name for other, (name, _) in EMNIST.items() if other != part]
    for other in others:
        with pytest.raises(ValueError, match=rf"Wanted are emnist-{other[7:]}-train-images"):
            data.load(other, str(tmp_path))


def test_a_label_that_is_no_letter_is_refused(tmp_path):
    splits = made_up(3, 2)
    labels = np.array([0, 25, 26], np.uint8)  # in the file 1, 26 and 27
    write_emnist(tmp_path, "letters", splits._replace(train_labels=labels))
    with pytest.raises(ValueError, match="label 27 at position 2; labels are 1 to 26"):
        data.load("emnist_letters", str(tmp_path))


@pytest.mark.parametrize(("largest", "count"), [(3, 10), (9, 10), (10, 11), (61, 62), (255, 256)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_files_of_ones_own_have_as_many_classes_as_their_labels(largest, count, split, tmp_path):
    lines, splits = [], made_up(3, 3)
    labels = {f"{split}_labels": np.array([0, largest, 1], np.uint8)}
    dataset = data.load("mnist", str(write_idx(tmp_path, splits._replace(**labels))), lines.append)
    assert dataset.classes == tuple(map(str, range(count)))
    assert getattr(dataset, split).labels.tolist() == [0, largest, 1]
    said = f"note: the labels of {dataset.source} go up to {largest}: {count} classes"
    assert len(lines) == (count > 10)
    assert all(line.startswith(said) for line in lines)


@pytest.mark.parametrize(
    ("train", "test", "empty"),
    [
        ([*range(10), 11], [0], "10"),
        ([*range(10), 10], [11, 10], "11"),
        ([*range(10), 10, 11], [0], ""),
        ([0, 20], [1], "1, 2, 3, 4, 5, 6, 7, 8 and 11 more"),
    ],
)
def test_classes_without_a_training_image_are_told_as_a_sign_of_damage(
    train, test, empty, tmp_path
):
    lines, splits = [], made_up(len(train), len(test))
    splits = splits._replace(train_labels=np.uint8(train), test_labels=np.uint8(test))
    data.load("mnist", str(write_idx(tmp_path, splits)), lines.append)
    (line,) = lines
    assert line.endswith(
        f" classes; no image of class {empty} to train on: is a label damaged?"
        if empty
        else "go up to 11: 12 classes"
    )


def test_a_log_that_nobody_reads_is_not_about_the_files(tmp_path):
    def log(line):
        raise BrokenPipeError(32, "Broken pipe")

    splits = made_up(3, 2)._replace(train_labels=np.array([0, 11, 1], np.uint8))
    with pytest.raises(BrokenPipeError):
        data.load("mnist", str(write_idx(tmp_path, splits)), log)


def test_the_names_of_ten_classes_are_not_those_of_more(tmp_path):
    splits = made_up(3, 2)._replace(train_labels=np.array([0, 11, 1], np.uint8))
    dataset = data.load("fashion_mnist", str(write_idx(tmp_path, splits)))
    assert dataset.classes == tuple(map(str, range(12)))


def test_emnists_letters_are_no_digits(tmp_path, nothing_here):
    write_emnist(tmp_path, "letters", made_up(3, 2))
    with pytest.raises(ValueError, match="it holds emnist-letters-test-images-"):
        data.load("mnist", str(tmp_path))
    found = idx.load_folder(tmp_path, "letters")
    np.testing.assert_array_equal(found.train_images, made_up(3, 2).train_images)


def test_dark_on_light_images_come_white_on_black_and_are_told(tmp_path, nothing_here):
    lines, glyph = [], np.zeros((4, 28, 28), np.uint8)
    glyph[:, 8:20, 12:16] = 200
    labels = np.arange(4, dtype=np.uint8)
    data_dir = str(write_idx(tmp_path, RawSplits(255 - glyph, labels, 255 - glyph, labels)))
    dataset = data.load("mnist", data_dir, lines.append)
    np.testing.assert_array_equal(dataset.train.images[:, 2:30, 2:30, 0], glyph)
    assert dataset.train.images[:, 0].max() == 0  # the padding is paper, too
    assert dataset.train.mean == pytest.approx(glyph.mean() / 255)
    assert len(lines) == 1
    assert "inverted, being dark on light" in lines[0]
    assert "inverted" in dataset.source


# What loading costs


def test_nothing_is_imported_that_the_data_set_does_not_need(tmp_path):
    write_idx(tmp_path, made_up(3, 2))
    code = f"""
import sys
from lenet_jax import data
before = set(sys.modules)
data.load("digits")
data.load("mnist", {str(tmp_path)!r})
heavy = {{"sklearn", "scipy", "PIL", "tensorflow_datasets", "tqdm", "urllib.request"}}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_only_the_split_and_the_images_size_come_from_the_core():
    for path in Path(data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in names), path
            of_core = {name for name in names if name.startswith("lenet_jax.core")}
            assert of_core <= {"lenet_jax.core.model", "lenet_jax.core.split"}, path
