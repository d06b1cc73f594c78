"""NumPy's archives, as Keras and KMNIST's authors write them."""

import numpy as np
import pytest
from made_up import assert_equal, made_up

from lenet_jax import data
from lenet_jax.data import npz

SPLITS = made_up(4, 3)
KERAS = dict(zip(("x_train", "y_train", "x_test", "y_test"), SPLITS, strict=True))


def load(folder, name="mnist"):
    return npz.load(npz.find([folder / "nowhere", folder], name))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels", [np.uint8, np.int64])
def test_a_file_of_keras_is_a_data_set(save, labels, tmp_path):
    save(tmp_path / "mnist.npz", **KERAS | {"y_train": SPLITS.train_labels.astype(labels)})
    assert_equal(load(tmp_path), SPLITS)
    dataset = data.load(None, str(tmp_path))
    assert (dataset.name, dataset.source) == ("mnist", str(tmp_path / "mnist.npz"))
    np.testing.assert_array_equal(dataset.train.images[:, 2:30, 2:30, 0], SPLITS.train_images)


def test_the_four_files_of_kmnist_are_a_data_set(tmp_path):
    for split in ("train", "test"):
        for kind, part in (("imgs", "images"), ("labels", "labels")):
            array = getattr(SPLITS, f"{split}_{part}")
            np.savez_compressed(tmp_path / f"kmnist-{split}-{kind}.npz", array)
    assert_equal(load(tmp_path, "kmnist"), SPLITS)
    assert npz.find([tmp_path], "mnist") is None
    (tmp_path / "kmnist-test-imgs.npz").unlink()
    assert npz.find([tmp_path], "kmnist") is None


UNFIT = {
    "pickles": ({"x_test": np.array([{}], object)}, "x_test cannot be read .*allow_pickle"),
    "floats": ({"x_train": SPLITS.train_images / 255}, r"x_train is float64 \[4, 28, 28\]; whole"),
    "one-hot": ({"y_test": np.eye(3, 10, dtype=int)}, r"y_test is int64 \[3, 10\]"),
    "label 300": ({"y_train": np.full(4, 300)}, "y_train has values outside 0 to 255"),
    "label -1": ({"y_train": np.full(4, -1)}, "y_train has values outside 0 to 255"),
    "fewer labels": ({"y_train": SPLITS.train_labels[:2]}, "holds 4 images, but .* 2 labels"),
    "no images": ({"x_train": SPLITS.train_images[:0]}, "x_train is uint8"),
}


@pytest.mark.parametrize(("changed", "reason"), UNFIT.values(), ids=UNFIT)
def test_what_is_no_data_set_is_named(changed, reason, tmp_path):
    np.savez(tmp_path / "mnist.npz", **KERAS | changed)
    with pytest.raises(ValueError, match=reason) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'mnist.npz'}: ")


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>not found</html>"])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist\.npz: x_train cannot be read"):
        load(tmp_path)
