"""The hot operation (convolution, ReLU and 2x2 max-pool of a layer) and its reference.

XLA:CPU compiles a small convolution poorly: inside `lax.scan` its gradients run in an unoptimised
loop nest (jax-ml/jax#12868), and the gradient of the pool is a serial scatter. It compiles a long
element-wise expression over a contiguous last axis well. So the whole layer is one such expression:
the images lie in the vector lanes, the k * k * C multiply-adds of an output are written out, and
the four outputs under one pooled pixel share their loads. No patches are stored, and nothing is
scattered. experiments/conv_relu_pool.md has the measurements behind each choice.

Array names end in their axes: T tiles of L lanes hold the B images; C input and K output channels,
H x W input, P x Q pooled output, k x k kernel.
"""

import math
from collections.abc import Callable, Collection
from functools import partial, reduce
from itertools import chain, product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

# For `jax.jit(whole_step, compiler_options=...)`, outermost jit only: vectors as wide as AVX-512's,
# and Eigen's matrix products, because YNNPACK's have given wrong results (jax-ml/jax#39103).
CPU_COMPILER_OPTIONS = {
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_experimental_ynn_fusion_type": "",
}
# Most images per tile: a multiple of VECTOR_WIDTH, the floats in one vector, sized so that a tile's
# arrays fit in a core's cache (1 MB on the EPYC where it was measured).
MAX_TILE_BATCH, VECTOR_WIDTH = 32, 16
# Most multiply-adds written out in one expression; larger layers take the reference implementation.
# Beyond about 500 loads LLVM stops vectorising (30 times slower), and every term is compile time.
MAX_TERMS = 150

CHAIN = 25  # most dependent additions in a row: the processor works on several chains at once
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of a 2x2 pooling window, row-major


def _selects_slowly(instructions: Collection[str]) -> bool:
    """Whether a processor with these instructions has AVX2 and nothing better.

    With AVX2 a selection takes three operations and a register for its mask; the mask registers of
    AVX-512 make it one. Of the two names of each, the first is NumPy's since version 2.4.
    """
    has = lambda *names: any(name in instructions for name in names)
    return has("X86_V3", "AVX2") and not has("X86_V4", "AVX512F")


SELECTS_SLOWLY = _selects_slowly(np.show_config("dicts")["SIMD Extensions"].get("found", ()))


