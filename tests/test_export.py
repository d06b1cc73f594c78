"""The command from outside: what it writes, what it says, how it ends."""

import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from lenet_jax import data, export
from lenet_jax.interop import web
from lenet_jax.run import trained
from lenet_jax.run.measure import predict_logits

torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
from tutorial_net import Net

PIXELS = data.load("digits").test.images[:100]


@pytest.fixture
def run_path(tiny_run, tmp_path) -> Path:
    """A copy of the tiny run, to write into."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def wanted(tiny_run) -> np.ndarray:
    """Our logits [100, 10]."""
    return np.asarray(predict_logits(trained.load(tiny_run), PIXELS))


def command(*flags: object) -> None:
    export.main(["export", *map(str, flags)])


def logits_in_torch(file: Path) -> np.ndarray:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, "pt") as opened:
        mean, std = (float(opened.metadata()[name]) for name in ("mean", "std"))
    net = Net()
    net.load_state_dict(load_file(file), strict=True)
    images = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()).float()
    with torch.no_grad():
        return net((images / 255 - mean) / std).numpy()


def logits_in_stablehlo(file: Path) -> np.ndarray:
    return jax.export.deserialize(bytearray(file.read_bytes())).call(PIXELS)


def logits_in_onnxruntime(file: Path) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": PIXELS})[0]


@pytest.mark.parametrize(
    ("form", "suffix", "logits_in"),
    [
        ("torch", "safetensors", logits_in_torch),
        ("stablehlo", "stablehlo", logits_in_stablehlo),
        ("onnx", "onnx", logits_in_onnxruntime),
    ],
)
def test_each_format_gives_the_runs_logits_elsewhere(
    form, suffix, logits_in, run_path, wanted, capsys
):
    command(f"--workdir={run_path}", f"--format={form}")
    file = run_path / "export" / f"lenet.{suffix}"
    np.testing.assert_allclose(logits_in(file), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    said, how = capsys.readouterr().out.splitlines()
    assert said.startswith(f"step 44 of {run_path} is in {file} (")
    assert str(file) in how


def test_html_is_the_page_of_the_run(run_path, capsys):
    command(f"--workdir={run_path}", "--format=html")
    file = run_path / "export" / "lenet.html"
    run = trained.load(run_path)
    about = (
        "LeNet of 61,706 parameters, trained on digits for 44 steps, "
        f"test accuracy {run.metrics[-1]['test_accuracy']:.2%}."
    )
    assert file.read_bytes() == web.page(
        run.params, **run.normalization, classes=tuple("0123456789"), dataset="digits", about=about
    )
    assert capsys.readouterr().out.endswith("open it in a browser\n")


def test_output_names_the_file_and_its_folder_is_made(tiny_run, tmp_path):
    file = tmp_path / "new" / "net.safetensors"
    command(f"--workdir={tiny_run}", "--format=torch", f"--output={file}")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert not (tiny_run / "export").exists()


def test_without_a_run_it_writes_the_packages_network_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command("--format=html")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("note: this is the package's own network, trained on mnist")
    page = (tmp_path / "lenet.html").read_text()
    assert re.search(r"trained on mnist for [\d,]+ steps, test accuracy 99\.\d\d%", page)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--format is missing: choose one of torch, "),
        (["--format=tflite"], "--format=tflite: choose one of torch, "),
        (["--format=torch", "--workdir=nowhere"], "--workdir=nowhere: "),
        (["--format=torch", "--workdir=RUN", "--output=~nobody-at-all/a"], "--output=~nobody-at"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_and_code_2(flags, named, tiny_run, capsys):
    with pytest.raises(SystemExit) as ended:
        command(*(flag.replace("RUN", str(tiny_run)) for flag in flags))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {named}")


def test_a_file_that_cannot_be_written_is_code_1_and_leaves_nothing(tiny_run, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    with pytest.raises(SystemExit) as ended:
        command(f"--workdir={tiny_run}", "--format=torch", f"--output={tmp_path / 'taken'}")
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(
        f"error: --output={tmp_path / 'taken'}: cannot be wri"
    )
    assert os.listdir(tmp_path) == ["taken"]


def test_a_name_that_is_too_long_is_code_1_with_the_flag(tiny_run, tmp_path, capsys):
    file = tmp_path / ("n" * 300)
    with pytest.raises(SystemExit) as ended:
        command(f"--workdir={tiny_run}", "--format=torch", f"--output={file}")
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: --output={file}: cannot be written to (")
