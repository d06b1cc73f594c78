"""The whole chain against live PyTorch: logits, losses, gradients, 20 steps of each optimizer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from linear import Linear

from lenet_jax.core import losses, ops
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import make_optimizer
from lenet_jax.core.step import create_train_state, eval_step, train_step, update

torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
F = torch.nn.functional
from tutorial_net import grads_of, make_net, params_of, random_batch, to_torch

OPS = [ops.conv_relu_pool, ops.conv_relu_pool_plain]
# Compiles faster; for tests that do not depend on the operation.
PLAIN = LeNet(conv_relu_pool=ops.conv_relu_pool_plain)
PRECISIONS = {"float32": (np.float32, torch.float32), "float64": (np.float64, torch.float64)}


def one_hot(labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels, 10).to(like.dtype)


LOSSES = {
    losses.cross_entropy: F.cross_entropy,
    losses.mse: lambda x, y: F.mse_loss(x, one_hot(y, x)),
    losses.l1: lambda x, y: F.l1_loss(x, one_hot(y, x)),
    losses.smooth_l1: lambda x, y: F.smooth_l1_loss(x, one_hot(y, x)),
    losses.huber: lambda x, y: F.huber_loss(x, one_hot(y, x)),
    losses.bce_with_logits: lambda x, y: F.binary_cross_entropy_with_logits(x, one_hot(y, x)),
    losses.multi_margin: F.multi_margin_loss,
}


@pytest.fixture(params=PRECISIONS)
def precision(request):
    """NumPy's and torch's type, and one rounding of it."""
    with jax.enable_x64(request.param == "float64"):
        yield *PRECISIONS[request.param], float(np.finfo(request.param).eps)


def largest_difference(ours, theirs) -> float:
    """Over all arrays, relative to the largest number of each."""
    return max(
        float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


@partial(jax.jit, static_argnames="op")  # compiled once for all losses
def logits_and_gradients(op, params, images, cotangent):
    apply = lambda params: LeNet(conv_relu_pool=op).apply({"params": params}, images)
    logits, pull_back = jax.vjp(apply, params)
    return logits, *pull_back(cotangent)


# The judge computes in float64 from the same numbers: PyTorch's own gradient of conv1's bias is 33
# roundings off in float32, on one thread.
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("loss_fn", LOSSES, ids=lambda f: f.__name__)
def test_each_loss_and_its_ten_gradients_are_pytorchs(loss_fn, op, precision):
    dtype, torch_dtype, rounding = precision
    net, (images, labels) = make_net(1, torch_dtype), random_batch(2, 8, dtype)
    params = params_of(net)
    logits = net.double()(to_torch(images).double())
    loss = LOSSES[loss_fn](logits, torch.from_numpy(labels).long())
    loss.backward()
    our_logits, _ = logits_and_gradients(op, params, images, np.zeros((8, 10), dtype))
    our_loss, cotangent = jax.jit(jax.value_and_grad(loss_fn))(our_logits, labels)
    _, our_grads = logits_and_gradients(op, params, images, cotangent)
    assert our_loss.dtype == dtype
    assert abs(float(our_loss) / loss.item() - 1) < 10 * rounding
    assert largest_difference(our_grads, grads_of(net)) < 30 * rounding


@pytest.mark.parametrize("op", OPS)
def test_a_chosen_cotangent_gives_pytorchs_gradients(op, precision):
    """The tutorial's `out.backward(torch.randn(1, 10))`, of one image among eight."""
    dtype, torch_dtype, rounding = precision
    net, (images, _) = make_net(5, torch_dtype), random_batch(6, 8, dtype)
    cotangent = np.zeros((8, 10), dtype)
    cotangent[3] = np.random.default_rng(7).standard_normal(10)
    params = params_of(net)
    net.double()(to_torch(images[3:4]).double()).backward(torch.from_numpy(cotangent[3:4]).double())
    _, gradients = logits_and_gradients(op, params, images, cotangent)
    assert largest_difference(gradients, grads_of(net)) < 30 * rounding


TORCH_OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}
RATES = {"sgd": 0.05, "nesterov": 0.02, "adam": 1e-3, "rmsprop": 1e-3}


# An optimizer does not know which form made its gradients: one is checked with the fast form.
@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
def test_twenty_steps_end_where_pytorchs_end(name, precision):
    assert_trains_alike(name, 8, LeNet() if name == "adam" else PLAIN, *precision[:2])


