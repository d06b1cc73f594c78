"""The hot operation against float64 NumPy and live PyTorch, in the compiled forms that run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lenet_jax.core import ops
from lenet_jax.core.sharding import make_batch_mesh, replicate

torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
F = torch.nn.functional

OPS = [ops.conv_relu_pool, ops.conv_relu_pool_plain]
LENET = {"conv1": (5, 32, 1, 6), "conv2": (5, 14, 6, 16)}  # k, H = W, C, K


def reference(x, kernel, bias, cotangent):
    """Value and gradients in float64 NumPy, output by output: the definition."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
    B, H, W, _ = x.shape
    k, K = kernel.shape[0], kernel.shape[3]
    P, Q = (H - k + 1) // 2, (W - k + 1) // 2
    out = np.zeros((B, P, Q, K))
    d_x, d_kernel, d_bias = np.zeros_like(x), np.zeros_like(kernel), np.zeros_like(bias)
    for p, q in np.ndindex(P, Q):
        windows = np.stack(
            [
                x[:, 2 * p + i : 2 * p + i + k, 2 * q + j : 2 * q + j + k]
                for i, j in np.ndindex(2, 2)
            ]
        )  # [4, B, k, k, C]
        values = np.maximum(np.einsum("nbijc,ijck->nbk", windows, kernel) + bias, 0)
        first = values.argmax(0)  # [B, K]: the first of equal ones
        out[:, p, q] = np.take_along_axis(values, first[None], 0)[0]
        g = np.where(out[:, p, q] > 0, cotangent[:, p, q], 0)  # [B, K]
        d_bias += g.sum(0)
        for n, (i, j) in enumerate(np.ndindex(2, 2)):
            g_n = np.where(first == n, g, 0)
            d_kernel += np.einsum("bijc,bk->ijck", windows[n], g_n)
            rows, columns = slice(2 * p + i, 2 * p + i + k), slice(2 * q + j, 2 * q + j + k)
            d_x[:, rows, columns] += np.einsum("bk,ijck->bijc", g_n, kernel)
    return out, (d_x, d_kernel, d_bias)


def draw(seed, B, H, W, C, K, k, dtype=np.float32):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(dtype)
    P, Q = (H - k + 1) // 2, (W - k + 1) // 2
    return normal(B, H, W, C), normal(k, k, C, K), normal(K), normal(B, P, Q, K)


@partial(jax.jit, static_argnums=0)
def value_and_grads(op, args, cotangent):
    out, pull_back = jax.vjp(op, *args)
    return out, pull_back(cotangent)


