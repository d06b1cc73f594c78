import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lenet_jax import cli, data, evaluate, export, predict, report
from lenet_jax.core import epoch, losses, metrics
from lenet_jax.core.model import LeNet
from lenet_jax.run import checkpoint, folder, log, loop, trained
from lenet_jax.run.settings import Settings


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


OLD = Path(__file__).parents[1] / "fixtures" / "run-80f240e"  # of one epoch, sgd


def test_a_run_of_the_version_before_is_read():
    run = trained.load(OLD, pytest.fail)
    test = data.load("digits").test._replace(**run.normalization)
    logits = epoch.predict(LeNet(), run.params, test)
    (record,) = run.metrics
    assert (run.step, record["epoch"]) == (22, 1)
    assert float(metrics.accuracy(logits, test.labels)) == pytest.approx(record["test_accuracy"])
    assert float(losses.cross_entropy(logits, test.labels)) == pytest.approx(record["test_loss"])


def test_a_run_of_the_version_before_is_continued(tmp_path):
    path, lines = Path(shutil.copytree(OLD, tmp_path / "run")), []
    flags = Settings(dataset="digits", optimizer="sgd", schedule="constant", epochs=2, keep=1)
    dataset = data.load("digits")
    loop.fit(loop.resolve(flags, dataset), dataset, path, lines.append)
    assert lines[0].startswith("note: since the run began, ")
    assert lines[1] == f"found step 22 of the run in {path}"
    old, new = trained.load(path, pytest.fail).metrics
    assert [old] == trained.load(OLD, pytest.fail).metrics
    assert new["epoch"] == 2
    assert new["train_loss"] < old["train_loss"]
    assert new["test_accuracy"] > old["test_accuracy"]
    assert checkpoint.steps(path / folder.CHECKPOINTS) == [44]
    assert len(list((path / log.EVENTS).iterdir())) == 2


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


def test_a_run_in_a_folder_of_no_utf8_is_refused_and_not_called_damaged(tiny_run, tmp_path):
    path = shutil.copytree(tiny_run, tmp_path / os.fsdecode(b"a\xff"))
    with pytest.raises(ValueError, match=r"^--workdir=.*is not UTF-8"):
        trained.load(path, pytest.fail)


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
