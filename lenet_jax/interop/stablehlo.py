"""A trained network as a StableHLO module, which JAX runs without this package."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lenet_jax.core.epoch import normalize
from lenet_jax.core.model import IMAGE_SIZE, model_for
from lenet_jax.core.ops import conv_relu_pool_plain

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(params: Mapping[str, Any], mean: Any, std: Any) -> bytes:
    """The network as `jax.export` serializes it: StableHLO with a calling convention.

    On any of `PLATFORMS`, JAX alone runs it: `jax.export.deserialize(content).call(pixels)`.
    """
    # The reference implementation: the fast one is written for the vector lanes of a CPU.
    model = model_for(params).clone(conv_relu_pool=conv_relu_pool_plain)

    def logits(pixels: jax.Array) -> jax.Array:
        return model.apply({"params": params}, normalize(pixels, mean, std))

    (batch,) = jax.export.symbolic_shape("batch")
    shape = (batch, IMAGE_SIZE, IMAGE_SIZE, model.in_channels)
    pixels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(pixels).serialize()