def assert_close(actual, expected, roundings, eps):
    """In units of rounding of the largest number."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= roundings * eps * max(np.abs(b).max(), 1e-30)


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    B=st.sampled_from([1, 3, 17, 70]),
    P=st.integers(1, 3),
    Q=st.integers(1, 3),
    C=st.integers(1, 3),
    K=st.integers(1, 4),
    k=st.sampled_from([1, 3, 5]),
)
def test_values_and_gradients_are_float64_numpys(op, seed, B, P, Q, C, K, k):
    *args, cotangent = draw(seed, B, 2 * P + k - 1, 2 * Q + k - 1, C, K, k)
    assert_close(value_and_grads(op, args, cotangent), reference(*args, cotangent), 60, 2**-24)


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize(
    ("B", "P", "Q", "C", "K", "k"), [(70, 5, 5, 6, 16, 5), (40, 2, 3, 2, 3, 3), (1, 1, 1, 1, 1, 1)]
)
def test_gradients_on_any_processor_are_float64_numpys(slowly, B, P, Q, C, K, k, monkeypatch):
    """With and without selections; of two tiles, and of an odd number of channels."""
    monkeypatch.setattr(ops, "SELECTS_SLOWLY", slowly)
    *args, cotangent = draw(3, B, 2 * P + k - 1, 2 * Q + k - 1, C, K, k)
    step = jax.jit(lambda *a: value_and_grads.__wrapped__(ops.conv_relu_pool, a, cotangent))
    assert_close(step(*args), reference(*args, cotangent), 60, 2**-24)
    selections = str(jax.make_jaxpr(step)(*args)).count("select")
    assert (selections < 5) == slowly


@pytest.mark.parametrize(
    ("instructions", "slowly"),
    [
        (["X86_V3"], True),
        (["SSE42", "AVX", "FMA3", "AVX2"], True),  # NumPy's names before version 2.4
        (["X86_V3", "X86_V4", "AVX512_ICL"], False),
        (["AVX2", "AVX512F", "AVX512CD", "AVX512_SKX"], False),
        (["NEON", "ASIMD"], False),
        ([], False),
    ],
)
def test_only_avx2_alone_selects_slowly(instructions, slowly):
    assert ops._selects_slowly(instructions) == slowly


@pytest.mark.parametrize("layer", LENET)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_lenets_layers_are_the_reference_in_each_precision(layer, dtype):
    k, side, C, K = LENET[layer]
    with jax.enable_x64(dtype == "float64"):
        *args, cotangent = (
            jnp.asarray(a, dtype) for a in draw(1, 8, side, side, C, K, k, np.float64)
        )
        ours, plain = (value_and_grads(op, args, cotangent) for op in OPS)
        assert [leaf.dtype for leaf in jax.tree.leaves(ours)] == [jnp.dtype(dtype)] * 4
        # The plain form rounds to bfloat16 between its parts, ours once; and where two of its
        # rounded values tie, its maximum is another: so bfloat16 is compared by its values only.
        if dtype == "bfloat16":
            assert_close(ours[0], plain[0], 4, 2**-8)
        else:
            assert_close(ours, plain, 100, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("op", OPS)
def test_mixed_types_are_promoted_as_everywhere_in_jax(op):
    with jax.enable_x64(True):
        x, kernel = jnp.ones((1, 4, 4, 1), "float64"), jnp.ones((3, 3, 1, 1), "float32")
        assert op(x, kernel, jnp.zeros(1, "bfloat16")).dtype == jnp.float64


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layer", LENET)
@pytest.mark.parametrize("content", ["random", "constant", "few levels"])
def test_pytorch_agrees_ties_included(op, layer, content):
    k, side, C, K = LENET[layer]
    x, kernel, bias, cotangent = draw(2, 8, side, side, C, K, k)
    if content != "random":  # small whole numbers: exact in any order of addition, so ties are ties
        x, kernel, bias = np.sign(x), np.sign(kernel), np.zeros_like(bias)
    if content == "constant":  # all four of every window tie
        x, kernel = np.ones_like(x), np.abs(kernel)
    tensors = [
        torch.from_numpy(a.copy()).double().requires_grad_()
        for a in (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), bias)
    ]
    out = F.max_pool2d(F.relu(F.conv2d(*tensors)), 2)
    out.backward(torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy()).double())
    d_x, d_kernel, d_bias = (t.grad.numpy() for t in tensors)
    expected = (
        out.detach().numpy().transpose(0, 2, 3, 1),
        (d_x.transpose(0, 2, 3, 1), d_kernel.transpose(2, 3, 1, 0), d_bias),
    )
    assert_close(value_and_grads(op, [x, kernel, bias], cotangent), expected, 100, 2**-24)


def layers_loss(op, params, x):
    for kernel, bias in params:
        x = op(x, kernel, bias)
    return jnp.sum(jnp.sin(x))


def two_layers(seed):
    return [
        draw(seed + i, 1, side, side, C, K, k)[1:3]
        for i, (k, side, C, K) in enumerate(LENET.values())
    ]


@pytest.fixture(scope="module")
def expected_of_members():
    """Gradients of two networks on their own images, by the reference, one at a time."""
    images = [draw(20 + n, 6, 32, 32, 1, 1, 5)[0] for n in range(2)]
    params = [jax.tree.map(lambda a: 0.2 * a, two_layers(10 * n)) for n in range(2)]
    grad = jax.jit(jax.grad(lambda p, x: layers_loss(ops.conv_relu_pool_plain, p, x)))
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return (
        stack(params),
        jnp.stack(images),
        stack([grad(*a) for a in zip(params, images, strict=True)]),
    )


def ours_grad(params, x):
    return jax.grad(lambda p: layers_loss(ops.conv_relu_pool, p, x))(params)


FORMS = {
    "vmap": jax.vmap(ours_grad),
    "scan": lambda params, images: jax.lax.map(lambda a: ours_grad(*a), (params, images)),
    "vmap in a scan": lambda params, images: jax.lax.scan(
        lambda carry, _: (carry, jax.vmap(ours_grad)(params, images)), 0, None, length=2
    )[1],
    "shard_map": lambda params, images: jax.shard_map(
        jax.vmap(ours_grad),
        mesh=jax.make_mesh((2,), ("members",), (AxisType.Auto,)),
        in_specs=PartitionSpec("members"),
        out_specs=PartitionSpec("members"),
    )(params, images),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_compiled_forms_give_each_networks_own_gradients(form, expected_of_members):
    params, images, expected = expected_of_members
    actual = jax.jit(FORMS[form])(params, images)
    if form == "vmap in a scan":
        actual = jax.tree.map(lambda leaf: leaf[1], actual)
    assert_close(actual, expected, 300, 2**-24)


def test_forward_mode_refuses_clearly_but_works_on_gradients():
    x, kernel, bias, _ = draw(5, 2, 6, 6, 1, 2, 3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda w: ops.conv_relu_pool(x, w, bias), (kernel,), (kernel,))

    @partial(jax.jit, static_argnums=0)
    def second_order(op, kernel):
        grad = jax.grad(lambda w: jnp.sum(op(x, w, bias) ** 2))
        _, forward_over_reverse = jax.jvp(grad, (kernel,), (kernel,))
        return forward_over_reverse, jax.jacfwd(grad)(kernel), jax.jacrev(grad)(kernel)

    ours, plain = (second_order(op, kernel) for op in OPS)
    assert_close(ours, plain, 100, 2**-24)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("x", "kernel", "bias"),
    [
        ((2, 8, 8), (3, 3, 1, 2), (2,)),
        ((2, 8, 8, 1), (3, 3, 2, 2), (2,)),
        ((2, 8, 8, 1), (3, 3, 1, 2), (3,)),
        ((2, 8, 8, 1), (4, 4, 1, 2), (2,)),
        ((2, 9, 8, 1), (3, 3, 1, 2), (2,)),
        ((2, 2, 2, 1), (3, 3, 1, 2), (2,)),
        ((2, 8, 8, 1), (3, 5, 1, 2), (2,)),
    ],
)
def test_shapes_that_do_not_fit_are_named(op, x, kernel, bias):
    with pytest.raises(ValueError, match=r"\("):
        op(jnp.zeros(x), jnp.zeros(kernel), jnp.zeros(bias))


def test_it_can_be_called_by_itself_with_parameters_that_several_devices_have():
    mesh = make_batch_mesh(64)
    x, kernel, bias = jnp.ones((2, 14, 14, 6)), jnp.ones((5, 5, 6, 16)), jnp.zeros(16)
    once = ops.conv_relu_pool(x, kernel, bias)
    on_both = ops.conv_relu_pool(x, *replicate(mesh, (kernel, bias)))
    np.testing.assert_array_equal(on_both, once)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_images_may_be_sharded_over_the_batch(layer, axis_type):
    shapes = {"conv1": ((64, 32, 32, 1), (5, 5, 1, 6)), "conv2": ((64, 14, 14, 6), (5, 5, 6, 16))}
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in shapes[layer])
    bias = np.float32(rng.standard_normal(kernel.shape[-1]))
    values = jax.jit(lambda *args: ops.conv_relu_pool(*args))
    grads = jax.jit(jax.grad(lambda *args: jnp.sum(ops.conv_relu_pool(*args) ** 2), (0, 1, 2)))
    expected = values(x, kernel, bias), grads(x, kernel, bias)
    mesh = jax.make_mesh((2,), ("data",), (axis_type,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        found = values(sharded, kernel, bias), grads(sharded, kernel, bias)
        assert found[0].sharding.spec[0] == "data"
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize(("channels", "written_out"), [(6, True), (7, False)])
def test_a_layer_of_too_many_terms_takes_the_reference(channels, written_out, monkeypatch):
    """25 terms per channel; LLVM gives up vectorising beyond some hundreds."""
    taken = []
    reference = ops.conv_relu_pool_plain
    monkeypatch.setattr(
        ops, "conv_relu_pool_plain", lambda *args: taken.append(1) or reference(*args)
    )
    x, kernel = jnp.ones((1, 8, 8, channels)), jnp.ones((5, 5, channels, 2))
    assert ops.conv_relu_pool(x, kernel, jnp.zeros(2)).shape == (1, 2, 2, 2)
    assert bool(taken) != written_out
