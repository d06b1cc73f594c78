"""The exported programs, run by what they were made for, without this package."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax.core.epoch import predict
from lenet_jax.core.model import IMAGE_SHAPE, LeNet
from lenet_jax.interop import programs

SCALING = {"mean": 0.1307, "std": 0.3081}
SIZES = (1, 3, 70)
PIXELS = np.random.default_rng(0).integers(0, 256, (max(SIZES), *IMAGE_SHAPE)).astype(np.uint8)


@pytest.fixture(scope="module")
def params():
    return jax.jit(LeNet().init)(jax.random.key(3), jnp.zeros((1, *IMAGE_SHAPE)))["params"]


@pytest.fixture(scope="module")
def wanted(params) -> np.ndarray:
    """Logits [70, 10]."""
    return np.asarray(predict(LeNet(), params, jnp.asarray(PIXELS), **SCALING))


def assert_equal_up_to_rounding(logits: np.ndarray, wanted: np.ndarray) -> None:
    """Within 20 roundings of the largest logit, as against PyTorch."""
    assert logits.shape == wanted.shape
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=20 * 2**-24 * np.abs(wanted).max())


RUN_WITH_JAX_ALONE = f"""
import sys
sys.modules["lenet_jax"] = sys.modules["flax"] = None  # importing them fails
import jax, numpy
program = jax.export.deserialize(open(sys.argv[1], "rb").read())
pixels = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], *(program.call(pixels[:size]) for size in {SIZES}))
"""


def test_stablehlo_gives_our_logits_without_this_package_at_any_batch_size(
    params, wanted, tmp_path
):
    program, pixels, logits = (tmp_path / name for name in ("program", "pixels.npy", "logits.npz"))
    program.write_bytes(programs.to_stablehlo(params, **SCALING))
    np.save(pixels, PIXELS)
    command = [sys.executable, "-I", "-c", RUN_WITH_JAX_ALONE, program, pixels, logits]
    subprocess.run(command, check=True, cwd=tmp_path)
    for size, got in zip(SIZES, np.load(logits).values(), strict=True):
        assert_equal_up_to_rounding(got, wanted[:size])


def test_stablehlo_is_for_every_platform_and_takes_nothing_but_pixels(params):
    program = jax.export.deserialize(bytearray(programs.to_stablehlo(params, **SCALING)))
    assert program.platforms == programs.PLATFORMS
    (pixels,) = program.in_avals
    assert (str(pixels.shape), pixels.dtype) == ("(batch, 32, 32, 1)", np.uint8)


@pytest.fixture(scope="module")
def onnx_model(params) -> bytes:
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    return programs.to_onnx(params, **SCALING)


@pytest.mark.parametrize("size", SIZES)
def test_onnx_gives_our_logits_at_any_batch_size(onnx_model, wanted, size):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(onnx_model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": PIXELS[:size]})
    assert_equal_up_to_rounding(logits, wanted[:size])


def test_onnx_means_the_same_to_its_reference_implementation(onnx_model, wanted):
    import onnx
    from onnx.reference import ReferenceEvaluator

    (logits,) = ReferenceEvaluator(onnx.load_from_string(onnx_model)).run(
        None, {"pixels": PIXELS[:3]}
    )
    assert_equal_up_to_rounding(logits, wanted[:3])


def test_the_same_run_gives_the_same_bytes(params, onnx_model):
    assert programs.to_onnx(params, **SCALING) == onnx_model
