"""Devices that share a batch, or the members of a population.

The cores of a CPU can be devices, too (`jax.config.update("jax_num_cpu_devices", 2)` before JAX is
used): each computes its part by itself, and they meet once per step or never, where two cores on
one device meet in every operation.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lenet_jax.core import ops

BATCH, MEMBERS = "batch", "members"  # the axes' names


def make_batch_mesh(batch_size: int) -> Mesh:
    """The devices that share each batch: as many as get equal parts, none too small to be worth it.

    Of GPUs and TPUs it takes one, since what they would lose in waiting has not been measured; they
    share batches over any mesh whose one axis is named `BATCH`.
    """
    worth_it = lambda count: batch_size % count == 0 and batch_size // count >= ops.MAX_TILE_BATCH
    devices = jax.devices() if jax.default_backend() == "cpu" else jax.devices()[:1]
    count = max(filter(worth_it, range(2, len(devices) + 1)), default=1)
    return _mesh(count, BATCH)


def make_member_mesh(num_members: int) -> Mesh:
    """The devices that members are spread over: as many as shorten the work."""
    rounds = -(-num_members // len(jax.devices()))
    return _mesh(-(-num_members // rounds), MEMBERS)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, all of each on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, spread over the devices of the mesh along their first axes."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def unreplicate(tree: Any) -> Any:
    """The tree's arrays on the first of their devices, not copied."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _mesh(count: int, axis: str) -> Mesh:
    return jax.make_mesh((count,), (axis,), (AxisType.Auto,), devices=jax.devices()[:count])
