"""The ONNX model, run by what it was made for, without this package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax.core.epoch import predict
from lenet_jax.core.model import LeNet
from lenet_jax.core.split import Split
from lenet_jax.interop import onnx_model

pytest.importorskip("onnx", reason="the package onnx is not installed")

NORMALIZATION = {"mean": 0.1307, "std": 0.3081}
SIZES = (1, 3, 70)
PIXELS = np.random.default_rng(0).integers(0, 256, (max(SIZES), 32, 32, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def params():
    return jax.jit(LeNet().init)(jax.random.key(3), jnp.zeros((1, 32, 32, 1)))["params"]


@pytest.fixture(scope="module")
def content(params) -> bytes:
    return onnx_model.to_onnx(params, **NORMALIZATION)


@pytest.fixture(scope="module")
def wanted(params) -> np.ndarray:
    """Logits [70, 10]."""
    return np.asarray(predict(LeNet(), params, Split(PIXELS, None, **NORMALIZATION)))


def assert_equal_up_to_rounding(logits: np.ndarray, wanted: np.ndarray) -> None:
    """Within 20 roundings of the largest logit, as against PyTorch."""
    assert logits.shape == wanted.shape
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=20 * 2**-24 * np.abs(wanted).max())


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_our_logits_at_any_batch_size(content, wanted, size):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": PIXELS[:size]})
    assert_equal_up_to_rounding(logits, wanted[:size])


def test_it_means_the_same_to_its_reference_implementation(content, wanted):
    import onnx
    from onnx.reference import ReferenceEvaluator

    (logits,) = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"pixels": PIXELS[:3]})
    assert_equal_up_to_rounding(logits, wanted[:3])


def test_the_same_run_gives_the_same_bytes(params, content):
    assert onnx_model.to_onnx(params, **NORMALIZATION) == content
