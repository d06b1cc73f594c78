"""What is compiled for a GPU or TPU holds nothing of the form that is written for CPUs."""

import jax
import numpy as np
import pytest

from lenet_jax import create_train_state, make_optimizer, train_epoch
from lenet_jax.core import population
from lenet_jax.core.split import Split

SPLIT = Split(np.zeros((20, 32, 32, 1), np.uint8), np.zeros(20, np.int32), 0.5, 0.3)
MEMBERS = population.MemberConfig(seed=np.arange(2), order_seed=np.arange(2))


@jax.jit
def one_network(split, seed):
    key = jax.random.key(seed)
    state = create_train_state(key, make_optimizer("adam"))
    return train_epoch(state, split, key, batch_size=10)[1]


@jax.jit
def two_networks(split, seed):
    make = population.named_recipe("adam")
    states = population.create(MEMBERS, make)
    orders = population.epoch_orders(MEMBERS, seed, 20, batch_size=10)
    return population.train_steps(states, MEMBERS, split, orders, seed, 0, 2, make=make)[1]


@pytest.mark.parametrize("function", [one_network, two_networks], ids=lambda f: f.__name__)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_training_lowers_to_plain_convolutions(platform, function, monkeypatch):
    jax.clear_caches()  # of traces for the CPU, and below of those for the platform
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    text = jax.export.export(function, platforms=[platform])(SPLIT, 0).mlir_module()
    assert text.count("stablehlo.convolution") >= 5  # two forward, three backward
    for of_the_cpu_form in ("complex", "LayoutConstraint", "optimization_barrier"):
        assert of_the_cpu_form not in text
    jax.clear_caches()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="looks at the form for CPUs")
def test_the_form_for_cpus_would_be_seen():
    with pytest.raises(ValueError, match="LayoutConstraint"):
        jax.export.export(one_network)(SPLIT, 0)
