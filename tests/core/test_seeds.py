import jax
import numpy as np
import pytest

from lenet_jax.core import seeds

data = lambda key: jax.random.key_data(key).tolist()


def test_a_seed_gives_its_keys_and_no_two_are_alike():
    keys = [seeds.init_key(3), *(seeds.epoch_key(3, epoch) for epoch in range(3))]
    keys += [seeds.augment_key(key) for key in keys[1:]]
    keys += [seeds.init_key(4), seeds.epoch_key(4, 0)]
    assert len({tuple(data(key)) for key in keys}) == len(keys)


def test_keys_are_those_that_every_run_so_far_was_made_with():
    base = jax.random.key(7)
    assert data(seeds.init_key(7)) == data(jax.random.fold_in(base, 0))
    order = jax.random.fold_in(jax.random.fold_in(base, 1), 5)
    assert data(seeds.epoch_key(7, 5)) == data(order)
    assert data(seeds.augment_key(order)) == data(jax.random.fold_in(order, 1))


@pytest.mark.parametrize("make", [seeds.init_key, lambda seed: seeds.epoch_key(seed, 2)])
def test_seeds_may_be_data(make):
    together = jax.vmap(make)(np.arange(3, dtype=np.uint32))
    assert data(together) == [data(make(seed)) for seed in range(3)]


def test_an_integer_names_a_key_and_a_key_is_itself():
    key = jax.random.key(3)
    assert data(seeds.as_key(3)) == data(seeds.as_key(np.int32(3))) == data(key)
    assert data(seeds.as_key(key)) == data(key)
    raw = jax.random.PRNGKey(3)  # two integers
    np.testing.assert_array_equal(seeds.as_key(raw), raw)