def assert_trains_alike(name, seed, model, dtype, torch_dtype, *sizes):
    """After 20 steps the parameters and the last loss are PyTorch's."""
    net = make_net(seed, torch_dtype, *sizes)
    optimizer = TORCH_OPTIMIZERS[name](net.parameters())
    tx = make_optimizer(name, RATES[name])
    state = create_train_state(jax.random.key(0), tx, model, params_of(net))
    for step in range(20):
        images, labels = random_batch(100 + step, 16, dtype, *sizes)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(to_torch(images)), torch.from_numpy(labels).long())
        loss.backward()
        optimizer.step()
        state, metrics = train_step(state, {"image": images, "label": labels})
    assert int(state.step) == 20
    theirs = params_of(net)
    leaves = jax.tree.leaves(theirs)
    tolerance = 3e-4 if leaves[0].dtype == np.float32 else 1e-9
    largest = max(np.abs(leaf).max() for leaf in leaves)
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, theirs)
    assert max(jax.tree.leaves(differences)) < tolerance * largest
    assert abs(float(metrics["loss"]) / loss.item() - 1) < tolerance


def of_sizes(*sizes: int) -> LeNet:
    """Only channels matter to the fast form."""
    return LeNet(*sizes, ops.conv_relu_pool_plain if sizes[1] == 1 else ops.conv_relu_pool)


# EMNIST's letters, balanced and by class, and colour images.
@pytest.mark.parametrize("sizes", [(26, 1), (47, 1), (62, 1), (10, 3)], ids=str)
def test_with_other_classes_and_channels_logits_and_gradients_are_pytorchs(sizes, precision):
    dtype, torch_dtype, rounding = precision
    net, (images, labels) = make_net(9, torch_dtype, *sizes), random_batch(200, 16, dtype, *sizes)
    params = params_of(net)
    logits = net.double()(to_torch(images).double())
    F.cross_entropy(logits, torch.from_numpy(labels).long()).backward()

    @jax.jit
    def ours(params):
        apply = lambda p: of_sizes(*sizes).apply({"params": p}, images)
        logits, pull_back = jax.vjp(apply, params)
        return logits, *pull_back(jax.grad(losses.cross_entropy)(logits, labels))

    our_logits, gradients = ours(params)
    assert largest_difference([our_logits], [logits.detach().numpy()]) < 20 * rounding
    assert largest_difference(gradients, grads_of(net)) < 30 * rounding


# In float64, where no rounding moves an activation across the kink of a ReLU.
@pytest.mark.parametrize("sizes", [(62, 1), (10, 3)], ids=str)
def test_with_other_classes_and_channels_twenty_steps_end_where_pytorchs_end(sizes):
    with jax.enable_x64(True):
        assert_trains_alike("nesterov", 9, of_sizes(*sizes), np.float64, torch.float64, *sizes)


def batch_of(size: int) -> dict:
    images, labels = random_batch(0, size)
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


def test_train_step_is_update_jitted():
    batch = batch_of(8)
    state = create_train_state(jax.random.key(0), make_optimizer("sgd", 0.1))
    expected, expected_metrics = jax.jit(update)(state, batch)
    actual, actual_metrics = train_step(state, batch)
    assert largest_difference(actual.params, expected.params) < 1e-6
    assert float(actual_metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-6)
    assert actual_metrics["accuracy"] == expected_metrics["accuracy"]


def test_train_step_consumes_its_state():
    state = create_train_state(jax.random.key(0), make_optimizer("adam"), Linear())
    train_step(state, batch_of(4))
    with pytest.raises(RuntimeError, match="Array has been deleted"):
        state.params["Dense_0"]["bias"] + 1
    # By version, shape and number of devices it is the one or the other, as the docstring says.
    message = r"Array has been deleted|Buffer has been deleted or donated"
    with pytest.raises((RuntimeError, ValueError), match=message):
        train_step(state, batch_of(4))
    assert "consumed" in repr(state)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [(0, 0, "0 images and 0 labels"), (4, 3, "4 images and 3 labels"), (3, 4, "3 images")],
)
@pytest.mark.parametrize("step", [train_step, update])
def test_a_batch_is_images_and_as_many_labels(images, labels, match, step):
    batch = {"image": jnp.zeros((images, 32, 32, 1)), "label": jnp.zeros(labels, jnp.int32)}
    state = create_train_state(jax.random.key(0), optax.sgd(0.1), Linear())
    with pytest.raises(ValueError, match=match):
        step(state, batch)
    assert int(state.step) == 0  # nothing was consumed


