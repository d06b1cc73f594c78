import dataclasses
from functools import partial

import jax
import numpy as np
import optax
import pytest
from linear import Linear
from scipy import special

from lenet_jax import create_train_state, data, make_optimizer
from lenet_jax.core import augment, losses, ops, population
from lenet_jax.core.epoch import epoch_order, run_steps
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import make_schedule
from lenet_jax.core.population import MemberConfig
from lenet_jax.core.sharding import make_member_mesh
from lenet_jax.core.split import Split, take
from lenet_jax.run import loop
from lenet_jax.run.settings import Settings

B, EPOCHS, N, M = 32, 2, 5, 160
# Compiles faster; for tests that do not depend on the operation.
PLAIN = LeNet(conv_relu_pool=ops.conv_relu_pool_plain)
# Two devices share them: five in one slice are 3 and 2, of whom the last is there twice; in slices
# of at most four they are 2 and 1, likewise filled, and then 1 and 1.
MEMBERS = {
    "seeds, rates, smoothing, augmentation": (
        PLAIN,  # adam makes whole steps of its rounding
        "nesterov",
        N,
        MemberConfig(
            seed=np.arange(N),
            order_seed=np.array([5, 6, 5, 7, 8]),
            learning_rate=np.array([1e-3, 2e-3, 4e-3, 3e-3, 2e-3]),
            optimizer_settings={
                "momentum": np.array([0.5, 0.9, 0.8, 0.6, 0.7]),
                "weight_decay": np.array([0.0, 1e-3, 0.0, 2e-3, 5e-3]),
            },
            label_smoothing=np.array([0.0, 0.1, 0.2, 0.0, 0.1]),
            augment=np.array([0.0, 0.5, 1.0, 1.5, 0.7]),
        ),
    ),
    "shared batches and numbers": (
        PLAIN,
        "adam",
        4,
        MemberConfig(
            seed=[3, 4, 5, 6, 7],
            order_seed=7,
            learning_rate=1e-3,
            # Adam's own epsilon, 1e-8, makes much of the last bits of gradients close to 0.
            optimizer_settings={"betas": (0.8, 0.99), "eps": 1e-3},
        ),
    ),
}


@pytest.fixture(scope="module")
def digits():
    return take(data.load("digits").train, slice(M))


@pytest.fixture(scope="module", params=MEMBERS)
def trained(request, digits):
    (model, optimizer, slice_size, members), reports = MEMBERS[request.param], []
    together = population.train(
        members,
        digits,
        optimizer=optimizer,
        epochs=EPOCHS,
        batch_size=B,
        slice_size=slice_size,
        model=model,
        log_updates=reports.append,
    )
    return model, optimizer, members, together, reports


@jax.jit
def epoch_alone(state, split, order, key, smoothing, augment_config):
    return run_steps(
        state,
        split,
        order,
        0,
        len(order),
        loss_fn=partial(losses.cross_entropy, label_smoothing=smoothing),
        key=jax.random.fold_in(key, 1),
        prepare=augment_config,
    )


