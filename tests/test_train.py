"""The command from outside: what it says, what it writes, how it ends."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lenet_jax import data, train, workdir
from lenet_jax.settings import Settings

FIELDS = {
    *("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("seconds", "images_per_second"),
}


def command(*flags: str) -> list[str]:
    return ["train", "--nocompilation_cache", *flags]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run on the digits of 3 epochs: its workdir and the lines that it said."""
    path = tmp_path_factory.mktemp("run")
    lines: list[str] = []
    settings = Settings(dataset="digits", epochs=3, workdir=str(path), learning_rate=3e-3)
    dataset = data.load("digits")
    train.fit(train.resolve(settings, dataset), dataset, path, lines.append)
    return path, lines


def test_an_epoch_is_a_line_of_metrics_with_the_fixed_names(run):
    path, _ = run
    records = [json.loads(line) for line in (path / workdir.METRICS).read_text().splitlines()]
    assert [record.keys() for record in records] == [FIELDS] * 3
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 22), (2, 44), (3, 66)]


def test_it_learns(run):
    path, _ = run
    records = [json.loads(line) for line in (path / workdir.METRICS).read_text().splitlines()]
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 2
    assert records[-1]["test_accuracy"] > 0.7  # chance is 0.1


def test_the_last_line_has_accuracy_time_speed_and_workdir(run):
    path, lines = run
    assert len(lines) == 4
    assert lines[0].startswith("epoch 1/3 ")
    for part in ("test accuracy ", "3 epochs", " s, ", "images/s", str(path)):
        assert part in lines[-1]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    dataset = data.load("digits")

    def losses(seed: int, name: str) -> list[tuple[float, float]]:
        path = tmp_path / name
        path.mkdir()
        settings = Settings(dataset="digits", epochs=1, seed=seed)
        train.fit(train.resolve(settings, dataset), dataset, path, lambda line: None)
        records = [json.loads(line) for line in (path / workdir.METRICS).read_text().splitlines()]
        return [(record["train_loss"], record["test_loss"]) for record in records]

    assert losses(1, "a") == losses(1, "b")
    assert losses(1, "c") != losses(2, "d")


def test_the_command_trains_and_writes_its_config(tmp_path, capsys):
    train.main(command("--dataset=digits", "--epochs=1", f"--workdir={tmp_path / 'new' / 'run'}"))
    out = capsys.readouterr().out
    for word in ("device", "data", "network", "optimizer", "1,437", "61,706", "epoch 1/1"):
        assert word in out
    config = json.loads((tmp_path / "new/run/config.json").read_text())
    assert config["settings"]["learning_rate"] == 1e-3  # resolved, not null
    assert config["data"]["name"] == "digits"
    assert config["versions"]["jax"] == jax.__version__


def write_idx(folder: Path, **changes: bytes) -> Path:
    """Four small IDX files of noise, some of them replaced."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 28, 28)).astype(np.uint8)
    header = bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 28, 0, 0, 0, 28])
    files = {}
    for split in ("train", "t10k"):
        files[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(header + images.tobytes())
        files[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(
            bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 3])
        )
    for name, content in {**files, **changes}.items():
        (folder / name).write_bytes(content)
    return folder


LABELS = "train-labels-idx1-ubyte.gz"
IMAGES = "train-images-idx3-ubyte.gz"
GOOD_LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 4])
BAD_FILES = {
    "truncated gz": (LABELS, gzip.compress(GOOD_LABELS + bytes(4))[:-9]),
    "wrong magic": (LABELS, gzip.compress(b"\0\0\x0b\1" + bytes(8))),
    "counts that disagree": (LABELS, gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2]))),
    "more declared than held": (IMAGES, gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12)),
    "label out of range": (LABELS, gzip.compress(GOOD_LABELS + bytes([0, 1, 2, 10]))),
}
BAD_FLAGS = {
    "--optimizer=adagrad": "sgd, nesterov, adam, adamw, rmsprop",
    "--dataset=cifar10": "mnist, fashion_mnist, kmnist, digits",
    "--learning_rate=0": "--learning_rate",
    "--learning_rate=nan": "--learning_rate",
    "--learning_rate=fast": "learning_rate",
    "--batch_size=0": "--batch_size",
    "--batch_size=1438": "1437",
    "--batch_size=1e3": "batch_size",
    "--epochs=0": "--epochs",
    "--data_dir=/does/not/exist": "--data_dir=/does/not/exist",
    "--workdir=/dev/null/run": "--workdir=/dev/null/run",
    "--optimiser=adam": "optimizer",
    "adam": "--name=value",
    "--flagfile=/does/not/exist": "/does/not/exist",
}


def refused(capsys, *flags: str) -> str:
    """The one line that a refused command leaves on stderr."""
    with pytest.raises(SystemExit) as exit_info:
        train.main(command(*flags))
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_a_bad_flag_is_one_line_and_code_2(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [flag] if "dataset" in flag else ["--dataset=digits", flag]
    assert BAD_FLAGS[flag] in refused(capsys, *flags)
    assert not any(tmp_path.iterdir())  # nothing half-written


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line_and_code_2(case, capsys, tmp_path):
    name, content = BAD_FILES[case]
    folder = tmp_path / "idx"
    folder.mkdir()
    write_idx(folder, **{name: content})
    flags = ("--dataset=mnist", f"--data_dir={folder}", f"--workdir={tmp_path / 'run'}")
    assert name in refused(capsys, *flags)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused(run, capsys):
    path, _ = run
    (path / workdir.CONFIG).touch()
    assert "already holds a run" in refused(capsys, "--dataset=digits", f"--workdir={path}")


def test_help_names_every_flag_with_its_choices(capsys):
    with pytest.raises(SystemExit) as exit_info:
        train.main(command("--help"))
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    for field in train.dataclasses.fields(Settings):
        assert f"{field.name}" in out
    assert "{sgd, nesterov, adam, adamw, rmsprop}" in out
    assert "NPROC" in out


def test_what_a_run_does_not_need_is_not_imported(tmp_path):
    code = (
        "import sys, lenet_jax.train; heavy = {'matplotlib', 'tensorflow_datasets', 'sklearn', "
        "'orbax.checkpoint', 'PIL', 'torch', 'tensorflow'}; print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_an_epoch_of_mnist_passes_95_percent(mnist_dir, tmp_path, capsys):
    train.main(
        command("--dataset=mnist", f"--data_dir={mnist_dir}", "--epochs=1", f"--workdir={tmp_path}")
    )
    record = json.loads((tmp_path / workdir.METRICS).read_text())
    assert record["test_accuracy"] > 0.95
    assert record["step"] == 937
