"""The StableHLO module, run by JAX alone, without this package."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax.core.epoch import predict
from lenet_jax.core.model import LeNet
from lenet_jax.core.split import Split
from lenet_jax.interop import stablehlo

NORMALIZATION = {"mean": 0.1307, "std": 0.3081}
SIZES = (1, 3, 70)
PIXELS = np.random.default_rng(0).integers(0, 256, (max(SIZES), 32, 32, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def params():
    return jax.jit(LeNet().init)(jax.random.key(3), jnp.zeros((1, 32, 32, 1)))["params"]


RUN_WITH_JAX_ALONE = f"""
import sys
sys.modules["lenet_jax"] = sys.modules["flax"] = None  # importing them fails
import jax, numpy
exported = jax.export.deserialize(open(sys.argv[1], "rb").read())
pixels = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], *(exported.call(pixels[:size]) for size in {SIZES}))
"""


def test_it_gives_our_logits_without_this_package_at_any_batch_size(params, tmp_path):
    wanted = np.asarray(predict(LeNet(), params, Split(PIXELS, None, **NORMALIZATION)))  # [70, 10]
    module, pixels, logits = (tmp_path / name for name in ("module", "pixels.npy", "logits.npz"))
    module.write_bytes(stablehlo.to_stablehlo(params, **NORMALIZATION))
    np.save(pixels, PIXELS)
    command = [sys.executable, "-I", "-c", RUN_WITH_JAX_ALONE, module, pixels, logits]
    subprocess.run(command, check=True, cwd=tmp_path)
    for size, got in zip(SIZES, np.load(logits).values(), strict=True):
        assert (got.shape, got.dtype) == ((size, 10), np.float32)
        # Within 20 roundings of the largest logit, as against PyTorch.
        limit = 20 * 2**-24 * np.abs(wanted[:size]).max()
        np.testing.assert_allclose(got, wanted[:size], rtol=0, atol=limit)


def test_it_is_for_every_platform_and_takes_nothing_but_pixels(params):
    exported = jax.export.deserialize(bytearray(stablehlo.to_stablehlo(params, **NORMALIZATION)))
    assert exported.platforms == stablehlo.PLATFORMS
    (pixels,) = exported.in_avals
    assert (str(pixels.shape), pixels.dtype) == ("(batch, 32, 32, 1)", np.uint8)


def test_it_normalises_each_channel_of_a_colour_image():
    model, mean, std = LeNet(26, 3), (0.49, 0.48, 0.44), (0.2, 0.25, 0.3)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))["params"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    exported = jax.export.deserialize(bytearray(stablehlo.to_stablehlo(params, mean, std)))
    wanted = model.apply({"params": params}, np.float32((pixels / 255 - mean) / std))
    np.testing.assert_allclose(exported.call(pixels), wanted, rtol=0, atol=1e-5)
