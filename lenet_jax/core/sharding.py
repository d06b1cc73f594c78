"""Devices that share a batch, or the members of a population.

Each core of a CPU can be a device (`jax.config.update("jax_num_cpu_devices", 2)` before JAX is
used). Such devices synchronise once per step or never, whereas two cores of one device synchronise
in every operation.

Processes that a caller has joined by `jax.distributed.initialize` share batches, not members. All
must make the same calls with the same numbers. On CPUs they communicate by gloo, JAX's default
(`jax_cpu_collectives_implementation`), which waits 30 s for the last process. With the same `NPROC`
two processes of one device give the same bits as one process of two devices; more than two add
gradients in another order.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lenet_jax.core import ops

BATCH, MEMBERS = "batch", "members"  # names of mesh axes


def make_batch_mesh(batch_size: int) -> Mesh:
    """As many devices as can share each batch equally, with at least MAX_TILE_BATCH images each.

    Every process contributes the same number of devices, at least one. GPUs and TPUs contribute one
    each, because the cost of synchronising more has not been measured; a mesh with a single axis
    named `BATCH` lets any number share batches.

    Raises:
      ValueError: the batch cannot be divided equally among all processes.
    """
    groups = [jax.local_devices(process_index=index) for index in range(jax.process_count())]
    share, rest = divmod(batch_size, len(groups))
    if rest:
        raise ValueError(f"batch_size={batch_size} cannot be divided among {len(groups)} processes")
    most = min(map(len, groups)) if jax.default_backend() == "cpu" else 1
    worth_it = lambda count: share % count == 0 and share // count >= ops.MAX_TILE_BATCH
    count = max(filter(worth_it, range(2, most + 1)), default=1)
    return _mesh([device for group in groups for device in group[:count]], BATCH)


def make_member_mesh(num_members: int) -> Mesh:
    """The devices of this process that share the members: as many as shorten the training."""
    devices = jax.local_devices()
    rounds = -(-num_members // len(devices))
    return _mesh(devices[: -(-num_members // rounds)], MEMBERS)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies the tree's arrays to every device of the mesh.

    All processes must pass the same numbers, which is not checked: `device_put` would check it by
    sending every array to all of them.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    put = lambda leaf: jax.make_array_from_callback(np.shape(leaf), sharding, lambda _: leaf)
    return jax.tree.map(put, tree)


def shard(mesh: Mesh, tree: Any) -> Any:
    """Distributes the tree's arrays over the devices of the mesh along their first axes."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def unreplicate(tree: Any) -> Any:
    """The tree's arrays on their first device in this process, without a copy."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _mesh(devices: Sequence[jax.Device], axis: str) -> Mesh:
    return jax.make_mesh((len(devices),), (axis,), (AxisType.Auto,), devices=devices)
