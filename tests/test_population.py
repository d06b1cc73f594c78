from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lenet_jax import augment, create_train_state, data, losses, make_optimizer, population
from lenet_jax.epoch import epoch_order, run_steps
from lenet_jax.optimizers import make_schedule
from lenet_jax.population import Members

B, EPOCHS = 32, 2
MEMBERS = {
    "seeds, rates, smoothing, distortions": Members(
        seed=np.array([0, 1, 2]),
        order_seed=np.array([5, 6, 5]),
        learning_rate=np.array([1e-3, 2e-3, 4e-3]),
        settings={"momentum": np.array([0.5, 0.9, 0.8]), "weight_decay": np.array([0.0, 1e-3, 0])},
        label_smoothing=np.array([0.0, 0.1, 0.2]),
        augment=np.array([0.0, 0.5, 1.0]),
    ),
    "shared batches and numbers": Members(
        seed=np.array([3, 4, 5]), order_seed=7, learning_rate=3e-3, settings={"momentum": 0.9}
    ),
}


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    return jnp.asarray(dataset.train_images[:320]), jnp.asarray(dataset.train_labels[:320])


@pytest.fixture(scope="module", params=MEMBERS)
def trained(request, digits):
    members, reports = MEMBERS[request.param], []
    together = population.train(
        members,
        *digits,
        optimizer="nesterov",
        epochs=EPOCHS,
        batch_size=B,
        slice_size=2,
        report=reports.append,
    )
    return members, together, reports


@jax.jit
def epoch_alone(state, images, labels, order, key, smoothing, strengths):
    return run_steps(
        state,
        images,
        labels,
        order,
        0,
        len(order),
        loss_fn=partial(losses.cross_entropy, label_smoothing=smoothing),
        key=jax.random.fold_in(key, 1),
        strengths=strengths,
    )


def alone(member, images, labels):
    """The same network by the functions for one, step by step as `train` documents them."""
    schedule = make_schedule("onecycle", EPOCHS * (len(labels) // B))
    tx = make_optimizer(
        "nesterov", float(member.learning_rate), schedule=schedule, **member.settings
    )
    state, totals = create_train_state(jax.random.key(int(member.seed)), tx), []
    smoothing = 0.0 if member.label_smoothing is None else float(member.label_smoothing)
    strengths = None if member.augment is None else augment.strengths(float(member.augment))
    for epoch in range(EPOCHS):
        key = jax.random.fold_in(jax.random.key(int(member.order_seed)), epoch)
        order = epoch_order(key, len(labels), batch_size=B)
        state, sums = epoch_alone(state, images, labels, order, key, smoothing, strengths)
        totals.append(float(sums["loss"]) / len(order))
    return state.params, totals


def test_each_member_is_the_network_trained_alone(trained, digits):
    members, together, _ = trained
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i] if np.ndim(leaf) else leaf, members)
        params, totals = alone(member, *digits)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            got = together.params
            for key in path:
                got = got[key.key]
            scale = np.abs(leaf).max()
            np.testing.assert_allclose(got[i] / scale, leaf / scale, atol=5e-5, err_msg=str(path))
        curve = together.curves["loss"][i].reshape(EPOCHS, -1).mean(axis=1)
        np.testing.assert_allclose(curve, totals, rtol=1e-4)


def test_devices_share_the_members(digits):
    assert [population.make_mesh(count).size for count in (1, 2, 3, 8)] == [1, 2, 2, 2]
    mesh = population.make_mesh(2)
    members = Members(seed=np.arange(2))
    states, _ = population.train_steps(
        population.create(members, "sgd"),
        members,
        *digits,
        population.epoch_orders(members, 0, 320, batch_size=B),
        *(0, 0, 1),
        mesh=mesh,
    )
    kernels = states.params["conv2"]["kernel"].addressable_shards
    assert [(shard.device, shard.data.shape[0]) for shard in kernels] == [
        (device, 1) for device in mesh.devices
    ]


def test_members_differ_and_every_update_is_reported(trained):
    _, together, reports = trained
    kernels = together.params["conv2"]["kernel"]
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    assert sum(reports) == 3 * EPOCHS * (320 // B)
    assert together.finite.all()


def test_a_member_that_diverges_is_told_and_disturbs_nobody(digits):
    train = lambda rates: population.train(
        Members(seed=np.arange(len(rates)), learning_rate=np.array(rates)),
        *digits,
        optimizer="sgd",
        epochs=1,
        batch_size=B,
    )
    healthy, ill = train([0.05, 0.1]), train([0.05, 1e20])
    assert healthy.finite.tolist() == [True, True]
    assert ill.finite.tolist() == [True, False]
    for a, b in zip(jax.tree.leaves(healthy.params), jax.tree.leaves(ill.params), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_predictions_are_each_networks_own_and_an_ensemble_is_their_mean_probability(
    trained, digits
):
    _, together, _ = trained
    logits = population.predict(together.params, digits[0][:30], batch_size=20)
    assert logits.shape == (3, 30, 10)
    one = jax.tree.map(lambda leaf: leaf[1:2], together.params)
    np.testing.assert_allclose(
        population.predict(one, digits[0][:30])[0], logits[1], rtol=1e-4, atol=1e-4
    )
    wanted = np.log(special.softmax(np.asarray(logits, float), axis=-1).mean(axis=0))
    np.testing.assert_allclose(population.ensemble(logits), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (Members(seed=np.arange(3), learning_rate=np.ones(2)), r"different lengths: \[2, 3\]"),
        (Members(seed=3), r"members.seed must be \[N\]"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(members, words):
    with pytest.raises(ValueError, match=words):
        population.size(members)
