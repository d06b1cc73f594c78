"""The command from outside: how it ends, and what it leaves."""

import errno
import json
import shlex
import subprocess
import sys

import pytest

from lenet_jax import cli, data, sweep
from lenet_jax.run import folder, grid
from lenet_jax.run.settings import Settings
from lenet_jax.viz import figures

SMALL = {"optimizers": "sgd,adam", "learning_rates": "1e-3,1e20", "seeds": 2, "epochs": 1}
FLAGS = [f"--{name}={value}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    path, digits = tmp_path_factory.mktemp("sweep"), data.load("digits")
    grid.run(grid.resolve(grid.SweepSettings(**SMALL, slice_size=4), digits), digits, path)
    return path


def test_the_table_has_the_accuracies_the_best_and_what_diverged():
    row = {"optimizer": "sgd", "seeds": 2, "diverged": 0, "at_edge": False}
    best = row | {"learning_rate": 0.2, "mean": 0.96, "sd": 0.0141, "best": True}
    lost = row | {"learning_rate": 0.4, "mean": None, "sd": None, "best": False, "diverged": 1}
    assert [line.split()[2:] for line in sweep.format_table([best, lost]).splitlines()[1:]] == [
        ["96.00", "±", "1.41", "%", "best"],
        ["1", "of", "2", "diverged"],
    ]


def rows_of(*means):
    common = {"optimizer": "sgd", "seeds": 4, "diverged": 0, "sd": 0.002, "at_edge": False}
    return [
        common | {"learning_rate": 2.0**-i, "mean": mean, "best": i == 0}
        for i, mean in enumerate(means)
    ]


def test_the_best_is_told_apart_by_two_standard_errors_of_seeds_and_held_out_images():
    # sqrt(0.002 ** 2 / 4 + 0.98 * 0.02 / 10,000) is 0.0017, so two of a difference are 0.0048.
    apart = sweep.format_verdict(rows_of(0.98, 0.974), 10_000).splitlines()
    assert apart == [
        "the next, sgd at 0.5 (97.40%), is worse by more than two standard errors",
        "best: sgd at 1, 98.00% of 10,000 held-out images",
    ]
    close, _ = sweep.format_verdict(rows_of(0.98, 0.977, 0.976, 0.9), 10_000).splitlines()
    said = "within two standard errors of the best: sgd at 0.5 (97.70%) and 1 more"
    assert close == said
    few, _ = sweep.format_verdict(rows_of(0.98, 0.974), 239).splitlines()
    assert few.startswith("within ")


def test_one_seed_tells_nothing_apart():
    rows = [row | {"seeds": 1, "sd": None} for row in rows_of(0.98, 0.5)]
    assert sweep.format_verdict(rows, 10_000).splitlines() == [
        "one seed per setting: the differences between seeds are unknown",
        "best: sgd at 1, 98.00% of 10,000 held-out images",
    ]


def test_what_diverged_is_named_and_one_setting_is_compared_with_none():
    row, lost = rows_of(0.98, None)
    said = sweep.format_verdict([row, lost | {"mean": None, "sd": None, "diverged": 1}], 239)
    best = "best: sgd at 1, 98.00% of 239 held-out images"
    assert said.splitlines() == ["diverged: sgd at 0.5", best]


def test_the_winners_command_trains_it_with_the_sweeps_other_settings(tmp_path):
    settings = grid.SweepSettings(
        dataset="mnist", epochs=2, augment=1.0, data_dir=f"{tmp_path}/a b", workdir="x"
    )
    command = sweep.train_command(settings, rows_of(0.9)[0] | {"learning_rate": 0.10000001})
    argv = shlex.split(command)
    assert argv[:2] == ["lenet-jax", "train"]
    parsed = cli.parse(Settings, argv[1:], "")
    assert parsed == Settings(
        optimizer="sgd",
        learning_rate=0.10000001,
        **{"dataset": "mnist", "epochs": 2, "augment": 1.0, "data_dir": f"{tmp_path}/a b"},
    )


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


def test_a_scheduler_file_that_is_not_there_leaves_no_folder(tmp_path, capsys):
    assert run_main("--scheduler=nofile", f"--workdir={tmp_path / 'new'}") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: --scheduler=nofile: is neither an address")
    assert captured.out == ""
    assert not any(tmp_path.iterdir())


def test_without_dask_a_sweep_by_it_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match="distributed"):  # `cli.run` makes a line of it
        sweep.main(["sweep", "--dataset=digits", "--workers=1", f"--workdir={tmp_path / 'new'}"])
    assert not any(tmp_path.iterdir())


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
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("digits, 8 networks of 1 epoch in 2 slices; ")
    assert lines[-2].startswith("best: adam at 0.001, ")
    assert lines[-2].endswith(f"at the edge of the grid: try rates beyond it; {path}/sweep.png")
    flags = "--optimizer=adam --learning_rate=0.001 --dataset=digits --epochs=1"
    assert lines[-1] == f"next: lenet-jax train {flags}"
    assert "sgd: 8 of 8 networks are trained\n" in ended.stdout  # also where there is no bar
    assert (path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((path / "sweep.json").read_text())["rows"]
    assert len(rows) == 4
    assert folder.read_config(path)["settings"]["seeds"] == 2
