"""What the registry says of the data sets is what tensorflow-datasets says, and adds up."""

from pathlib import Path

import numpy as np
import pytest

from lenet_jax import data
from lenet_jax.core.augment import STANDARDS
from lenet_jax.core.model import IMAGE_SIZE
from lenet_jax.data import prepared
from lenet_jax.data.registry import INFO

DOWNLOADABLE = [name for name, info in INFO.items() if info.url]


@pytest.mark.parametrize("name", DOWNLOADABLE)
def test_names_addresses_checksums_and_classes_are_those_of_tensorflow_datasets(name, tmp_path):
    import tensorflow_datasets as tfds

    info = INFO[name]
    builder = getattr(tfds.image_classification, info.tfds_class)
    made = builder(data_dir=tmp_path, config=info.emnist_part or None)
    folder = prepared.folder_of(name, tmp_path)
    assert Path(made.data_dir).parent == folder
    theirs = {url: (int(known.size), known.checksum) for url, known in builder.url_infos.items()}
    assert {f"{info.url}{file}": known for file, known in info.files.items()} == theirs
    label, image = made.info.features["label"], made.info.features["image"]
    assert image.shape[2] == np.size(info.mean) == np.size(info.std)
    if name == "emnist_letters":  # for 26 letters tensorflow-datasets says 37
        assert info.labels == range(1, 27)
    else:
        assert label.num_classes == len(info.classes)
    if not name.startswith("emnist") and name != "cifar10":  # where it has no names
        assert info.classes == tuple(label.names)


def test_classes_are_those_of_the_files_that_come_with_the_data():
    """emnist-balanced-mapping.txt has ASCII codes, batches.meta.txt has names."""
    codes = [*range(48, 58), *range(65, 91), 97, 98, 100, 101, 102, 103, 104, 110, 113, 114, 116]
    assert INFO["emnist_balanced"].classes == tuple(map(chr, codes))
    assert INFO["emnist_letters"].classes == tuple(chr(64 + label) for label in range(1, 27))
    assert INFO["emnist_digits"].classes == INFO["mnist"].classes
    meta = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(INFO["cifar10"].classes) == meta


def test_the_normalization_is_that_of_the_training_pixels(mnist_dir):
    for dataset in (data.load("digits"), data.load("mnist", str(mnist_dir))):
        info = INFO[dataset.name]
        assert info.mean == round(float(dataset.train.mean), 4)
        assert info.std == round(float(dataset.train.std), 4)


@pytest.mark.parametrize("name", data.DATASETS)
def test_each_data_set_has_classes_a_pen_that_fits_its_box_and_distortions(name):
    info = INFO[name]
    assert len(set(info.classes)) == {"emnist_letters": 26, "emnist_balanced": 47}.get(name, 10)
    assert info.pen < info.box <= IMAGE_SIZE
    assert (info.augment == "shift_and_flip") == (name == "cifar10")
    assert info.augment in STANDARDS
