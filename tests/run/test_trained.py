import os
import shutil

import numpy as np
import pytest

from lenet_jax import cli, evaluate, export, predict, report
from lenet_jax.run import checkpoint, folder, trained


def test_a_run_is_its_latest_checkpoint_with_what_it_says_of_itself(tiny_run):
    run = trained.load(tiny_run)
    latest = checkpoint.steps(tiny_run / folder.CHECKPOINTS)[-1]
    like = {"params": run.params}
    stored = checkpoint.restore(tiny_run / folder.CHECKPOINTS, latest, like).tree["params"]
    assert run.step == latest
    np.testing.assert_array_equal(run.params["fc3"]["bias"], stored["fc3"]["bias"])
    assert run.config == folder.read_config(tiny_run)
    assert [record["epoch"] for record in run.metrics] == [1, 2]
    assert run.normalization == {name: run.config["data"][name] for name in ("mean", "std")}


def test_a_damaged_latest_checkpoint_is_told_and_the_one_before_is_read(tiny_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(tiny_run, path)
    older, latest = checkpoint.steps(path / folder.CHECKPOINTS)[-2:]
    (path / folder.CHECKPOINTS / f"step_{latest:08d}" / checkpoint.SUMS).write_text("other\n")
    lines = []
    assert trained.load(path, lines.append).step == older
    assert len(lines) == 1
    assert str(latest) in lines[0]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (None, "--workdir is missing"),
        ("nowhere", "--workdir=nowhere: there is no such folder"),
        (".", "--workdir=.: no checkpoint there"),
        ("~nobody-at-all/run", "--workdir=~nobody-at-all/run: there is no such folder"),
        ("n" * 300, f"--workdir={'n' * 300}: cannot be read .File name too long"),
    ],
)
def test_a_folder_without_a_run_is_refused(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{words}"):
        trained.load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0)
    try:
        with pytest.raises(ValueError, match=r"^--workdir=.*cannot be read \(Permission denied"):
            trained.load(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("command", "rest"),
    [(evaluate, []), (predict, ["a.png"]), (report, []), (export, ["--format=html"])],
)
def test_the_commands_that_use_a_run_keep_their_compiled_functions(command, rest, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: asked.append(True))
    with pytest.raises(SystemExit):
        command.main(["command", "--workdir=nowhere", *rest])
    assert asked
