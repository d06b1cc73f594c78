"""How well a network reads what was not made for it."""

import dataclasses
import os

import drawn_digits
import numpy as np
import pytest
from PIL import Image

from lenet_jax import data
from lenet_jax.core.split import take
from lenet_jax.pictures import read as pictures
from lenet_jax.run import loop, reading, trained
from lenet_jax.run.settings import Settings


@pytest.fixture(scope="module")
def short_run(mnist_dir, tmp_path_factory):
    """A short training on 12,800 handwritten digits."""
    dataset = data.load("mnist", str(mnist_dir))
    first = take(dataset.train, slice(12800)), take(dataset.test, slice(1000))
    part = dataclasses.replace(dataset, train=first[0], test=first[1])
    settings = Settings(dataset="mnist", epochs=3, learning_rate=3e-3)
    folder = tmp_path_factory.mktemp("short")
    loop.fit(loop.resolve(settings, part), part, folder, lambda line: None)
    return trained.load(folder)


@pytest.mark.slow
def test_printed_and_photographed_digits_are_read(short_run, tmp_path):
    """It is enough to read most of ten fonts'."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for font in drawn_digits.FONTS:
        for digit in range(10):
            Image.fromarray(drawn_digits.photographed(digit, font, rng)).save(tmp_path / "x.png")
            images.append(reading.prepare(tmp_path / "x.png", short_run))
            labels.append(digit)
    right = reading.predict_probs(short_run, images).argmax(1) == labels
    assert right.mean() >= 0.93


@pytest.mark.slow
def test_pictures_as_people_have_them_are_read(short_run):
    """A folder of pictures called <kind>-<digit>.<suffix>: frames, desks, shadows, rules."""
    folder = os.environ.get("LENET_JAX_TEST_PICTURES")
    if not folder:
        pytest.skip("LENET_JAX_TEST_PICTURES does not name a folder of pictures")
    files = [file for file, error in pictures.find_files([folder]) if not error]
    images = [reading.prepare(file, short_run) for file in files]
    labels = [int(file.stem[-1]) for file in files]
    right = reading.predict_probs(short_run, images).argmax(1) == labels
    assert right.mean() >= 0.95
