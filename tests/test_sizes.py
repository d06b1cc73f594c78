"""Networks of other sizes than ten digits', through the commands: letters, and images in colour.

The files are as EMNIST and CIFAR-10 have them; the letters are those of fonts.
"""

import dataclasses
import json
import re
import string
from pathlib import Path

import drawn_digits
import jax
import numpy as np
import pytest
from PIL import Image

from lenet_jax import LeNet, data, evaluate, export, predict, report, sweep, train
from lenet_jax.core import epoch
from lenet_jax.data.registry import INFO
from lenet_jax.interop import pytorch
from lenet_jax.run import folder, trained
from lenet_jax.run.measure import load_data

LETTERS = string.ascii_uppercase


@pytest.fixture(scope="module")
def letters_run(tmp_path_factory, write_idx) -> Path:
    """A run on printed letters, in files as NIST names them: transposed, labelled from 1."""
    path = tmp_path_factory.mktemp("letters")
    for part, angles in (("train", (-9, -3, 3)), ("test", (6,))):
        cases = [
            (i, font, angle) for font in drawn_digits.FONTS for i in range(26) for angle in angles
        ]
        images = [drawn_digits.framed(LETTERS[i], font, angle=angle).T for i, font, angle in cases]
        labels = [1 + i for i, *_ in cases]
        write_idx(path / f"emnist-letters-{part}-images-idx3-ubyte", np.array(images))
        write_idx(path / f"emnist-letters-{part}-labels-idx1-ubyte", np.array(labels))
    where = f"--data_dir={path}", f"--workdir={path / 'run'}"
    flags = "--dataset=emnist_letters", "--epochs=15", "--learning_rate=4e-3", "--batch_size=32"
    train.main(["train", "--augment=1", *flags, *where])
    return path / "run"


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory) -> Path:
    """A run on noise in ten hues, in files as CIFAR-10's."""
    path, rng = tmp_path_factory.mktemp("colour"), np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = rng.integers(0, 10, 64)
        hues = np.stack([labels % 3, labels % 4, labels % 5], axis=1) * 50  # [N, 3]
        pixels = hues[:, :, None] + rng.integers(0, 50, (64, 3, 1024))
        records = np.concatenate([labels[:, None], pixels.reshape(64, -1)], axis=1)
        (path / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())
    where = f"--data_dir={path}", f"--workdir={path / 'run'}"
    train.main(["train", "--dataset=cifar10", "--epochs=2", "--batch_size=32", *where])
    return path / "run"


def test_a_run_keeps_its_classes_by_name_and_its_channels(letters_run, colour_run):
    kept = [
        json.loads((run / folder.CONFIG).read_text())["data"] for run in (letters_run, colour_run)
    ]
    assert [(each["classes"], each["channels"]) for each in kept] == [
        (list(LETTERS), 1),
        (list(data.load("cifar10", str(colour_run.parent)).classes), 3),
    ]
    assert trained.load(letters_run).params["fc3"]["bias"].shape == (26,)
    colour = trained.load(colour_run)
    assert colour.params["conv1"]["kernel"].shape == (5, 5, 3, 6)
    assert [len(value) for value in colour.normalization.values()] == [3, 3]


