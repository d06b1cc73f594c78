import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lenet_jax import cli, data, evaluate, export, predict, report
from lenet_jax.interop import pytorch
from lenet_jax.run import checkpoint, folder, trained


def test_a_run_is_its_latest_checkpoint_with_what_it_says_of_itself(tiny_run):
    run = trained.load(tiny_run)
    latest = checkpoint.steps(tiny_run / folder.CHECKPOINTS)[-1]
    like = lambda note: {"params": run.params}
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
    checkpoint.file_of(path / folder.CHECKPOINTS, latest).write_text("other\n")
    lines = []
    assert trained.load(path, lines.append).step == older
    assert len(lines) == 1
    assert str(latest) in lines[0]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "--workdir=nowhere: there is no such folder"),
        (".", "--workdir=.: no checkpoint there"),
        ("~nobody-at-all/run", "--workdir=~nobody-at-all/run: there is no such home folder"),
        ("n" * 300, f"--workdir={'n' * 300}: cannot be read .*File name too long"),
    ],
)
def test_a_folder_without_a_run_is_refused(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{words}"):
        trained.load(path)


def test_a_run_in_a_folder_whose_name_is_not_utf8_is_read(tiny_run, tmp_path):
    path = shutil.copytree(tiny_run, tmp_path / os.fsdecode(b"a\xff"))
    assert trained.load(path, pytest.fail).step == 44


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
    monkeypatch.setattr(cli, "start_jax", lambda: asked.append(True))
    with pytest.raises(SystemExit):
        command.main(["command", "--workdir=nowhere", *rest])
    assert asked


# --- the parameters in a file instead of a run: --init_from ---


@pytest.fixture
def ours(tiny_run, tmp_path) -> Path:
    """The tiny run's parameters as `export` writes them."""
    run, file = trained.load(tiny_run), tmp_path / "lenet.safetensors"
    file.write_bytes(pytorch.to_safetensors(run.params, **run.normalization, classes=run.classes))
    return file


@pytest.fixture
def theirs(ours, tmp_path) -> Path:
    """The same as people save it, with nothing but the arrays."""
    from safetensors.numpy import load_file, save_file

    save_file({f"module.{k}": v for k, v in load_file(ours).items()}, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def network(file, log, **settings):
    return trained.load_network(trained.NetworkSettings(init_from=str(file), **settings), log)


def test_a_file_of_ours_is_the_runs_network(ours, tiny_run):
    run, found = trained.load(tiny_run), network(ours, pytest.fail, dataset="digits")
    jax.tree.map(np.testing.assert_array_equal, found.params, run.params)
    assert found.normalization == pytest.approx(run.normalization, rel=1e-15)
    assert (found.step, found.metrics, str(found)) == (None, [], str(ours))


def test_a_file_that_does_not_say_its_normalization_has_the_data_sets_with_a_line(theirs):
    lines = []
    found = network(theirs, lines.append, dataset="kmnist")
    assert found.normalization == {"mean": 0.1918, "std": 0.3483}
    assert "unwrapped the prefix module." in lines[0]
    assert "so kmnist's mean 0.1918 and std 0.3483 are used" in lines[1]
    assert network(theirs, lines.append).config["data"]["name"] == "mnist"
    found = network(theirs, lines.append, mean="0", std="1")
    assert found.normalization == {"mean": 0.0, "std": 1.0}
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workdir": "a", "init_from": "b.pt"}, "--init_from and --workdir name two networks"),
        ({"workdir": "a", "dataset": "mnist"}, "--dataset goes with --init_from"),
        ({"workdir": "a", "mean": "0", "std": "1"}, "--mean goes with --init_from"),
        ({"init_from": "b.pt", "mean": "0.5"}, "--mean and --std go together"),
        ({"init_from": "b.pt", "mean": "0.5", "std": "0"}, "--mean=0.5 and --std=0: must be"),
        ({"init_from": "b.pt", "mean": "0.5,1", "std": "1"}, "--mean=0.5,1 and --std=1: must be"),
        ({"init_from": "b.pt", "mean": "a", "std": "1"}, "--mean=a and --std=1: must be"),
        ({"init_from": "b.pt", "dataset": "minst"}, "--dataset=minst: choose one of"),
    ],
)
def test_flags_that_contradict_one_another_are_refused(settings, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        trained.NetworkSettings(**settings)


def test_a_file_is_measured_as_its_run(ours, tiny_run, tmp_path, capsys):
    flags = [f"--init_from={ours}", "--dataset=digits"]
    evaluate.main(["evaluate", *flags])
    last = trained.load(tiny_run).metrics[-1]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"accuracy {last['test_accuracy']:.2%}, loss {last['test_loss']:.4f} (")
    assert line.endswith("%")
    evaluate.main(["evaluate", *flags, f"--output={tmp_path / 'result.json'}"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["step"], result["note"]) == (None, "")


def test_a_file_predicts_and_is_exported_as_its_run(ours, tiny_run, tmp_path, capsys):
    picture = tmp_path / "7.png"
    Image.fromarray(data.load("digits").test.images[0, :, :, 0]).save(picture)
    said, written = [], []
    for flags in ([f"--init_from={ours}", "--dataset=digits"], [f"--workdir={tiny_run}"]):
        predict.main(["predict", *flags, "--json", str(picture)])
        said.append(capsys.readouterr())
        file = tmp_path / f"{len(said)}.onnx"
        export.main(["export", *flags, "--format=onnx", f"--output={file}"])
        written.append(file.read_bytes())
        capsys.readouterr()
    assert said[0] == said[1]
    assert written[0] == written[1]
    page = tmp_path / "page.html"
    export.main(["export", f"--init_from={ours}", "--format=html", f"--output={page}"])
    assert "those of lenet.safetensors" in page.read_text()
    with pytest.raises(SystemExit):
        export.main(["export", f"--init_from={ours}", "--format=html"])
    assert capsys.readouterr().err.startswith("error: --output is missing")
