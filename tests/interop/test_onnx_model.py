"""The ONNX model, run by what it was made for, without this package."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax.core.epoch import predict
from lenet_jax.core.model import LeNet, model_for
from lenet_jax.core.split import Split
from lenet_jax.interop import onnx_model

pytest.importorskip("onnx", reason="the package onnx is not installed")

SIZES = (1, 3, 70)
MODELS = {  # with what normalises their images
    "digits": (LeNet(), {"mean": 0.1307, "std": 0.3081}),
    "letters in colour": (LeNet(26, 3), {"mean": (0.49, 0.48, 0.44), "std": (0.2, 0.25, 0.3)}),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def case(request):
    """Parameters, pixels, what normalises them, and the names of the classes."""
    model, normalization = request.param
    shape = (max(SIZES), 32, 32, model.in_channels)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, *shape[1:])))["params"]
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return params, pixels, normalization, [f"class {i}" for i in range(model.num_classes)]


@pytest.fixture(scope="module")
def content(case) -> bytes:
    params, _, normalization, classes = case
    return onnx_model.to_onnx(params, **normalization, classes=classes)


@pytest.fixture(scope="module")
def wanted(case) -> np.ndarray:
    """Logits [70, C]."""
    params, pixels, normalization, _ = case
    return np.asarray(predict(model_for(params), params, Split(pixels, None, **normalization)))


def assert_equal_up_to_rounding(logits: np.ndarray, wanted: np.ndarray) -> None:
    """Within 20 roundings of the largest logit, as against PyTorch."""
    assert logits.shape == wanted.shape
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=20 * 2**-24 * np.abs(wanted).max())


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_our_logits_at_any_batch_size(case, content, wanted, size):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": case[1][:size]})
    assert_equal_up_to_rounding(logits, wanted[:size])
    (classes,) = session.get_modelmeta().custom_metadata_map.values()
    assert json.loads(classes) == case[3]


def test_it_means_the_same_to_its_reference_implementation(case, content, wanted):
    import onnx
    from onnx.reference import ReferenceEvaluator

    (logits,) = ReferenceEvaluator(onnx.load_from_string(content)).run(
        None, {"pixels": case[1][:3]}
    )
    assert_equal_up_to_rounding(logits, wanted[:3])


def test_the_same_run_gives_the_same_bytes(case, content):
    params, _, normalization, classes = case
    assert onnx_model.to_onnx(params, **normalization, classes=classes) == content


def test_it_needs_no_newer_reader_than_of_june_2022(case):
    import onnx

    params, _, normalization, classes = case
    model = onnx.load_from_string(onnx_model.to_onnx(params, **normalization, classes=classes))
    assert (model.ir_version, [each.version for each in model.opset_import]) == (8, [17])
