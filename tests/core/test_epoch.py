from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import Linear

from lenet_jax.core import losses, ops
from lenet_jax.core.augment import augment_config
from lenet_jax.core.epoch import (
    epoch_order,
    evaluate,
    normalize,
    predict,
    train_epoch,
    train_steps,
)
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import make_optimizer
from lenet_jax.core.sharding import make_batch_mesh, replicate
from lenet_jax.core.split import Split
from lenet_jax.core.step import create_train_state, eval_step, train_step

N, B = 50, 8


def random_split(count: int, channels: int = 1) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, channels)).astype(np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
    mean, std = (0.5, 0.3) if channels == 1 else ((0.5, 0.4, 0.3), (0.3, 0.2, 0.25))
    return Split(jnp.asarray(images), jnp.asarray(labels), mean=mean, std=std)


@pytest.fixture(scope="module")
def split() -> Split:
    return random_split(N)


# Compiles faster; for tests that do not depend on the operation.
PLAIN = LeNet(conv_relu_pool=ops.conv_relu_pool_plain)


def fresh_state(model=None):
    model = model or Linear()
    return create_train_state(jax.random.key(0), make_optimizer("adam"), model)


def assert_same_params(a, b, rtol=0.0) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)


def as_floats(images, labels):
    return images / 255, labels, B


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (as_floats, TypeError, "images must be uint8 pixels from 0 to 255, got float32"),
        (lambda images, labels: (images, labels[1:], B), ValueError, "got 49 and 50"),
        (lambda images, labels: (images[1:], labels, B), ValueError, "got 50 and 49"),
        (lambda images, labels: (images, labels, N + 1), ValueError, "batch_size=51"),
        (lambda images, labels: (images, labels, 0), ValueError, "batch_size=0"),
        (
            lambda images, labels: (images.transpose(0, 3, 1, 2), labels, B),
            ValueError,
            r"got \[50, 1, 32, 32\]; channels come last: images.transpose\(0, 2, 3, 1\)",
        ),
    ],
    ids=["float", "a label too few", "a label too many", "less than a batch", "empty", "PyTorch's"],
)
def test_an_epoch_says_what_is_wrong_with_its_data(split, spoil, error, match):
    images, labels, batch_size = spoil(split.images, split.labels)
    split = split._replace(images=images, labels=labels)
    state = fresh_state()
    with pytest.raises(error, match=match):
        train_epoch(state, split, jax.random.key(0), batch_size=batch_size)
    assert int(state.step) == 0  # nothing was consumed


def test_logits_are_only_made_of_pixels(split):
    state = fresh_state()
    with pytest.raises(TypeError, match="uint8"):
        predict(state.model, state.params, split._replace(images=split.images / 255))


def test_augmented_images_need_a_key(split):
    order = epoch_order(jax.random.key(0), N, batch_size=B)
    with pytest.raises(ValueError, match="prepare needs a key"):
        train_steps(fresh_state(), split, order, 0, 1, prepare=augment_config(1.0))


def test_logits_need_no_labels(split):
    state = fresh_state()
    logits = predict(state.model, state.params, split._replace(labels=None))
    np.testing.assert_array_equal(logits, predict(state.model, state.params, split))


def test_an_epochs_order_holds_every_index_once_and_drops_the_rest():
    order = np.asarray(epoch_order(jax.random.key(1), N, batch_size=B))
    assert order.shape == (6, B)
    assert len(np.unique(order)) == 48
    assert set(order.ravel()) <= set(range(N))
    other = np.asarray(epoch_order(jax.random.key(2), N, batch_size=B))
    assert not np.array_equal(order, other)


def test_normalised_pixels_are_float64_numpys():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    wanted = (images.astype(np.float64) / 255 - 0.1307) / 0.3081
    got = jax.jit(normalize)(images, 0.1307, 0.3081)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=4 * 2**-24 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", [tuple, list, jnp.array])
def test_channels_are_normalised_each_by_its_own_numbers(kind):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    got = jax.jit(normalize)(images, kind(mean), kind(std))
    assert got.dtype == jnp.float32
    for channel in range(3):
        wanted = (images[..., channel].astype(np.float64) / 255 - mean[channel]) / std[channel]
        limit = 4 * 2**-24 * np.abs(wanted).max()
        np.testing.assert_allclose(got[..., channel], wanted, rtol=0, atol=limit)