RAW = {"image": np.zeros((4, 32, 32, 1), np.uint8), "label": np.arange(4)}


@pytest.mark.parametrize("step", [train_step, update, eval_step])
def test_pixels_that_are_not_normalised_are_refused_with_what_to_do(step):
    state = create_train_state(0, optax.sgd(0.1), Linear())
    with pytest.raises(TypeError, match=r"must be floating point, got uint8: .*normalize\(images"):
        step(state, RAW)
    assert int(state.step) == 0


@pytest.mark.parametrize("step", [train_step, update, eval_step])
@pytest.mark.parametrize(
    ("loss_fn", "name"),
    [
        (optax.softmax_cross_entropy_with_integer_labels, "softmax_cross_entropy_with_integer"),
        (partial(losses.cross_entropy, reduction="none"), "cross_entropy"),
        (partial(losses.cross_entropy, reduction="none", weight=np.ones(10)), "cross_entropy"),
    ],
    ids=["optax", "partial", "partial with an array"],
)
def test_a_loss_that_is_no_scalar_is_named_with_its_shape(step, loss_fn, name):
    state = create_train_state(0, optax.sgd(0.1), Linear())
    with pytest.raises(
        ValueError, match=rf"^loss_fn {name}\w* returned shape \(4,\), not a scalar"
    ):
        step(state, batch_of(4), loss_fn)


@pytest.mark.parametrize("seed", [3, np.int64(3), jnp.int32(3)], ids=lambda seed: str(type(seed)))
def test_an_integer_is_a_key(seed):
    got = create_train_state(seed, optax.sgd(0.1)).params["conv1"]["kernel"]
    wanted = create_train_state(jax.random.key(3), optax.sgd(0.1)).params["conv1"]["kernel"]
    np.testing.assert_array_equal(got, wanted)


class WithStatistics(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.BatchNorm(use_running_average=False)(images)
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_a_model_with_state_is_refused_when_it_is_created():
    with pytest.raises(ValueError, match=r"besides its parameters \(batch_stats\).*nn.GroupNorm"):
        create_train_state(0, optax.sgd(0.1), WithStatistics())


def test_two_states_of_the_same_parameters_share_no_memory():
    params = jax.tree.map(jnp.asarray, params_of(make_net(0)))
    for _ in range(2):
        state = create_train_state(jax.random.key(0), optax.adam(1e-3), PLAIN, params)
        train_step(state, batch_of(4))
    assert float(params["fc3"]["bias"].sum()) == pytest.approx(
        make_net(0).fc3.bias.sum().item(), rel=1e-5
    )


@pytest.mark.parametrize(
    "tx",
    [
        optax.contrib.prodigy(),
        optax.contrib.dog(),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2),
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
        optax.polyak_sgd(max_learning_rate=0.05),
        optax.lbfgs(),
    ],
    ids=["prodigy", "dog", "sam", "reduce_on_plateau", "polyak_sgd", "lbfgs"],
)
def test_optimizers_that_keep_the_parameters_or_want_the_loss_are_accepted(tx):
    batch, losses_seen = batch_of(16), []
    state = create_train_state(jax.random.key(0), tx, Linear())
    for _ in range(8):
        state, metrics = train_step(state, batch)
        losses_seen.append(float(metrics["loss"]))
    assert losses_seen[-1] < losses_seen[0]


def test_soft_labels_train_and_their_largest_counts():
    batch = batch_of(8)
    hot = {"image": batch["image"], "label": jax.nn.one_hot(batch["label"], 10)}
    state = create_train_state(jax.random.key(0), optax.sgd(0.1), Linear())
    hard_metrics, soft_metrics = eval_step(state, batch), eval_step(state, hot)
    assert float(hard_metrics["loss"]) == pytest.approx(float(soft_metrics["loss"]), rel=1e-6)
    assert hard_metrics["accuracy"] == soft_metrics["accuracy"]
    _, after = train_step(state, hot)
    assert after["accuracy"] == hard_metrics["accuracy"]


