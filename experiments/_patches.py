"""A layer of LeNet as one matrix product over patches, for `LeNet(conv_relu_pool=...)`.

Of many networks, GPUs and TPUs compute a batched matrix product, where the usual form becomes a
convolution with a group for each network. accelerator.py measures which of the two is faster.
"""

from itertools import product

import jax
import jax.numpy as jnp


def conv_relu_pool_patches(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The arguments and values of `ops.conv_relu_pool_plain`: [B, H, W, C] -> [B, P, Q, K]."""
    B, H, W, _ = x.shape
    k, _, _, K = kernel.shape
    height, width = H - k + 1, W - k + 1
    pieces = [x[:, i : i + height, j : j + width] for i, j in product(range(k), range(k))]
    patches = jnp.concatenate(pieces, -1)  # [B, 2P, 2Q, k * k * C]
    y = jax.nn.relu(patches @ kernel.reshape(-1, K) + bias[None, None, None, :])
    return y.reshape(B, height // 2, 2, width // 2, 2, K).max((2, 4))
