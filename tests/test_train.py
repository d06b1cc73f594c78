"""The command from outside: what it says, what it writes, how it ends."""

import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lenet_jax import cli, data, train
from lenet_jax.core.model import LeNet, summary
from lenet_jax.data.registry import INFO
from lenet_jax.run import folder, log, loop
from lenet_jax.run.settings import Settings

DIGITS = data.load("digits")


def stop(path: Path) -> None:
    """Leaves a run there that was stopped at its first step."""
    settings = Settings(dataset="digits", epochs=2, batch_size=256, learning_rate=3e-3)
    with pytest.raises(cli.Interrupted):
        loop.fit(settings, DIGITS, path, lambda line: None, signals=[signal.SIGTERM])


def command(*flags: str) -> list[str]:
    return ["train", "--nocompilation_cache", *flags]


def test_the_command_trains_and_writes_its_config(tmp_path, capsys):
    train.main(command("--dataset=digits", "--epochs=3", f"--workdir={tmp_path / 'new' / 'run'}"))
    out = capsys.readouterr().out
    for word in ("device", "data", "network", "optimizer", "1,437", "61,706", "epoch 1/3"):
        assert word in out
    config = json.loads((tmp_path / "new/run/config.json").read_text())
    assert config["settings"]["learning_rate"] == 2e-3  # resolved, not null
    assert config["data"]["name"] == "digits"
    assert config["versions"]["jax"] == jax.__version__


