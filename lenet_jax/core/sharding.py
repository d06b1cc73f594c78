"""Devices that share a batch, or the members of a population.

The cores of a CPU can be devices, too (`jax.config.update("jax_num_cpu_devices", 2)` before JAX is
used): each computes its part by itself, and they meet once per step or never, where two cores on
one device meet in every operation.

Processes that a caller has joined by `jax.distributed.initialize` share batches, not members. All
make the same calls with the same numbers. On CPUs they meet by gloo, JAX's default
(`jax_cpu_collectives_implementation`), which waits 30 s for the last of them. Two processes of one
device give the bits of one process of two if `NPROC` is the same; more add up in another order.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lenet_jax.core import ops

BATCH, MEMBERS = "batch", "members"  # the axes' names


def make_batch_mesh(batch_size: int) -> Mesh:
    """The devices that share each batch: as many as get equal parts, none too small to be worth it.

    It takes equally many of each process, at least one. Of GPUs and TPUs it takes one, since what
    they would lose in waiting has not been measured; they share batches over any mesh whose one
    axis is named `BATCH`.

    Raises:
      ValueError: the batch has no equal parts for all processes.
    """
    groups = [jax.local_devices(process_index=index) for index in range(jax.process_count())]
    share, rest = divmod(batch_size, len(groups))
    if rest:
        raise ValueError(f"batch_size={batch_size} has no equal parts for {len(groups)} processes")
    most = min(map(len, groups)) if jax.default_backend() == "cpu" else 1
    worth_it = lambda count: share % count == 0 and share // count >= ops.MAX_TILE_BATCH
    count = max(filter(worth_it, range(2, most + 1)), default=1)
    return _mesh([device for group in groups for device in group[:count]], BATCH)


def make_member_mesh(num_members: int) -> Mesh:
    """The devices of this process that members are spread over: as many as shorten the work."""
    devices = jax.local_devices()
    rounds = -(-num_members // len(devices))
    return _mesh(devices[: -(-num_members // rounds)], MEMBERS)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, all of each on every device of the mesh.

    Processes that share it give the same numbers, unchecked: `device_put` would send all to all.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    put = lambda leaf: jax.make_array_from_callback(np.shape(leaf), sharding, lambda _: leaf)
    return jax.tree.map(put, tree)


def shard(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, spread over the devices of the mesh along their first axes."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def unreplicate(tree: Any) -> Any:
    """The tree's arrays on the first of their devices in this process, not copied."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _mesh(devices: Sequence[jax.Device], axis: str) -> Mesh:
    return jax.make_mesh((len(devices),), (axis,), (AxisType.Auto,), devices=devices)
