"""What a machine with a GPU or TPU would run, with tiny sizes on this one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch, the rival, is not installed")
import accelerator
import jax
from _patches import conv_relu_pool_patches
from _results import FOLDER, describe_machine, slug

from lenet_jax.core import ops


@pytest.mark.parametrize("shape", [(3, 32, 32, 1), (2, 14, 14, 6)], ids=str)
def test_patches_are_the_same_layer(shape):
    keys, normal = jax.random.split(jax.random.key(0), 4), jax.random.normal
    batch, size, _, channels = shape
    x, kernel = normal(keys[0], shape), normal(keys[1], (5, 5, channels, 4))
    bias = normal(keys[2], (4,))
    ours, back = jax.vjp(conv_relu_pool_patches, x, kernel, bias)
    theirs, their_back = jax.vjp(ops.conv_relu_pool_plain, x, kernel, bias)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    g = normal(keys[3], (batch, (size - 4) // 2, (size - 4) // 2, 4))
    for a, b in zip(back(g), their_back(g), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.slow
def test_all_of_it_runs_and_leaves_a_file_per_question(tmp_path, write_idx):
    images = np.random.default_rng(0).integers(0, 256, (640, 28, 28))
    for part, count in (("train", 640), ("t10k", 100)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images[:count])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    results = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, accelerator.__file__, "--smoke"],
        env=os.environ | {"LENET_JAX_TEST_DATA": str(tmp_path), "LENET_JAX_RESULTS": str(results)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    device = slug(describe_machine())
    found = {}
    for name in accelerator.SCRIPTS:
        found[name] = json.loads((results / f"{name}.{device}.json").read_text())
        assert (results / f"{name}.{device}.md").exists()
        assert found[name]["machine"]["command"] == f"python experiments/{name}.py --smoke"
    assert "ours with patches, in a scan" in found["throughput"]["training"]["batch 8"]
    assert {"ours, warm", "ours, cold", "PyTorch"} <= found["time_to_accuracy"]["runs"].keys()
    assert all(run["training"] > 0 for run in found["time_to_accuracy"]["runs"]["ours, warm"])
    assert found["populations"]["to target"]["networks"] == 2
    assert set(found["parity"]["gradients"]) == {"conv_relu_pool_plain", "conv_relu_pool_patches"}


def test_tiny_sizes_are_not_written_among_the_results(monkeypatch):
    monkeypatch.delenv("LENET_JAX_RESULTS", raising=False)
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--smoke"])
    with pytest.raises(SystemExit, match="LENET_JAX_RESULTS"):
        accelerator.main()
    assert FOLDER.name == "results"


def test_a_script_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    for name, code in (("one", "raise SystemExit(3)"), ("two", "")):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(accelerator, "__file__", str(tmp_path / "accelerator.py"))
    monkeypatch.setattr(accelerator, "SCRIPTS", {"one": [], "two": []})
    monkeypatch.setattr(sys, "argv", ["accelerator.py"])
    with pytest.raises(SystemExit, match=r"^failed: one$"):
        accelerator.main()
    assert "one: failed" in (out := capsys.readouterr().out)
    assert "two: done" in out