def alone(model, optimizer, member, split, kind="elastic"):
    """The same network by the functions for one, step by step as `train` documents them."""
    schedule = make_schedule("onecycle", EPOCHS * (len(split.labels) // B))
    settings = jax.tree.map(float, member.optimizer_settings)
    tx = make_optimizer(optimizer, float(member.learning_rate), schedule=schedule, **settings)
    key = jax.random.fold_in(jax.random.key(int(member.seed)), 0)
    state, totals = create_train_state(key, tx, model), []
    order_key = jax.random.fold_in(jax.random.key(int(member.order_seed)), 1)
    smoothing = 0.0 if member.label_smoothing is None else float(member.label_smoothing)
    amount = member.augment
    config = None if amount is None else augment.augment_config(float(amount), kind)
    for epoch in range(EPOCHS):
        key = jax.random.fold_in(order_key, epoch)
        order = epoch_order(key, len(split.labels), batch_size=B)
        state, sums = epoch_alone(state, split, order, key, smoothing, config)
        totals.append(float(sums["loss"]) / len(order))
    return state.params, totals


def test_each_member_is_the_network_trained_alone(trained, digits):
    model, optimizer, members, together, _ = trained
    (arrays,) = population.slices(members, N)
    for i in range(N):
        member = jax.tree.map(lambda leaf, i=i: leaf[i] if np.ndim(leaf) else leaf, arrays)
        params, totals = alone(model, optimizer, member, digits)
        assert_same_network(together.params, i, params)
        curve = together.curves["loss"][i].reshape(EPOCHS, -1).mean(axis=1)
        np.testing.assert_allclose(curve, totals, rtol=1e-4)


def test_members_on_images_in_colour_are_shifted_and_mirrored_as_one_alone(digits):
    # Of three channels, the shifted images of one: gradients of noise would be only rounding.
    images = np.concatenate([np.roll(digits.images[:64], i, axis=2) for i in range(3)], axis=-1)
    split = Split(images, digits.labels[:64], (0.3, 0.3, 0.2), (0.3, 0.2, 0.3))
    model = LeNet(in_channels=3, conv_relu_pool=ops.conv_relu_pool_plain)
    members = MemberConfig([1, 2], 3, 1e-2, {"momentum": 0.9}, augment=np.array([0.5, 1.0]))
    how = {"epochs": EPOCHS, "batch_size": B, "model": model, "augment_kind": "shift_and_flip"}
    together = population.train(members, split, optimizer="nesterov", **how)
    for i in range(2):
        member = members._replace(seed=members.seed[i], augment=members.augment[i])
        params, _ = alone(model, "nesterov", member, split, "shift_and_flip")
        assert_same_network(together.params, i, params)


def assert_same_network(together, i, params):
    """Member `i` has these parameters, to float32 rounding."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        got = together
        for key in path:
            got = got[key.key]
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(got[i] / scale, leaf / scale, atol=5e-5, err_msg=str(path))


def test_a_member_is_the_network_that_the_command_trains_with_its_seed(tmp_path, digits):
    dataset = data.load("digits")
    dataset = dataclasses.replace(dataset, train=digits)
    settings = Settings(
        optimizer="nesterov", dataset="digits", epochs=1, batch_size=B, augment=0.5, seed=4
    )
    settings = loop.resolve(settings, dataset)
    state = loop.fit(settings, dataset, tmp_path, lambda line: None)
    together = population.train(
        MemberConfig(seed=[3, 4], order_seed=[3, 4], augment=0.5),
        digits,
        optimizer="nesterov",
        epochs=1,
        batch_size=B,
    )
    assert_same_network(together.params, 1, state.params)


def tempered(temperature, logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits / temperature, labels).mean()


def brightened(by, key, images, labels):
    return {"image": (images / 255 - 0.3) * by, "label": labels}


def own_recipe(member):
    numbers = member.numbers
    loss_fn = partial(tempered, numbers["temperature"])
    return (
        optax.adam(member.learning_rate, b1=numbers["b1"]),
        loss_fn,
        partial(brightened, numbers["by"]),
    )


def test_members_of_any_optimizer_loss_and_batch_are_each_the_network_trained_alone(digits):
    members = MemberConfig(
        seed=[0, 1, 2],
        order_seed=[0, 1, 2],
        learning_rate=[1e-3, 2e-3, 3e-3],
        numbers={"temperature": [0.5, 1.0, 2.0], "b1": 0.8, "by": [1.0, 2.0, 3.0]},
    )
    how = {"epochs": 1, "batch_size": B, "model": Linear(), "make": own_recipe}
    together = population.train(members, digits, **how)
    (arrays,) = population.slices(members, 3)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i] if np.ndim(leaf) else leaf, arrays)
        tx, loss_fn, prepare = own_recipe(member)
        state = create_train_state(jax.random.fold_in(jax.random.key(i), 0), tx, Linear())
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(i), 1), 0)
        order = epoch_order(key, M, batch_size=B)
        state, _ = jax.jit(partial(run_steps, loss_fn=loss_fn, prepare=prepare))(
            state, digits, order, 0, len(order), key=key
        )
        assert_same_network(together.params, i, state.params)
    again = population.train(
        members, digits, **how | {"make": lambda member: own_recipe(member)[:1]}
    )
    with pytest.raises(AssertionError):  # with cross-entropy and the usual batches
        assert_same_network(again.params, 0, jax.tree.map(lambda leaf: leaf[0], together.params))


def test_devices_share_the_members(digits):
    mesh = make_member_mesh(2)
    members, make = MemberConfig(seed=np.arange(2)), population.named_recipe("sgd")
    states, _ = population.train_steps(
        population.create(members, make, PLAIN),
        members,
        digits,
        population.epoch_orders(members, 0, M, batch_size=B),
        *(0, 0, 1),
        make=make,
        mesh=mesh,
    )
    kernels = states.params["conv2"]["kernel"].addressable_shards
    assert [(shard.device, shard.data.shape[0]) for shard in kernels] == [
        (device, 1) for device in mesh.devices
    ]


def test_members_differ_and_every_update_is_reported(trained):
    *_, together, reports = trained
    kernels = together.params["conv2"]["kernel"]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels) == N
    assert sum(reports) == N * EPOCHS * (M // B)
    assert together.finite.all()


def test_a_member_that_diverges_is_reported_and_does_not_affect_the_others(digits):
    train = lambda rates: population.train(
        MemberConfig(seed=np.arange(len(rates)), learning_rate=np.array(rates)),
        digits,
        optimizer="sgd",
        epochs=1,
        batch_size=B,
        model=PLAIN,
    )
    # The first two are on one device, in one vmap.
    healthy, ill = train([0.05, 0.1, 0.02, 0.01]), train([0.05, 1e20, 0.02, 0.01])
    assert healthy.finite.tolist() == [True, True, True, True]
    assert ill.finite.tolist() == [True, False, True, True]
    for a, b in zip(jax.tree.leaves(healthy.params), jax.tree.leaves(ill.params), strict=True):
        np.testing.assert_array_equal(np.delete(a, 1, axis=0), np.delete(b, 1, axis=0))


def test_predictions_are_each_networks_own_and_an_ensemble_is_their_mean_probability(
    trained, digits
):
    model, *_, together, _ = trained
    digits = digits._replace(images=digits.images[:30])
    logits = population.predict(together.params, digits, batch_size=20, slice_size=2, model=model)
    assert logits.shape == (N, 30, 10)
    for i in range(N):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together.params)
        wanted = population.predict(one, digits, model=model)[0]
        np.testing.assert_allclose(logits[i], wanted, rtol=1e-4, atol=1e-4)
    wanted = np.log(special.softmax(np.asarray(logits, float), axis=-1).mean(axis=0))
    np.testing.assert_allclose(population.ensemble(logits), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (MemberConfig(seed=np.arange(3), learning_rate=np.ones(2)), r"different lengths: \[2, 3\]"),
        (MemberConfig(seed=[0, 1], learning_rate=[1.0]), r"different lengths: \[1, 2\]"),
        (MemberConfig(seed=3), r"members.seed must be \[N\]"),
        (MemberConfig(seed=[]), r"members.seed must be \[N\]"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(members, words):
    with pytest.raises(ValueError, match=words):
        population.num_members(members)


def test_lists_are_numbers_too():
    listed = MemberConfig(
        seed=[0, 1, 2], learning_rate=[0.1, 0.2, 0.3], optimizer_settings={"momentum": [0, 1, 2]}
    )
    parts = list(population.slices(listed, 2))
    assert [population.num_members(part) for part in parts] == [2, 1]
    assert parts[1].optimizer_settings["momentum"].tolist() == [2]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"slice_size": 0}, "slice_size=0: must be at least 1"),
        ({"batch_size": M + 1}, "batch_size=161 must be from 1 to the number of images, 160"),
    ],
)
def test_numbers_that_leave_nothing_to_do_are_refused(digits, numbers, words):
    with pytest.raises(ValueError, match=words):
        population.train(MemberConfig(seed=[0]), digits, **{"epochs": 1} | numbers)


def test_an_epoch_of_few_steps_has_a_point_for_each():
    assert [len(list(population._iter_chunks(steps))) for steps in (3, 10, 937)] == [3, 10, 10]


def test_what_predictions_need_at_a_time_does_not_grow_with_the_networks(digits):
    """Temporary memory of the compiled program."""
    options = {"xla_backend_optimization_level": 0}  # compiles faster

    make = population.named_recipe("sgd")

    def temporary(number):
        create = partial(population.create, MemberConfig(seed=np.arange(number)), make)
        predict = jax.jit(lambda *args: population.predict(*args, batch_size=320, slice_size=2))
        lowered = predict.lower(jax.eval_shape(create).params, digits)
        return lowered.compile(options).memory_analysis().temp_size_in_bytes

    assert temporary(8) < 1.5 * temporary(2)
