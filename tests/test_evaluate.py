"""The command from outside, judged by a plain forward pass, NumPy and the run's own metrics."""

import dataclasses
import gzip
import json
import shutil
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lenet_jax import LeNet, data, evaluate
from lenet_jax.run import loop, pretrained, trained
from lenet_jax.run.measure import predict_logits
from lenet_jax.run.settings import Settings


@pytest.fixture(scope="module")
def measured(tiny_run, tmp_path_factory) -> Path:
    """A copy of the tiny run after the command has measured it."""
    path = shutil.copytree(tiny_run, tmp_path_factory.mktemp("measured") / "run")
    evaluate.main(["evaluate", f"--workdir={path}"])
    return path


def predictions(run: trained.TrainedRun, dataset: data.Dataset) -> np.ndarray:
    pixels = dataset.test.images.astype(np.float32) / 255
    pixels = (pixels - run.config["data"]["mean"]) / run.config["data"]["std"]
    logits = LeNet().apply({"params": run.params}, jnp.asarray(pixels, jnp.float32))
    return np.asarray(logits).argmax(1)


def test_the_numbers_are_those_of_the_runs_last_epoch(measured):
    result = json.loads((measured / "evaluation.json").read_text())
    last = trained.load(measured).metrics[-1]
    assert result["accuracy"] == pytest.approx(last["test_accuracy"], rel=1e-6)
    assert result["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert result["negative_log_likelihood"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert (result["step"], result["test_images"]) == (last["step"], 360)


def test_the_confusions_are_those_of_a_plain_forward_pass(measured):
    run, dataset = trained.load(measured), data.load("digits")
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (dataset.test.labels, predictions(run, dataset)), 1)
    result = json.loads((measured / "evaluation.json").read_text())
    assert result["confusion_matrix"] == expected.tolist()
    recall = expected.diagonal() / expected.sum(1)
    assert result["recall"] == pytest.approx(recall.tolist(), rel=1e-6)
    assert sum(result["reliability"]["count"]) == 360


def test_the_table_shows_every_class_and_the_last_line_the_numbers(tiny_run, tmp_path, capsys):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    evaluate.main(["evaluate", f"--workdir={path}"])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((path / "evaluation.json").read_text())
    assert lines[0] == f"run        {path}, step 44"
    start = lines.index("class   images   precision   recall") + 1
    assert [line.split()[:2] for line in lines[start : start + 10]] == [
        [str(i), str(sum(row))] for i, row in enumerate(result["confusion_matrix"])
    ]
    assert lines[-2].startswith(f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} (")
    assert lines[-2].endswith(f"written to {path / 'evaluation.json'}")
    assert lines[-1] == f"next: lenet-jax report --workdir={path}"


def test_without_a_run_it_measures_the_packages_network(capsys):
    evaluate.main(["evaluate", "--dataset=digits"])
    first, run, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("note: this is the package's own network, trained on mnist")
    assert run.startswith(f"run        {pretrained.file_of('mnist')}, step ")
    assert last.startswith("accuracy ")
    assert "written to" not in last


def table(names: list[str], matrix: np.ndarray) -> list[str]:
    shares = [0.5] * len(names)
    result = {
        **{"dataset": "a", "source": "b", "test_images": 9, "note": "", "classes": names},
        **{"precision": shares, "recall": shares, "confusion_matrix": matrix.tolist()},
        "reliability": {"count": [0], "accuracy": [0], "confidence": [0]},
    }
    return evaluate.format_table(result).splitlines()


def test_a_confusion_matrix_wider_than_a_screen_is_a_list_of_its_mistakes():
    matrix = 800 * np.eye(26, dtype=int)
    matrix[8, 11], matrix[16, 6], matrix[0, 25] = 103, 7, 40
    lines = table([chr(65 + i) for i in range(26)], matrix)
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["true", "predicted"])
    mistakes = [line.split() for line in lines[at + 1 : at + 5]]
    assert mistakes == [["I", "L", "103"], ["A", "Z", "40"], ["Q", "G", "7"], []]
    assert max(map(len, lines)) <= 100


def test_long_names_of_classes_are_cut_where_the_matrix_has_a_column_for_each():
    names = [f"{number} ankle boots" for number in range(10)]
    lines = table(names, np.arange(100).reshape(10, 10))
    at = next(i for i, line in enumerate(lines) if line.startswith(r"true \ predicted"))
    assert lines[at].split("boots")[0].count("ankl") == 10
    assert lines[at + 2].split() == ["1", "ankle", "boots", *map(str, range(10, 20))]
    assert max(map(len, lines)) <= 100


def write_idx(folder: Path) -> None:
    """A data set of two training and three test images that only knows the classes 3 and 4."""
    for split, labels in (("train", [3, 4]), ("t10k", [3, 3, 4])):
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), np.uint8)
        head = struct.pack(">4B3I", 0, 0, 8, 3, len(labels), 28, 28)
        with gzip.open(folder / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + images.tobytes())
        with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels))


