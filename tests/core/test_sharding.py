import jax
import jax.numpy as jnp
import numpy as np

from lenet_jax.core.sharding import (
    make_batch_mesh,
    make_member_mesh,
    replicate,
    shard,
    unreplicate,
)


def test_only_equal_parts_of_32_images_or_more_are_shared():
    sizes = {64: 2, 65: 1, 62: 1, 66: 2, 16: 1, 1024: 2}
    assert {batch_size: make_batch_mesh(batch_size).size for batch_size in sizes} == sizes


def test_of_gpus_one_takes_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert make_batch_mesh(1024).size == 1


def test_as_many_devices_take_members_as_shorten_the_work():
    assert [make_member_mesh(count).size for count in (1, 2, 3, 8)] == [1, 2, 2, 2]


def test_a_tree_is_on_every_device_and_again_on_one():
    mesh, tree = make_batch_mesh(64), {"a": np.arange(6), "b": 0.5}
    everywhere = replicate(mesh, tree)
    assert everywhere["a"].sharding.device_set == set(mesh.devices)
    for copy in everywhere["a"].addressable_shards:
        np.testing.assert_array_equal(copy.data, tree["a"])
    once = unreplicate(everywhere)
    assert once["a"].devices() == {mesh.devices[0]}
    np.testing.assert_array_equal(once["a"], tree["a"])


def test_members_are_spread_along_the_first_axis():
    mesh = make_member_mesh(4)
    spread = shard(mesh, jnp.arange(8).reshape(4, 2))
    parts = [part.data.tolist() for part in spread.addressable_shards]
    assert parts == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