def test_the_header_has_what_is_not_default_and_the_devices(tmp_path, capsys):
    flags = ["--epochs=1", "--optimizer=nesterov", "--momentum=0.5", "--augment=1", "--keep=1"]
    train.main(command("--dataset=digits", "--batch_size=256", *flags, f"--workdir={tmp_path}"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "device     cpu, 2 devices share each batch"  # see conftest.py
    assert lines[4] == "flags      --augment=1.0 --momentum=0.5 --keep=1 --compilation_cache=False"
    settings = loop.resolve(Settings(dataset="digits", learning_rate=3e-3, batch_size=32), DIGITS)
    state = loop.create_state(settings, LeNet(), 1)
    assert "flags" not in train.header(settings, DIGITS, state)
    assert train.header(settings, DIGITS, state).startswith("device     cpu\n")


def test_a_run_goes_on_with_its_own_data_and_other_settings_are_named_before_them(
    tmp_path, capsys, monkeypatch
):
    data_dir, path = tmp_path / "idx", tmp_path / "run"
    data_dir.mkdir()
    write_idx(data_dir)
    flags = ["--batch_size=2", f"--workdir={path}"]
    train.main(command("--dataset=mnist", f"--data_dir={data_dir}", "--epochs=1", *flags))
    capsys.readouterr()
    train.main(command("--epochs=1", *flags))
    assert "is already complete" in capsys.readouterr().out
    shutil.rmtree(data_dir)
    assert "--augment is 1.0 here but" in refused(capsys, "--augment=1", *flags)
    assert f"--data_dir={data_dir}: cannot be read" in refused(capsys, *flags)


def test_the_summary_is_of_the_data_sets_network_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(command("--summary", "--dataset=cifar10"))
    assert capsys.readouterr().out == (
        f"LeNet for 10 classes and 3 channels (cifar10)\n{summary(LeNet(in_channels=3))}\n"
    )
    assert not any(tmp_path.iterdir())
    stop(tmp_path)
    config = folder.read_config(tmp_path)
    config["settings"]["dataset"] = config["data"]["name"] = "emnist_letters"
    folder.write_config(tmp_path, config)
    train.main(command("--summary", "--batch_size=256", "--learning_rate=3e-3", "--workdir=."))
    assert capsys.readouterr().out.startswith("LeNet for 26 classes and 1 channel (emnist_letters)")


def test_a_file_of_parameters_that_is_not_there_leaves_no_folder(tmp_path, capsys):
    path = tmp_path / "new"
    said = refused(capsys, "--dataset=digits", "--init_from=nope.pt", f"--workdir={path}")
    assert said.startswith("error: --init_from=nope.pt: ")
    assert not path.exists()


def test_without_dataset_a_run_goes_on_with_its_own_and_else_it_is_chosen(tmp_path, monkeypatch):
    asked, load = [], data.load

    def offline(name, *args, **kwargs):
        asked.append(name)
        return dataclasses.replace(load("digits"), note="" if name else "using digits, because")

    monkeypatch.setattr(data, "load", offline)
    stop(tmp_path)
    for flags in ([f"--workdir={tmp_path}"], [f"--workdir={tmp_path}", "--noresume"], []):
        monkeypatch.chdir(tmp_path)
        train.main(command("--batch_size=256", "--learning_rate=3e-3", "--epochs=2", *flags))
    assert asked == ["digits", None, None]


def test_why_it_is_digits_is_said_before_a_run_is_refused(tmp_path, capsys, monkeypatch):
    stop(tmp_path)
    (tmp_path / folder.CONFIG).unlink()  # the checkpoint knows, but not yet which data to load
    noted = dataclasses.replace(DIGITS, note="using digits, because")
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: noted)
    with pytest.raises(SystemExit):
        train.main(command(f"--workdir={tmp_path}", "--seed=1"))
    assert capsys.readouterr().out.startswith("using digits, because")


ENDS = {
    "FloatingPointError": (FloatingPointError("diverged"), 1, "error: diverged\n"),
    "OSError": (OSError("disk full"), 1, "error: disk full\n"),
    "Ctrl-C": (cli.Interrupted(signal.SIGINT, "saved"), 130, ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_run_ends_is_one_line_and_a_code(case, tmp_path, capsys, monkeypatch):
    error, code, err = ENDS[case]
    monkeypatch.setattr(loop, "fit", lambda *args: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as exit_info:
        train.main(command("--dataset=digits", f"--workdir={tmp_path}"))
    assert exit_info.value.code == code
    captured = capsys.readouterr()
    assert captured.err == err
    assert err or captured.out.splitlines()[-1] == "stopped by SIGINT: saved"


def test_ctrl_c_before_training_is_one_line_and_130(capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as exit_info:
        train.main(command())
    assert exit_info.value.code == 130
    assert capsys.readouterr() == ("stopped before training began\n", "")


# --- what cannot be ---


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
}
BAD_FLAGS = {
    "--optimizer=adagrad": "sgd, nesterov, adam, adamw, rmsprop",
    "--dataset=imagenet": "mnist, fashion_mnist, kmnist, emnist_letters, ",
    "--learning_rate=0": "--learning_rate",
    "--learning_rate=nan": "--learning_rate",
    "--learning_rate=fast": "learning_rate",
    "--batch_size=0": "--batch_size",
    "--batch_size=1438": "1437",
    "--batch_size=1e3": "batch_size",
    "--epochs=0": "--epochs",
    "--keep=0": "--keep",
    "--checkpoint_every_steps=-1": "--checkpoint_every_steps",
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


def test_folders_whose_names_are_not_utf8_are_used(tmp_path):
    strange = tmp_path / os.fsdecode(b"a\xff")
    strange.mkdir()
    flags = ["--dataset=digits", f"--data_dir={strange}", f"--workdir={strange}", "--epochs=1"]
    argv = [sys.executable, "-m", "lenet_jax.train", *flags]
    said = [subprocess.check_output(argv, text=True).splitlines() for _ in range(2)]
    assert {lines[-2] for lines in said} == {f"note: {INFO['digits'].advice}"}
    following = f"lenet-jax report --workdir='{tmp_path}/a\\udcff'"
    assert {lines[-1].partition("): ")[2] for lines in said} == {following}
    lasts = [lines[-3] for lines in said]
    assert lasts[0].endswith(f"the run is in {tmp_path}/a\\udcff")
    assert lasts[1].startswith(f"the run in {tmp_path}/a\\udcff is already complete: test accuracy")


def test_a_folder_at_which_another_run_works_is_refused(tmp_path, capsys):
    with folder.locked(tmp_path):
        assert "a run is at work there" in refused(
            capsys, "--dataset=digits", f"--workdir={tmp_path}"
        )


def test_help_names_every_flag_with_its_choices(capsys):
    with pytest.raises(SystemExit) as exit_info:
        train.main(command("--help"))
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(Settings):
        assert f"{field.name}" in out
    assert "{sgd, nesterov, adam, adamw, rmsprop}" in out
    assert "NPROC" in out


def test_what_a_run_does_not_need_is_not_imported(tmp_path):
    code = (
        "import sys, lenet_jax.train; heavy = {'matplotlib', 'tensorflow_datasets', 'sklearn', "
        "'PIL', 'torch', 'tensorflow', 'scipy', 'tensorboardX'}; "
        "print(sorted(heavy & set(sys.modules)))"
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
    record = json.loads((tmp_path / log.METRICS).read_text())
    assert record["test_accuracy"] > 0.95
    assert record["step"] == 937
