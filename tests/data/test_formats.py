"""Which files a data set is read from, where a folder holds several kinds."""

import numpy as np
import pytest
from made_up import assert_equal, made_up, write_idx
from test_cifar import write as write_cifar

from lenet_jax.data import cifar, formats, idx
from lenet_jax.data.registry import INFO


def test_a_folder_of_everything_gives_each_data_set_its_own_files(tmp_path):
    write_cifar(tmp_path)
    write_idx(tmp_path, made_up(3, 2))
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros(3))  # after IDX files nobody looks at it
    source, splits = formats.read("mnist", tmp_path)
    assert source == f"IDX files in {tmp_path}"
    assert_equal(splits, made_up(3, 2))
    source, splits = formats.read("cifar10", tmp_path)
    assert source == f"CIFAR-10's binary files in {tmp_path}"
    assert splits.train_images.shape == (60, 32, 32, 3)
    assert formats.read("emnist_letters", tmp_path) is None


@pytest.mark.parametrize("name", [name for name in INFO if INFO[name].url])
def test_what_is_wanted_and_how_to_get_it_name_the_published_files(name, tmp_path):
    assert formats.read(name, tmp_path) is None
    files = formats.file_names(name)
    assert len(files) == (6 if name == "cifar10" else 4)
    assert all(file in formats.describe_wanted(name, tmp_path) for file in files)
    how_to_get = formats.how_to_get(name)
    assert how_to_get.endswith("into a folder and name it with --data_dir")
    assert all(file in how_to_get for file in INFO[name].files)


def test_the_names_of_files_are_those_that_are_found(tmp_path):
    for name in ("emnist_letters", "emnist_balanced", "emnist_digits"):
        for file in formats.file_names(name):
            (tmp_path / f"{file}.gz").touch()
        assert idx.find_folder([tmp_path], INFO[name].idx_parts)
    assert cifar.find_folder([tmp_path]) is None