def test_an_epoch_is_its_steps_one_after_the_other(split):
    images, labels = split.images, split.labels
    key = jax.random.key(3)
    state, losses_of_steps, accuracies = fresh_state(LeNet()), [], []
    for rows in epoch_order(key, N, batch_size=B):
        batch = {"image": normalize(images[rows], 0.5, 0.3), "label": labels[rows]}
        state, metrics = train_step(state, batch)
        losses_of_steps.append(float(metrics["loss"]))
        accuracies.append(float(metrics["accuracy"]))
    epoch_state, metrics = train_epoch(fresh_state(LeNet()), split, key, batch_size=B)
    assert int(epoch_state.step) == 6
    # adam divides by the root of a squared gradient: rounding of 1e-7 comes out as some 1e-5
    assert_same_params(epoch_state.params, state.params, rtol=2e-5)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses_of_steps), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(accuracies), rel=1e-6)


def test_parts_of_an_epoch_add_up_bit_for_bit_and_compile_once(split):
    order = epoch_order(jax.random.key(4), N, batch_size=B)
    traces = []

    def counted(logits, labels):
        traces.append(1)
        return losses.cross_entropy(logits, labels)

    whole, sums = train_steps(fresh_state(), split, order, 0, 6, loss_fn=counted)
    traced = len(traces)
    state, total = fresh_state(), 0.0
    for start, stop in [(0, 1), (1, 4), (4, 6)]:
        state, part = train_steps(state, split, order, start, stop, loss_fn=counted)
        total += float(part["loss"])
    assert_same_params(state.params, whole.params)
    assert total == pytest.approx(float(sums["loss"]), rel=1e-6)
    assert len(traces) == traced


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (LeNet(), None),
        (PLAIN, augment_config(1.0)),
        (PLAIN.clone(in_channels=3), augment_config(1.0, "shift_and_flip")),
    ],
    ids=["plain", "augmented", "colour"],
)
def test_two_devices_that_share_batches_do_what_one_does(model, config):
    # Few steps: with more, some activation lies so close to the kink of a ReLU, or two of a pool so
    # close together, that rounding moves it across, and the gradients differ by more than rounding.
    split = random_split(128, model.in_channels)
    how = {"batch_size": 64, "prepare": config}
    key, mesh = jax.random.key(5), make_batch_mesh(64)
    # sgd: adam makes whole steps of gradients that are only rounding
    fresh = lambda: create_train_state(jax.random.key(0), make_optimizer("sgd", 0.1), model)
    alone, wanted = train_epoch(fresh(), split, key, **how)
    arguments = replicate(mesh, (fresh(), split))
    together, got = train_epoch(*arguments, key, mesh=mesh, **how)
    assert_same_params(together.params, alone.params, rtol=2e-5)
    assert float(got["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-6)
    assert float(got["accuracy"]) == pytest.approx(float(wanted["accuracy"]), rel=1e-6)
    shards = together.params["fc1"]["kernel"].addressable_shards
    assert [shard.device for shard in shards] == list(mesh.devices)
    np.testing.assert_array_equal(*(shard.data for shard in shards))


def mixup(split, key, images, labels):
    share = jax.random.beta(key, 0.4, 0.4)
    mix = lambda array: share * array + (1 - share) * array[::-1]
    images = normalize(images, split.mean, split.std)
    return {"image": mix(images), "label": mix(jax.nn.one_hot(labels, 10))}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_epoch_of_prepared_batches_is_its_steps_one_after_the_other(channels):
    split, key = random_split(N, channels), jax.random.key(3)
    fresh = lambda: fresh_state(Linear(channels))
    state, augment_key = fresh(), jax.random.fold_in(key, 1)
    for i, rows in enumerate(epoch_order(key, N, batch_size=B)):
        step_key = jax.random.fold_in(augment_key, i)
        state, _ = train_step(state, mixup(split, step_key, split.images[rows], split.labels[rows]))
    prepare = partial(mixup, split)
    got, _ = train_epoch(fresh(), split, key, batch_size=B, prepare=prepare)
    assert_same_params(got.params, state.params, rtol=2e-5)
    if channels == 1:  # compiled for other tests, too
        plain, _ = train_epoch(fresh(), split, key, batch_size=B)
        with pytest.raises(AssertionError):
            assert_same_params(plain.params, got.params, rtol=2e-3)


def noise(count, key, images, labels):
    """Images of draws alone: `count` keys for as many equal parts of the batch."""
    keys = [key] if count == 1 else [jax.random.fold_in(key, part) for part in range(count)]
    shape = (len(images) // count, *images.shape[1:])
    return {"image": jnp.concatenate([jax.random.normal(k, shape) for k in keys]), "label": labels}


def test_each_device_prepares_its_part_of_a_batch_by_a_key_of_its_own():
    split, key, mesh = random_split(128), jax.random.key(5), make_batch_mesh(64)
    fresh = lambda: create_train_state(0, make_optimizer("sgd", 0.1), Linear())
    how = {"batch_size": 64, "key": key}
    wanted, _ = train_epoch(fresh(), split, prepare=partial(noise, 2), **how)
    arguments = replicate(mesh, (fresh(), split))
    got, _ = train_epoch(*arguments, prepare=partial(noise, 1), mesh=mesh, **how)
    assert_same_params(got.params, wanted.params, rtol=2e-5)


def test_losses_and_prepare_with_arrays_work_on_a_mesh():
    split, key, mesh = random_split(64), jax.random.key(5), make_batch_mesh(64)
    weight = np.linspace(0.5, 2, 10, dtype=np.float32)
    loss_fn = lambda weight: partial(losses.bce_with_logits, pos_weight=weight)
    fresh = lambda: create_train_state(0, make_optimizer("sgd", 0.1), Linear())
    scaled = lambda by, key, images, labels: {"image": by * images / 255, "label": labels}
    how = {"batch_size": 64, "key": key, "loss_fn": loss_fn(weight)}
    how["prepare"] = partial(scaled, np.float32(0.5))
    alone, _ = train_epoch(fresh(), split, **how)
    got, _ = train_epoch(*replicate(mesh, (fresh(), split)), mesh=mesh, **how)
    assert_same_params(got.params, alone.params, rtol=2e-5)
    unweighted, _ = train_epoch(fresh(), split, **how | {"loss_fn": losses.bce_with_logits})
    with pytest.raises(AssertionError):
        assert_same_params(unweighted.params, alone.params, rtol=2e-5)


def test_what_prepare_returns_is_checked_as_a_batch_is(split):
    raw = lambda key, images, labels: {"image": images, "label": labels}
    state = fresh_state()
    with pytest.raises(TypeError, match=r"got uint8: normalise pixels by lenet_jax.normalize"):
        train_epoch(state, split, jax.random.key(0), batch_size=B, prepare=raw)
    assert int(state.step) == 0  # nothing was consumed


def test_an_integer_is_a_key(split):
    got, _ = train_epoch(fresh_state(), split, 7, batch_size=B)
    wanted, _ = train_epoch(fresh_state(), split, jax.random.key(7), batch_size=B)
    assert_same_params(got.params, wanted.params)


@pytest.mark.parametrize("batch_size", [1000, 50, 7, 49], ids=lambda b: f"batch{b}")
def test_evaluation_counts_every_example_once(split, batch_size):
    """A last batch of 1 (49), of its own size (7), none (50), and all in one (1000)."""
    state = fresh_state()
    got = evaluate(state, split, batch_size=batch_size)
    batch = {"image": normalize(split.images, 0.5, 0.3), "label": split.labels}
    wanted = eval_step(state, batch)
    assert float(got["accuracy"]) == pytest.approx(float(wanted["accuracy"]), rel=1e-6)
    assert float(got["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-6)


def test_evaluation_uses_the_given_loss(split):
    state = fresh_state()
    by_mse = evaluate(state, split, loss_fn=losses.mse)
    by_cross_entropy = evaluate(state, split)
    assert float(by_mse["loss"]) < 1 < float(by_cross_entropy["loss"])


def test_an_epoch_vmaps_over_networks(split):
    tx = make_optimizer("sgd", 0.1)
    make = lambda seed: create_train_state(jax.random.key(seed), tx, Linear())
    epoch = lambda state, key: train_epoch(state, split, key, batch_size=25)
    seeds = jnp.arange(2)
    keys = jax.vmap(jax.random.key)(seeds + 10)
    together, metrics = jax.jit(jax.vmap(epoch))(jax.vmap(make)(seeds), keys)
    assert metrics["loss"].shape == (2,)
    for i in range(2):
        alone, _ = epoch(make(seeds[i]), keys[i])
        assert_same_params(
            jax.tree.map(lambda leaf, i=i: leaf[i], together.params), alone.params, rtol=1e-5
        )


def test_a_batch_is_of_64_images_by_default():
    images, labels = jnp.zeros((128, 32, 32, 1), jnp.uint8), jnp.arange(128) % 10
    state = create_train_state(0, make_optimizer("sgd"), Linear())
    state, _ = train_epoch(state, Split(images, labels, 0.5, 0.5), 0)
    assert int(state.step) == 2