def test_another_data_set_has_its_own_file_and_no_share_of_nothing(tiny_run, tmp_path, capsys):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    write_idx(tmp_path)
    evaluate.main(["evaluate", f"--workdir={path}", "--dataset=kmnist", f"--data_dir={tmp_path}"])
    assert not (path / "evaluation.json").exists()
    result = json.loads((path / "evaluation-kmnist.json").read_text())
    assert (result["dataset"], result["test_images"]) == ("kmnist", 3)
    assert result["recall"][0] is None  # no image shows a 0
    assert result["recall"][3] is not None
    assert "NaN" not in (path / "evaluation-kmnist.json").read_text()
    assert " nan" not in capsys.readouterr().out


def test_other_images_of_the_same_name_are_told_and_leave_the_runs_numbers(
    measured, tmp_path, capsys, monkeypatch
):
    path = shutil.copytree(measured, tmp_path / "run")
    before = (path / "evaluation.json").read_bytes()
    assert json.loads(before)["note"] == ""
    digits = data.load("digits")
    reversed_test = digits.test._replace(images=digits.test.images[::-1].copy())
    other = dataclasses.replace(digits, test=reversed_test)
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: other)
    evaluate.main(["evaluate", f"--workdir={path}"])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert told == [
        f"note: these images differ from the run's own, which came from {digits.source}"
    ]
    assert (path / "evaluation.json").read_bytes() == before
    assert json.loads((path / "evaluation-digits.json").read_text())["note"] == told[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir=no/such/folder"], "--workdir=no/such/folder: there is no such folder"),
        (["--workdir=."], "--workdir=.: no checkpoint there"),
        (["--dataset=letters"], "--dataset=letters: choose one of"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_code_2(
    flags, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        evaluate.main(["evaluate", *flags])
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}")
    assert err.count("\n") == 1


def test_the_numbers_go_where_output_says(tiny_run, tmp_path, capsys):
    before = sorted(tiny_run.iterdir())
    evaluate.main(["evaluate", f"--workdir={tiny_run}", f"--output={tmp_path / 'mine.json'}"])
    assert json.loads((tmp_path / "mine.json").read_text())["step"] == 44
    *_, last, _ = capsys.readouterr().out.splitlines()
    assert last.endswith(f"; written to {tmp_path / 'mine.json'}")
    assert sorted(tiny_run.iterdir()) == before


def test_a_result_that_cannot_be_written_is_code_1_after_the_table(tiny_run, tmp_path, capsys):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    (path / "evaluation.json").mkdir()
    with pytest.raises(SystemExit) as exit_info:
        evaluate.main(["evaluate", f"--workdir={path}"])
    assert exit_info.value.code == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {path / 'evaluation.json'}: cannot be written to")
    assert "--output" in said.err
    assert "predicted" in said.out
    assert said.out.splitlines()[-1].startswith("accuracy ")


def test_several_runs_are_measured_alone_and_together(tiny_run, tmp_path, capsys):
    other, file = tmp_path / "other", tmp_path / "together.json"
    other.mkdir()
    digits = data.load("digits")
    settings = Settings(dataset="digits", epochs=2, learning_rate=3e-3, seed=1)
    loop.fit(loop.resolve(settings, digits), digits, other, lambda line: None)
    flags = [f"--workdir={tiny_run}", f"--workdir={other}", f"--output={file}"]
    evaluate.main(["evaluate", *flags])
    out = capsys.readouterr().out.splitlines()
    runs = [trained.load(path) for path in (tiny_run, other)]
    probs = [
        scipy.special.softmax(np.float64(predict_logits(run, digits.test.images)), axis=1)
        for run in runs
    ]
    together = np.mean(probs, axis=0)
    accuracies = [np.mean(each.argmax(1) == digits.test.labels) for each in (*probs, together)]
    assert [line.split(": accuracy ")[1].split("%")[0] for line in (*out[:2], out[-2])] == [
        f"{100 * accuracy:.2f}" for accuracy in accuracies
    ]
    assert out[-2].startswith("2 networks together: ")
    assert out[-1] == f"next: lenet-jax report --workdir={tiny_run} --workdir={other}"
    written = json.loads(file.read_text())
    assert written["ensemble"]["accuracy"] == pytest.approx(accuracies[-1])
    likelihood = -np.mean(np.log(together[np.arange(360), digits.test.labels]))
    assert written["ensemble"]["loss"] == pytest.approx(likelihood, rel=1e-4)
    assert [each["accuracy"] for each in written["members"]] == pytest.approx(accuracies[:2])


def test_runs_of_other_classes_are_no_ensemble(tiny_run, capsys, monkeypatch):
    run = trained.load(tiny_run)
    config = run.config | {"data": run.config["data"] | {"classes": [*"abcdefghij"]}}
    runs = iter([run, dataclasses.replace(run, config=config)])
    monkeypatch.setattr(trained, "load_network", lambda settings: next(runs))
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["evaluate", f"--workdir={tiny_run}", f"--workdir={tiny_run}"])
    assert stop.value.code == 2
    assert "must have the same classes" in capsys.readouterr().err