def conv_relu_pool_plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Valid convolution, ReLU and 2x2 max-pool from `lax`'s own operations, as a reference.

    Args:
        x: images [B, H, W, C].
        kernel: [k, k, C, K], k odd.
        bias: [K].

    Returns:
        [B, (H - k + 1) / 2, (W - k + 1) / 2, K].

    Raises:
        ValueError: the shapes do not fit together, or the convolution's output has an odd size.

    Equals `torch.nn.functional.max_pool2d(relu(conv2d(x)), 2)`.

    >>> conv_relu_pool_plain(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), jnp.zeros(1))
    Array([[[[9.]]]], dtype=float32)
    """
    _check(x, kernel, bias)
    dtype = jnp.result_type(x, kernel, bias)
    x, kernel, bias = x.astype(dtype), kernel.astype(dtype), bias.astype(dtype)
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.nn.relu(y + bias[None, None, None, :])  # [B, 2P, 2Q, K]
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def conv_relu_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Valid convolution, ReLU and 2x2 max-pool in one pass, with its own gradient rule.

    Arguments, values and gradients are those of `conv_relu_pool_plain`: x [B, H, W, C],
    kernel [k, k, C, K] and bias [K] give [B, (H - k + 1) / 2, (W - k + 1) / 2, K]. It calls
    that function if `k * k * C` or `2 * (W - k + 1)` is above MAX_TERMS.

    The gradient of a tie goes to the first maximum in row-major order, as in PyTorch. bfloat16 is
    computed in float32 and rounded once. Forward mode works on gradients only: `jax.jvp(f, ...)`
    raises a TypeError, while `jax.jvp(jax.grad(f), ...)` and `jax.hessian(f)` work. A mesh of any
    axis type may shard the images over the batch; kernel and bias are replicated.

    Raises:
        ValueError: as `conv_relu_pool_plain`.

    >>> conv_relu_pool(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), jnp.zeros(1))
    Array([[[[9.]]]], dtype=float32)
    """
    _check(x, kernel, bias)
    if (batch_axes := jax.typeof(x).sharding.spec[0]) is not None:  # of a mesh with explicit axes
        part, whole = PartitionSpec(batch_axes), PartitionSpec()
        sharding = {"mesh": jax.typeof(x).sharding.mesh, "check_vma": False}
        sharded = jax.shard_map(
            conv_relu_pool, in_specs=(part, whole, whole), out_specs=part, **sharding
        )
        return sharded(x, kernel, bias)
    B, H, W, C = x.shape
    k = kernel.shape[0]
    if k * k * C > MAX_TERMS or 2 * (W - k + 1) > MAX_TERMS or B == 0:
        return conv_relu_pool_plain(x, kernel, bias)
    dtype = jnp.result_type(x, kernel, bias)
    wide = jnp.promote_types(dtype, jnp.float32)
    tiles = -(-B // MAX_TILE_BATCH)
    lanes = VECTOR_WIDTH * -(-B // (VECTOR_WIDTH * tiles))
    x = jnp.pad(x.astype(wide), ((0, tiles * lanes - B), (0, 0), (0, 0), (0, 0)))
    x_TLNC = x.reshape(tiles, lanes, H * W, C)
    if C == 1:  # pixels: fused with the next operations, their transposition is 5 times as slow
        x_TCNL = _fusion_barrier(lambda x_TLN: _row_major(x_TLN.transpose(0, 2, 1)), x_TLNC[..., 0])
    else:  # cancels out with the transposition at the end of the previous layer
        x_TCNL = x_TLNC.transpose(0, 3, 2, 1)
    x_TCHWL = x_TCNL.reshape(tiles, C, H, W, lanes)
    out_TKPQL = _tiled(x_TCHWL, kernel.astype(wide), bias.astype(wide))
    out = out_TKPQL.transpose(0, 4, 2, 3, 1)  # [T, L, P, Q, K]
    return out.reshape(-1, *out.shape[2:])[:B].astype(dtype)


def _check(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> None:
    shapes = f"x {x.shape}, kernel {kernel.shape}, bias {bias.shape}"
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"x must be [B, H, W, C] and kernel [k, k, C, K], not {shapes}.")
    if x.shape[3] != kernel.shape[2] or bias.shape != kernel.shape[3:]:
        raise ValueError(f"The channels of x, kernel and bias must agree, unlike {shapes}.")
    k = kernel.shape[0]
    if k % 2 == 0 or any(size - k + 1 < 2 or (size - k) % 2 == 0 for size in x.shape[1:3]):
        raise ValueError(f"k must be odd, H and W even and greater than k, unlike {shapes}.")


@jax.custom_vjp
@jax.jit  # outside of another jit, the constants then follow the devices of the arguments
def _tiled(x_TCHWL, kernel, bias):
    """The forward pass of inference, which does not need the argmax corners."""
    return _row_major(_fusion_barrier(_pooled, _row_major(x_TCHWL), kernel, bias))


@jax.jit
def _forward(x_TCHWL, kernel, bias):
    x_TCHWL = _row_major(x_TCHWL)
    # An XLA:CPU loop has one output; two would compute the convolution twice. So the pooled value
    # and its argmax corner leave the loop as the two parts of one complex number.
    z_TKPQL = _fusion_barrier(_pooled_with_corner, x_TCHWL, kernel, bias)
    out_TKPQL = _row_major(lax.real(z_TKPQL))
    corner_TKPQL = _row_major(lax.imag(z_TKPQL).astype(jnp.int8))  # a quarter of the loads
    return out_TKPQL, (x_TCHWL, kernel, out_TKPQL, corner_TKPQL)


@partial(jax.jit, static_argnums=2)
def _backward(residuals, g_TKPQL, selects_slowly):
    x_TCHWL, kernel, out_TKPQL, corner_TKPQL = residuals
    active = lambda g, out: jnp.where(out > 0, g, 0)
    g_TKPQL = _fusion_barrier(active, _row_major(g_TKPQL), out_TKPQL)
    g_and_corner = g_TKPQL, corner_TKPQL
    shape_CPQL = (kernel.shape[2], *g_TKPQL.shape[2:])
    input_gradient = partial(
        _input_gradient, matrix=_matrix_of_corners(kernel), shape_CPQL=shape_CPQL
    )
    if selects_slowly and _is_small(g_TKPQL):

        def both(tile):
            g_KPQL, corner_KPQL, x_CHWL = tile
            d_y = _fusion_barrier(_to_corners, g_KPQL, corner_KPQL)
            return input_gradient(d_y), _sum_of_products(d_y, x_CHWL, g_KPQL.shape)

        d_x, d_kernel = lax.map(both, (*g_and_corner, x_TCHWL))
        d_kernel = d_kernel.sum(0)
    else:
        d_x = lax.map(lambda tile: input_gradient(_to_corners(*tile)), g_and_corner)
        d_kernel = _kernel_gradient(*g_and_corner, x_TCHWL)
    return d_x, d_kernel, _sum_of_pixels(g_TKPQL).sum(0)  # d_x is dead code in the first layer


def _is_small(g_TKPQL):
    """Whether one expression can sum over the whole output of a layer (conv2's, not conv1's)."""
    return 4 * g_TKPQL.shape[2] * g_TKPQL.shape[3] <= MAX_TERMS


_tiled.defvjp(_forward, lambda residuals, g: _backward(residuals, g, SELECTS_SLOWLY))


@partial(jax.jit, inline=True)  # traced once for both uses in `_fusion_barrier`
def _pooled(x_TCHWL, kernel, bias):
    rows = [_correlate(x_TCHWL, kernel, c) for c in range(kernel.shape[2])]
    return _add_and_pool(rows, bias)[1]


@partial(jax.jit, inline=True)
def _pooled_with_corner(x_TCHWL, kernel, bias):
    # Slicing first lets all channels share one trace, which saves 0.07 s of startup. The slices are
    # written to memory, which costs a training step nothing but would slow inference by 5 to 10 %.
    channel = lambda a, c, axis: lax.slice_in_dim(a, c, c + 1, axis=axis)
    rows = [
        _correlate(channel(x_TCHWL, c, 1), channel(kernel, c, 2), 0) for c in range(kernel.shape[2])
    ]
    y, out, best = _add_and_pool(rows, bias)
    first = jnp.where(y[0] == best, 0, jnp.where(y[1] == best, 1, jnp.where(y[2] == best, 2, 3)))
    return lax.complex(out, first.astype(out.dtype))


def _add_and_pool(rows, bias):
    """The outputs at each corner, and their maximum with and without bias and ReLU."""
    y = [reduce(lax.add, chain.from_iterable(corner)) for corner in zip(*rows, strict=True)]
    best = jnp.maximum(jnp.maximum(y[0], y[1]), jnp.maximum(y[2], y[3]))
    return y, jnp.maximum(best + lax.broadcast_in_dim(bias, best.shape, (1,)), 0), best


@partial(jax.jit, static_argnames="c")
def _correlate(x_TCHWL, kernel, c):
    """The terms of input channel c in the outputs at each corner: 4 times k arrays [T, K, P, Q, L].

    Each array is the sum over a row of the kernel: with longer chains of dependent additions, LLVM
    keeps the wrong values in registers. Here and below, lax's functions are used because jnp's
    operators take five times as long to trace.
    """
    T, _, H, W, L = x_TCHWL.shape
    k, _, _, K = kernel.shape
    P, Q = (H - k + 1) // 2, (W - k + 1) // 2
    to_TKPQL = lambda a, *axes: lax.broadcast_in_dim(a, (T, K, P, Q, L), axes)
    weight = {
        (a, b): to_TKPQL(_slice(kernel, (a, b, c, 0), (1, 1, 1, K)), 0, 2, 3, 1)
        for a, b in product(range(k), range(k))
    }
    pixel = {
        (a, b): to_TKPQL(
            _slice(x_TCHWL, (0, c, a, b, 0), (T, 1, P, Q, L), (1, 1, 2, 2, 1)), *range(5)
        )
        for a, b in product(range(k + 1), range(k + 1))
    }
    row = lambda a, i, j: [lax.mul(weight[a, b], pixel[i + a, j + b]) for b in range(k)]
    return [[reduce(lax.add, row(a, i, j)) for a in range(k)] for i, j in CORNERS]


def _kernel_gradient(g_TKPQL, corner_TKPQL, x_TCHWL):
    """The sum over images and pooled pixels of g times the window that the maximum came from.

    If the output is small (conv2), one expression sums it for the whole kernel. Otherwise (conv1)
    an expression sums one row of the output for one row of the kernel, in a loop over these rows.
    """
    K, P = g_TKPQL.shape[1:3]
    to_even = ((0, 0), (0, K % 2), (0, 0), (0, 0), (0, 0))
    g_TKPQL, corner_TKPQL = (jnp.pad(a, to_even) for a in (g_TKPQL, corner_TKPQL))

    def sums(windows_of, *row):
        f = partial(_windows_times_g, windows_of)
        z = _fusion_barrier(f, g_TKPQL, corner_TKPQL, x_TCHWL, *row).sum(-1)
        return jnp.concatenate([lax.real(z), lax.imag(z)], -1)[..., :K]

    if _is_small(g_TKPQL):
        return sums(_windows_of_kernel).sum(0).transpose(1, 2, 0, 3)
    sums_of_row = lambda row: sums(_windows_of_row, row).sum((0, 2)).transpose(1, 0, 2)
    return lax.map(sums_of_row, jnp.arange(x_TCHWL.shape[2] - 2 * P + 1))


@partial(jax.jit, static_argnames="windows_of", inline=True)  # as `_pooled`
def _windows_times_g(windows_of, g_TKPQL, corner_TKPQL, x_TCHWL, *row):
    """Both halves of the output channels, as the two parts of complex numbers (see `_forward`).

    Loads limit this loop, so the halves share those of x.
    """
    K = g_TKPQL.shape[1]
    windows = windows_of(x_TCHWL, g_TKPQL.shape, *row)
    half = lambda a, at: lax.slice_in_dim(a, at, at + K // 2, axis=1)
    return lax.complex(
        *(_sum_of_windows(half(g_TKPQL, at), half(corner_TKPQL, at), windows) for at in (0, K // 2))
    )


def _windows_of_kernel(x_TCHWL, shape_TKPQL):
    """The four windows under each pooled pixel, [T, C, k, k, K / 2, L] each."""
    T, K, P, Q, L = shape_TKPQL
    C, k = x_TCHWL.shape[1], x_TCHWL.shape[2] - 2 * P + 1
    rows = [lax.slice_in_dim(x_TCHWL, y, y + k, axis=2) for y in range(2 * P)]
    x = [_windows_in_rows(x_TCkWL, (T, C, k, k, K // 2, L)) for x_TCkWL in rows]
    return [[x[2 * p + i][2 * q + j] for i, j in CORNERS] for p, q in product(range(P), range(Q))]


def _windows_of_row(x_TCHWL, shape_TKPQL, row):
    """A row of the four windows under each column of pooled pixels, [T, C, P, k, K / 2, L] each."""
    T, K, P, Q, L = shape_TKPQL
    C, k = x_TCHWL.shape[1], x_TCHWL.shape[2] - 2 * P + 1
    shape = (T, C, P, k, K // 2, L)
    x = [_windows_in_every_second_row(x_TCHWL, lax.add(row, i), shape) for i in range(2)]
    return [[x[i][2 * q + j] for i, j in CORNERS] for q in range(Q)]


@partial(jax.jit, static_argnames="shape")  # called alike for each row: traced and lowered once
def _windows_in_rows(x_TCkWL, shape):
    """x from each column on, broadcast to `shape` [T, C, k, k, K / 2, L]."""
    T, C, _, k, _, L = shape
    window = lambda q: _slice(x_TCkWL, (0, 0, 0, q, 0), (T, C, k, k, L))
    columns = range(x_TCkWL.shape[3] - k + 1)
    return [lax.broadcast_in_dim(window(q), shape, (0, 1, 2, 3, 5)) for q in columns]


@partial(jax.jit, static_argnames="shape")  # as `_windows_in_rows`
def _windows_in_every_second_row(x_TCHWL, row, shape):
    """x from `row` and from each column on, broadcast to `shape` [T, C, P, k, K / 2, L]."""
    T, C, P, k, _, L = shape
    rows = lambda q: lax.dynamic_slice(x_TCHWL, (0, 0, row, q, 0), (T, C, 2 * P - 1, k, L))
    window = lambda q: _slice(rows(q), (0,) * 5, (T, C, P, k, L), (1, 1, 2, 1, 1))
    columns = range(x_TCHWL.shape[3] - k + 1)
    return [lax.broadcast_in_dim(window(q), shape, (0, 1, 2, 3, 5)) for q in columns]


@jax.jit  # called for both halves of the channels: traced and lowered once
def _sum_of_windows(g_TKPQL, corner_TKPQL, windows):
    """The sum, over groups of four `windows`, of g times the window at the argmax corner.

    Loads limit this loop: one product with a selected window is faster than four products.
    """
    shape = windows[0][0].shape
    T, K, P, Q, L = g_TKPQL.shape
    rows_of_g = P * Q // len(windows)  # 1 or P
    places = product(range(P // rows_of_g), range(Q))
    number = [lax.full(shape, n, corner_TKPQL.dtype) for n in range(3)]
    terms = []
    for (p, q), (y0, y1, y2, y3) in zip(places, windows, strict=True):
        at, size = (0, 0, p, q, 0), (T, K, rows_of_g, 1, L)
        corner, g = (
            lax.broadcast_in_dim(_slice(a, at, size), shape, (0, 4, 2, 3, 5))
            for a in (corner_TKPQL, g_TKPQL)
        )
        x = lax.select(lax.eq(corner, number[2]), y2, y3)
        x = lax.select(lax.eq(corner, number[1]), y1, x)
        terms.append(lax.mul(lax.select(lax.eq(corner, number[0]), y0, x), g))
    return _sum_of_terms(terms)


def _sum_of_terms(terms):
    chains = [reduce(lax.add, terms[at : at + CHAIN]) for at in range(0, len(terms), CHAIN)]
    return reduce(lax.add, chains)


def _sum_of_products(d_y, x_CHWL, shape_KPQL):
    """A tile's part of `_kernel_gradient`, without selections: most products are with zeros.

    d_y [4 K, P Q L] is from `_to_corners`.
    """
    K, P, Q, L = shape_KPQL
    C, k, half = x_CHWL.shape[0], x_CHWL.shape[1] - 2 * P + 1, -(-K // 2)
    d_y = jnp.pad(d_y.reshape(4, K, P, Q, L), ((0, 0), (0, K % 2), (0, 0), (0, 0), (0, 0)))
    shape = (half, C, k, k, L)  # all windows of x meet a channel's d_y while it is in the cache

    def sum_at(corners, d_y, x_CHWL):
        parts = []
        for at in (0, half):
            terms = []
            for p, q, n in product(range(P), range(Q), corners):
                d = _slice(d_y, (n, at, p, q, 0), (1, half, 1, 1, L)).reshape(half, L)
                i, j = CORNERS[n]
                x = _slice(x_CHWL, (0, 2 * p + i, 2 * q + j, 0), (C, k, k, L))
                x = lax.broadcast_in_dim(x, shape, (1, 2, 3, 4))
                terms.append(lax.mul(lax.broadcast_in_dim(d, shape, (0, 4)), x))
            parts.append(_sum_of_terms(terms))
        return lax.complex(*parts)  # see `_forward`

    # With all four corners in one expression, LLVM would not vectorise it.
    z = sum(_fusion_barrier(partial(sum_at, pair), d_y, x_CHWL) for pair in ((0, 1), (2, 3)))
    z = z.sum(-1)  # [K / 2, C, k, k]
    return jnp.concatenate([lax.real(z), lax.imag(z)])[:K].transpose(2, 3, 1, 0)


def _to_corners(g_KPQL, corner_KPQL):
    """The gradient of a tile's outputs before the pool: [4 K, P Q L], the corners first."""
    shape = (len(CORNERS), len(g_KPQL), g_KPQL[0].size)  # XLA vectorises one long last axis
    g, corner = (
        lax.broadcast_in_dim(a.reshape(shape[1:]), shape, (1, 2)) for a in (g_KPQL, corner_KPQL)
    )
    d_y = jnp.where(corner == lax.broadcasted_iota(corner.dtype, shape, 0), g, 0)
    return _row_major(d_y).reshape(-1, shape[2])


def _matrix_of_corners(kernel):
    """The kernel at each corner of a patch, which is m x m blocks of 2 x 2: [m m 2 2 C, 4 K]."""
    m, (C, K) = (len(kernel) + 1) // 2, kernel.shape[2:]
    shifted = [jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in CORNERS]
    matrix = jnp.stack(shifted).reshape(4, m, 2, m, 2, C, K).transpose(1, 3, 2, 4, 5, 0, 6)
    return _row_major(matrix.reshape(-1, 4 * K))


def _input_gradient(d_y, matrix, shape_CPQL):
    """The transposed convolution of a tile: a matrix product, then the sum of overlapping patches.

    Each pooled pixel sends the gradients of its four outputs, in d_y [4 K, P Q L], to a patch of
    (k + 1) x (k + 1) pixels, seen as m x m blocks of 2 x 2, so that patches overlap in whole
    blocks; `matrix` is from `_matrix_of_corners`. All tiles at once would need half of a step's
    memory.
    """
    C, P, Q, L = shape_CPQL
    m = math.isqrt(len(matrix) // (4 * C))
    at = lambda a: (a, m - 1 - a)
    d_patches = _row_major(matrix @ d_y).reshape(m, m, 2, 2, C, P, Q, L)
    d_blocks = [
        jnp.pad(d_patches[a, b], ((0, 0),) * 3 + (at(a), at(b), (0, 0)))
        for a, b in product(range(m), range(m))
    ]  # m * m times [2, 2, C, H/2, W/2, L]
    d_x = reduce(lax.add, d_blocks).transpose(2, 3, 0, 4, 1, 5)  # [C, H/2, 2, W/2, 2, L]
    return d_x.reshape(C, 2 * (P + m - 1), 2 * (Q + m - 1), L)


def _sum_of_pixels(x_TKPQL: jax.Array) -> jax.Array:
    """Sums over pixels and lanes, [T, K], by a product with ones.

    XLA would fuse a reduction with the expression before it and vectorise neither.
    """
    x = x_TKPQL.reshape(*x_TKPQL.shape[:2], -1)
    return x @ jnp.ones(x.shape[-1], x.dtype)


def _slice(x, start, size, step=None):
    step = step or (1,) * x.ndim
    stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, size, step, strict=True)]
    return lax.slice(x, start, stop, step)


def _row_major(x: jax.Array) -> jax.Array:
    """x with its last axis contiguous in memory: XLA must not turn a transposition into a view."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _fusion_barrier(f: Callable, *args: jax.Array) -> jax.Array:
    """f(*args), computed once: XLA would recompute a cheap-looking f in each consumer.

    XLA fuses nothing across a branch, and it cannot prove that this one is always taken.
    """
    out = jax.eval_shape(f, *args)
    always = lax.optimization_barrier(jnp.array(True))
    return lax.cond(always, f, lambda *_: jnp.zeros_like(out), *args)