def test_printed_letters_are_read_as_letters(letters_run, tmp_path, capsys):
    """At another angle than those that it was trained on, black on white, by their names."""
    for letter in LETTERS:
        Image.fromarray(drawn_digits.printed(letter, "DejaVuSans")).save(tmp_path / f"{letter}.png")
    predict.main(["predict", f"--workdir={letters_run}", str(tmp_path)])
    answers = [
        re.search(r"(\w)\.png: (\w) \(.*\), else (\w) \(", line).groups()
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [asked for asked, *_ in answers] == list(LETTERS)
    assert sum(asked == answer for asked, answer, _ in answers) >= 24
    predict.main(["predict", f"--workdir={letters_run}", "--json", str(tmp_path / "C.png")])
    found = json.loads(capsys.readouterr().out)
    assert (found["class"], found["runner_up_class"]) == (answers[2][1], answers[2][2])
    assert found["class"] == LETTERS[found["prediction"]]
    assert len(found["probabilities"]) == 26


def test_the_table_of_letters_names_them(letters_run, capsys):
    evaluate.main(["evaluate", f"--workdir={letters_run}"])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((letters_run / "evaluation.json").read_text())
    assert result["classes"] == list(LETTERS)
    assert result["accuracy"] > 0.8
    at = lines.index("class   images   precision   recall") + 1
    assert [line.split()[:2] for line in lines[at : at + 26]] == [[c, "10"] for c in LETTERS]
    assert max(map(len, lines[2:-2])) <= 100  # the last two name folders


@pytest.mark.parametrize("run", ["letters_run", "colour_run"])
def test_a_browser_shows_all_of_the_report(run, window, request, tmp_path):
    path = request.getfixturevalue(run)
    report.main(["report", f"--workdir={path}", f"--output={tmp_path}"])
    window.open(tmp_path / "index.html", 1100, 900)
    window.settle()
    assert window.evaluate("document.documentElement.scrollWidth") <= 1100
    widths = window.evaluate("[...document.images].map((image) => image.clientWidth)")
    assert min(widths) > 400
    assert (widths[1] > 900) == (run == "letters_run")  # the confusion matrix


@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_to_draw_on_answers_with_letters(width, letters_run, window, tmp_path):
    file = tmp_path / "page.html"
    export.main(["export", f"--workdir={letters_run}", "--format=html", f"--output={file}"])
    window.open(file, width, 900)
    dataset, run = data.load("emnist_letters", str(letters_run.parent)), trained.load(letters_run)
    pixels = dataset.test.images[:20].reshape(20, -1).tolist()
    found = window.evaluate(f"{pixels}.map((p) => Array.from(forward(p).logits))")
    wanted = epoch.predict(LeNet(26), run.params, dataset.test)[:20]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert all(letter in window.evaluate("find('#hint').textContent") for letter in LETTERS)
    line = drawn_digits.line
    drawn_digits.drag(window, [line((0.3, 0.2), (0.7, 0.2)), line((0.5, 0.2), (0.5, 0.8))])
    window.settle()
    assert window.evaluate("find('#class').textContent") == "T"
    assert window.evaluate("find('#bars .first').firstChild.textContent") == "T"
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    names = "[...find('#bars').children].map((bar) => bar.getBoundingClientRect().left)"
    assert len(set(window.evaluate(names))) == 2  # columns


def test_a_colour_picture_is_read_as_the_network_was_trained(colour_run, tmp_path, capsys):
    test, run = data.load("cifar10", str(colour_run.parent)).test, trained.load(colour_run)
    Image.fromarray(test.images[3]).save(tmp_path / "a.png")
    predict.main(["predict", f"--workdir={colour_run}", "--json", str(tmp_path / "a.png")])
    found = json.loads(capsys.readouterr().out)
    logits = epoch.predict(LeNet(10, 3), run.params, test)[3]
    np.testing.assert_allclose(found["probabilities"], jax.nn.softmax(logits), rtol=1e-4)
    assert found["class"] in INFO["cifar10"].classes


def test_there_is_nothing_to_draw_for_a_network_of_colour_images(colour_run, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main(["export", f"--workdir={colour_run}", "--format=html"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --format=html: step 20 of ")
    assert line.endswith("takes images of 3 channels, and a drawing has one")


def test_a_file_of_letters_starts_letters_and_nothing_else(letters_run, tmp_path, capsys):
    file = tmp_path / "letters.safetensors"
    export.main(["export", f"--workdir={letters_run}", "--format=torch", f"--output={file}"])
    capsys.readouterr()
    flags = f"--init_from={file}", f"--workdir={tmp_path / 'run'}", "--epochs=1"
    with pytest.raises(SystemExit) as ended:
        train.main(["train", "--dataset=digits", *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    sizes = (
        "its network is for 26 classes and 1 channel, and the data have 10 classes and 1 channel"
    )
    assert line == f"error: --init_from={file}: {sizes}"
    where = f"--data_dir={letters_run.parent}"
    train.main(["train", "--dataset=emnist_letters", where, "--batch_size=32", *flags])
    assert trained.load(tmp_path / "run").metrics[0]["train_loss"] < 1  # log 26 is 3.3
    run = trained.load_network(trained.NetworkSettings(init_from=str(file)), pytest.fail)
    assert run.classes == tuple(LETTERS)
    assert run.normalization == trained.load(letters_run).normalization


def test_a_file_is_of_the_data_set_that_has_its_channels(colour_run, tmp_path):
    run, lines = trained.load(colour_run), []
    file = tmp_path / "net.safetensors"
    file.write_bytes(pytorch.to_safetensors(run.params, **run.normalization, classes=["one"]))
    network = lambda **flags: trained.load_network(
        trained.NetworkSettings(init_from=str(file), **flags), lines.append
    )
    with pytest.raises(ValueError, match=r"has 10 classes and 3 channels, .* with --dataset"):
        network()
    assert network(dataset="cifar10").normalization == run.normalization
    assert network(dataset="cifar10").classes == tuple("0123456789")
    assert lines[-1].endswith("the 10 classes of its network: their numbers are used as names")
    given = network(dataset="cifar10", mean="0.5", std="0.25")
    assert given.normalization == {"mean": 0.5, "std": 0.25}
    with pytest.raises(ValueError, match=r"which mean \(0.1, 0.2\) and std .* do not fit"):
        network(dataset="cifar10", mean="0.1,0.2", std="1,1")


def test_images_of_more_channels_or_classes_are_not_measured(
    letters_run, colour_run, capsys, monkeypatch
):
    def measure(run: Path) -> str:
        output = f"--output={run.parent / 'digits.json'}"
        evaluate.main(["evaluate", f"--workdir={run}", "--dataset=digits", output])

    measure(letters_run)  # digits are fewer classes, which is no matter
    with pytest.raises(SystemExit) as ended:
        measure(colour_run)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 10 classes and 1 channel, and the network of step 20 of" in line
    more = dataclasses.replace(data.load("digits"), classes=tuple(map(str, range(27))))
    monkeypatch.setattr(data, "load", lambda *args: more)
    with pytest.raises(ValueError, match="has 27 classes and 1 channel, and the network"):
        load_data(trained.load(letters_run))


def test_a_sweep_is_of_the_datas_sizes(colour_run, tmp_path):
    flags = "--optimizers=adam", "--learning_rates=1e-3", "--seeds=2", "--epochs=1"
    where = f"--data_dir={colour_run.parent}", f"--workdir={tmp_path}"
    sweep.main(["sweep", "--dataset=cifar10", "--batch_size=32", "--augment=1", *flags, *where])
    networks = json.loads((tmp_path / "sweep.json").read_text())["networks"]
    assert [network["finite"] for network in networks] == [True, True]