def test_a_state_can_be_replaced_in_part_and_prints_as_one_line():
    state = create_train_state(jax.random.key(0), make_optimizer("adam"), PLAIN)
    assert int(state.replace(step=state.step + 3).step) == 3
    assert repr(state).startswith("TrainState(step=0, params=61,706 numbers, opt_state=")
    assert "\n" not in repr(state)
    with pytest.raises(TypeError, match=r"keep tx = make_optimizer\(...\) and call tx.init"):
        state.tx.init(state.params)


def test_metrics_are_of_the_batch_before_the_update():
    batch = batch_of(32)
    state = create_train_state(jax.random.key(0), make_optimizer("sgd", 0.1), Linear())
    before = eval_step(state, batch)
    _, metrics = train_step(state, batch)
    assert set(metrics) == {"loss", "accuracy"}
    assert metrics["accuracy"] == before["accuracy"]
    assert float(metrics["loss"]) == pytest.approx(float(before["loss"]), rel=1e-6)


@pytest.mark.parametrize("loss_fn", [losses.mse, lambda logits, labels: jnp.sum(logits**2)])
def test_any_loss_and_any_optax_transformation_are_accepted(loss_fn):
    batch = batch_of(16)
    state = create_train_state(jax.random.key(0), optax.lion(1e-3), Linear())
    state, first = train_step(state, batch, loss_fn=loss_fn)
    for _ in range(5):
        state, last = train_step(state, batch, loss_fn=loss_fn)
    assert float(last["loss"]) < float(first["loss"])


def test_a_second_learning_rate_and_a_second_state_do_not_compile_again():
    batch, traces = batch_of(4), []

    def counted(logits, labels):
        traces.append(1)
        return losses.cross_entropy(logits, labels)

    for rate in (0.1, 0.01):
        state = create_train_state(jax.random.key(0), make_optimizer("nesterov", rate), Linear())
        for _ in range(2):
            state, _ = train_step(state, batch, loss_fn=counted)
    assert len(traces) == 1


def test_equal_parts_of_a_batch_make_the_step_of_the_whole():
    state = create_train_state(jax.random.key(0), optax.sgd(0.1), Linear())
    images, labels = random_batch(7, 12)
    wanted, wanted_metrics = jax.jit(update)(state, {"image": images, "label": labels})
    parts = {"image": images.reshape(3, 4, 32, 32, 1), "label": labels.reshape(3, 4)}
    step = lambda batch: update(state, batch, axis_name="parts")
    got, got_metrics = jax.jit(jax.vmap(step, axis_name="parts"))(parts)
    for part in range(3):  # all end alike
        params = jax.tree.map(lambda leaf, part=part: leaf[part], got.params)
        assert largest_difference(params, wanted.params) < 1e-6
        for name, value in wanted_metrics.items():
            assert float(got_metrics[name][part]) == pytest.approx(float(value), rel=1e-6)


def test_a_step_is_pure_under_vmap():
    """Two networks at once are the two networks one after the other."""
    batch = batch_of(4)
    tx = make_optimizer("adam")
    make = lambda key: create_train_state(key, tx, PLAIN)
    keys = jax.random.split(jax.random.key(3), 2)
    together, _ = jax.jit(jax.vmap(update, in_axes=(0, None)))(jax.vmap(make)(keys), batch)
    for i, key in enumerate(keys):
        alone, _ = train_step(make(key), batch)
        member = jax.tree.map(lambda leaf, i=i: leaf[i], together.params)
        assert largest_difference(member, alone.params) < 1e-5


def test_a_batch_that_an_explicit_mesh_shards_makes_the_step_of_one_device():
    states = [create_train_state(jax.random.key(0), optax.sgd(0.1)) for _ in range(2)]
    expected, metrics = train_step(states[0], batch_of(64))
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch_of(64), NamedSharding(mesh, PartitionSpec("data")))
        state, found = train_step(states[1], batch)
    assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    for one, other in zip(
        jax.tree.leaves(expected.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(other, one, atol=1e-7)


def test_a_model_that_does_not_name_its_channels_gets_grey_images():
    class Nameless(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(10)(images.reshape(len(images), -1))

    params = create_train_state(0, optax.sgd(0.1), Nameless()).params
    assert params["Dense_0"]["kernel"].shape == (32 * 32, 10)
