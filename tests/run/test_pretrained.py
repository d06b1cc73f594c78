"""The network in the package reads digits as its note says."""

import hashlib
import json
import re
import subprocess
import sys

import _weights
import drawn_digits
import jax
import numpy as np
import pytest

import lenet_jax
from lenet_jax import data, load_pretrained, normalize
from lenet_jax.core import metrics
from lenet_jax.core.split import take
from lenet_jax.pictures import frame
from lenet_jax.run import checkpoint, pretrained

README = (pretrained.WEIGHTS / "README.md").read_text()


@pytest.fixture(scope="module")
def mnist(mnist_dir) -> data.Dataset:
    return data.load("mnist", str(mnist_dir))


def logits_of(images: np.ndarray) -> jax.Array:
    model, params, normalization = load_pretrained("mnist")
    return model.apply({"params": params}, normalize(images, **normalization))


def test_its_accuracy_on_mnist_is_the_one_it_states(mnist):
    _, note = pretrained.read("mnist")
    stated = note["metrics"][-1]["test_accuracy"]
    accuracy = metrics.accuracy(logits_of(mnist.test.images), mnist.test.labels)
    assert float(accuracy) == pytest.approx(stated, abs=1e-6)


def test_it_reads_100_printed_digits():
    pairs = [(digit, font) for digit in range(10) for font in drawn_digits.FONTS]
    images = np.stack([frame.center(np.float32(drawn_digits.printed(*pair))) for pair in pairs])
    right = logits_of(images).argmax(axis=1) == np.array([digit for digit, _ in pairs])
    assert (len(right), right.sum() >= 95) == (100, True)


def test_its_note_for_people_is_of_this_file():
    content, (_, note) = pretrained.file_of("mnist").read_bytes(), pretrained.read("mnist")
    assert len(content) <= 300_000
    assert hashlib.sha256(content).hexdigest() in README
    assert note["config"]["data"]["sha256"] in README
    for words in (note["config"]["settings"][name] for name in ("recipe", "command")):
        assert words in README
    assert f"| test accuracy | {note['metrics'][-1]['test_accuracy']:.2%} of 10,000" in README
    assert "CC BY-SA 3.0" in README
    assert not re.search(r"/(home|work|root|tmp)/", json.dumps(note) + README)


def test_the_same_network_and_facts_give_the_same_bytes(mnist, tmp_path):
    params, note = pretrained.read("mnist")
    last, settings = note["metrics"][-1], note["config"]["settings"]
    facts = {"accuracy": last["test_accuracy"], "step": last["step"]}
    facts |= {name: settings[name] for name in ("recipe", "command")}
    _weights.write_weights(params, mnist, **facts, folder_of_weights=tmp_path)
    for file in ("mnist.npz", "README.md"):
        assert (tmp_path / file).read_bytes() == (pretrained.WEIGHTS / file).read_bytes()


def test_it_loads_without_the_packages_that_only_commands_need():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['lenet_jax.cli', 'tqdm', 'PIL', 'scipy']); "
        "import lenet_jax; print(lenet_jax.load_pretrained('mnist').params['fc3']['bias'].shape)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "(10,)\n"


def test_its_arrays_are_the_files_and_can_be_trained_on():
    model, params, normalization = load_pretrained("mnist")
    with np.load(pretrained.file_of("mnist")) as stored:
        names = set(stored) - {"note"}
        for name in names:
            _, layer, kind = name.split(".")
            np.testing.assert_array_equal(params[layer][kind], stored[name])
    assert len(names) == len(jax.tree.leaves(params)) == 10
    state = lenet_jax.create_train_state(0, lenet_jax.make_optimizer("adam"), model)
    images = take(data.load("digits").train, slice(64))
    batch = {"image": normalize(images.images, **normalization), "label": images.labels}
    state, _ = lenet_jax.train_step(state.replace(params=params), batch)
    assert int(state.step) == 1


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^load_pretrained\('kmnist'\): choose one of mnist$"):
        load_pretrained("kmnist")


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    (tmp_path / "mnist.npz").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(checkpoint.CheckpointError, match=r"mnist\.npz: "):
        load_pretrained("mnist")
