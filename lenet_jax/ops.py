"""The hot operation: convolution, ReLU and 2x2 max-pool of one layer, as a matrix product.

Shapes: B batch, H x W input size, C input channels, K output channels, k kernel size,
P x Q pooled size with P = (H - k + 1) / 2, N = P * Q * B columns, m = (k + 1) / 2.
"""

import jax
import jax.numpy as jnp
from jax import lax


def conv_relu_pool_plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Valid convolution, ReLU and 2x2 max-pool, from `lax`'s own operations: the plain twin.

    Args:
        x: images [B, H, W, C].
        kernel: [k, k, C, K].
        bias: [K].

    Returns:
        [B, (H - k + 1) / 2, (W - k + 1) / 2, K].
    """
    _check(x, kernel, bias)
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.nn.relu(y + bias[None, None, None, :])
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _check(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"x must be [B,H,W,C] and kernel [k,k,C,K], got {x.shape}, {kernel.shape}."
        )
    k, _, C, K = kernel.shape
    if x.shape[3] != C or bias.shape != (K,):
        raise ValueError(
            f"channels disagree: x {x.shape}, kernel {kernel.shape}, bias {bias.shape}."
        )
    if k % 2 == 0 or any(n - k + 1 < 2 or (n - k + 1) % 2 for n in x.shape[1:3]):
        raise ValueError(f"kernel size {k} must be odd and fit {x.shape[1:3]} with an even output.")


def _patches(x_CHWB: jax.Array, k: int) -> jax.Array:
    """Every (k + 1) x (k + 1) patch at stride 2, as columns: [(k + 1)^2 C, N]."""
    C, H, W, B = x_CHWB.shape
    m, P, Q = (k + 1) // 2, (H - k + 1) // 2, (W - k + 1) // 2
    s = x_CHWB.reshape(C, H // 2, 2, W // 2, 2, B).transpose(2, 4, 0, 1, 3, 5)
    slices = [s[:, :, :, a : a + P, b : b + Q] for a in range(m) for b in range(m)]
    return jnp.stack(slices).reshape(-1, P * Q * B)


def _matrix(kernel: jax.Array) -> jax.Array:
    """The kernel at its four offsets in a (k + 1) x (k + 1) patch: [4 K, (k + 1)^2 C]."""
    k, _, C, K = kernel.shape
    m = (k + 1) // 2
    four = jnp.stack(
        [
            jnp.pad(kernel, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0)))
            for a in range(2)
            for b in range(2)
        ]
    )
    return four.reshape(4, m, 2, m, 2, C, K).transpose(0, 6, 1, 3, 2, 4, 5).reshape(4 * K, -1)


@jax.custom_vjp
def conv_relu_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Valid convolution, ReLU and 2x2 max-pool in one strided matrix product.

    Args:
        x: images [B, H, W, C].
        kernel: [k, k, C, K].
        bias: [K].

    Returns:
        [B, (H - k + 1) / 2, (W - k + 1) / 2, K].
    """
    return _forward(x, kernel, bias)[0]


def _forward(x, kernel, bias):
    _check(x, kernel, bias)
    B, H, W, _ = x.shape
    k, _, _, K = kernel.shape
    P, Q = (H - k + 1) // 2, (W - k + 1) // 2
    patches = _patches(x.transpose(3, 1, 2, 0), k)
    y = (_matrix(kernel) @ patches).reshape(4, K, P * Q * B)
    best = y.max(0)
    where = jnp.where(y[0] == best, 0, jnp.where(y[1] == best, 1, jnp.where(y[2] == best, 2, 3)))
    out = jax.nn.relu(best + bias[:, None])
    residuals = patches, kernel, out, where.astype(jnp.int8)
    return out.reshape(K, P, Q, B).transpose(3, 1, 2, 0), residuals


def _backward(residuals, g):
    patches, kernel, out, where = residuals
    k, _, C, K = kernel.shape
    B, P, Q, _ = g.shape
    H, W = 2 * P + k - 1, 2 * Q + k - 1
    g = jnp.where(out > 0, g.transpose(3, 1, 2, 0).reshape(out.shape), 0)
    corner = jnp.arange(4, dtype=jnp.int8)[:, None, None]
    dy = jnp.where(where[None] == corner, g[None], 0).reshape(4 * K, -1)
    matrix, matrix_vjp = jax.vjp(_matrix, kernel)
    (d_kernel,) = matrix_vjp(dy @ patches.T)
    slices = lambda x: _patches(x, k)
    (d_x,) = jax.linear_transpose(slices, jax.ShapeDtypeStruct((C, H, W, B), dy.dtype))(
        matrix.T @ dy
    )
    return d_x.transpose(3, 1, 2, 0), d_kernel, g.sum(1)


conv_relu_pool.defvjp(_forward, _backward)
