"""What the registry says of the data sets is what tensorflow-datasets says, and adds up."""

import pytest

from lenet_jax import data
from lenet_jax.data.registry import INFO

DOWNLOADABLE = [name for name, info in INFO.items() if info.url]


@pytest.mark.parametrize("name", DOWNLOADABLE)
def test_names_addresses_checksums_and_classes_are_those_of_tensorflow_datasets(name, tmp_path):
    import tensorflow_datasets as tfds

    info = INFO[name]
    builder = getattr(tfds.image_classification, info.tfds_class)
    assert builder.name == name
    assert info.url == builder.URL
    theirs = {url: (int(known.size), known.checksum) for url, known in builder.url_infos.items()}
    assert {f"{info.url}{file}": tuple(known) for file, known in info.files.items()} == theirs
    assert info.classes == tuple(builder(data_dir=tmp_path).info.features["label"].names)


def test_the_normalization_is_that_of_the_training_pixels(mnist_dir):
    for dataset in (data.load("digits"), data.load("mnist", str(mnist_dir))):
        info = INFO[dataset.name]
        assert info.mean == round(float(dataset.train.mean), 4)
        assert info.std == round(float(dataset.train.std), 4)


@pytest.mark.parametrize("name", data.DATASETS)
def test_each_data_set_has_ten_classes_and_a_pen_that_fits_its_box(name):
    info = INFO[name]
    assert len(set(info.classes)) == 10
    assert info.pen < info.box <= data.SIDE
