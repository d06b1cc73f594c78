"""The command from outside: how it ends, and what it leaves."""

import errno
import json
import subprocess
import sys

import pytest

from lenet_jax import data, sweep
from lenet_jax.run import folder, grid
from lenet_jax.viz import figures

SMALL = {"optimizers": "sgd,adam", "learning_rates": "1e-3,1e20", "seeds": 2, "epochs": 1}
FLAGS = [f"--{name}={value}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    path, digits = tmp_path_factory.mktemp("sweep"), data.load("digits")
    grid.run(grid.resolve(grid.SweepSettings(**SMALL, slice_size=4), digits), digits, path)
    return path


def test_the_table_has_the_accuracies_the_best_and_what_diverged():
    row = {"optimizer": "sgd", "seeds": 2, "diverged": 0}
    best = row | {"learning_rate": 0.2, "mean": 0.96, "sd": 0.0141, "best": True}
    lost = row | {"learning_rate": 0.4, "mean": None, "sd": None, "best": False, "diverged": 1}
    assert [line.split()[2:] for line in sweep.format_table([best, lost]).splitlines()[1:]] == [
        ["96.00", "±", "1.41", "%", "best"],
        ["1", "of", "2", "diverged"],
    ]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--optimizers=sgd,adm", "--optimizers=adm: choose from sgd"),
        ("--learning_rates=0.1,x", "--learning_rates=0.1,x: must be numbers above 0"),
        ("--learning_rates=-1", "--learning_rates=-1: must be numbers above 0"),
        ("--seeds=0", "--seeds=0: must be from 1 to 10000"),
        ("--seeds=99999999999", "--seeds=99999999999: must be from 1 to 10000"),
        ("--augment=-1", "--augment=-1.0: must be"),
    ],
)
def test_a_bad_flag_is_one_line(flag, words, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.main(["sweep", "--dataset=digits", flag])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")


def run_main(*flags):
    with pytest.raises(SystemExit) as stop:
        sweep.main(["sweep", "--dataset=digits", *flags])
    return stop.value.code


def test_ctrl_c_before_there_is_a_folder_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupted)
    assert run_main() == 130
    assert capsys.readouterr().out == "stopped before training began\n"


def test_a_disk_that_is_full_at_the_end_is_one_line(swept, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figures, "sweep", full)
    assert run_main(f"--workdir={swept}", *FLAGS) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_the_command_ends_with_its_best_setting_and_leaves_table_and_picture(swept):
    path = swept
    for file in (path / "slices").glob("sgd-*"):
        file.unlink()
    ended = subprocess.run(
        [sys.executable, "-m", "lenet_jax.sweep", "--dataset=digits", *FLAGS, f"--workdir={path}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].startswith("best: adam at 0.001, ")
    assert "sgd: 8 of 8 networks are trained\n" in ended.stdout  # also where there is no bar
    assert (path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((path / "sweep.json").read_text())["rows"]
    assert len(rows) == 4
    assert folder.read_config(path)["settings"]["seeds"] == 2
