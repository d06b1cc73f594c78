"""What throughput.py times of JAX: training steps and forward passes of ours and of usual Flax.

"Cores as devices" is for CPUs. On a GPU or TPU, `LeNet` has the usual form of a convolution, and
further rows have it as matrix products over patches; so it is with --smoke, to try these rows.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _batches import NUM_BATCHES, NUM_MEMBERS, make_batches
from _patches import conv_relu_pool_patches
from _results import describe_machine
from _timed import Row
from _usual_flax import UsualLeNet, usual_state, usual_step
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lenet_jax import LeNet, cli, create_train_state, make_optimizer, train_step, update
from lenet_jax.core import ops
from lenet_jax.core.jit import jit
from lenet_jax.core.sharding import BATCH, MEMBERS, make_batch_mesh, make_member_mesh

on_cpu = True  # else: the rows of a GPU or TPU


def describe(smoke: bool) -> dict[str, Any]:
    """Starts JAX, and describes the machine with its devices."""
    global on_cpu
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory to PyTorch
    cli.start_jax(cache=False, cores_are_devices=True)
    on_cpu = jax.default_backend() == "cpu" and not smoke
    return describe_machine()


def make(group: str, batch_size: int) -> dict[str, Row]:
    return {
        "training": training_rows,
        "colour": colour_rows,
        "members": member_rows,
        "inference": inference_rows,
    }[group](batch_size)


def our_state(key: jax.Array, channels: int = 1, op: Callable | None = None):
    op = op or (ops.conv_relu_pool if on_cpu else ops.conv_relu_pool_plain)
    model = LeNet(in_channels=channels, conv_relu_pool=op)
    return create_train_state(key, make_optimizer("adam"), model)


def our_step(state, batch: dict):
    return update(state, batch)[0]


def stepwise_row(step: Callable, state, batches: dict) -> Row:
    """One jitted call per step, which consumes its state."""
    pieces = [jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in range(NUM_BATCHES)]
    box = [state]

    def run(steps: int) -> None:
        for i in range(steps):
            box[0] = step(box[0], pieces[i % NUM_BATCHES])
        jax.block_until_ready(box[0])

    return run


def scan_row(step: Callable, state, batches: dict, compile_with: Callable = jax.jit) -> Row:
    """All steps in one compiled function; their number is an argument, so it compiles once."""

    @compile_with
    def steps_of(state, batches: dict, steps: jax.Array):
        def body(i: jax.Array, state):
            return step(state, jax.tree.map(lambda leaf: leaf[i % NUM_BATCHES], batches))

        return jax.lax.fori_loop(0, steps, body, state)

    box = [state]

    def run(steps: int) -> None:
        box[0] = jax.block_until_ready(steps_of(box[0], batches, steps))

    return run


def cores_row(
    step: Callable,
    state,
    batches: dict,
    mesh: Mesh,
    state_spec: PartitionSpec,
    batch_spec: PartitionSpec,
) -> Row:
    """`scan_row` with the cores as devices; the specs divide state and batches among them."""

    def compile_with(f: Callable) -> Callable:
        specs = (state_spec, batch_spec, PartitionSpec())
        shared = {"mesh": mesh, "in_specs": specs, "out_specs": state_spec, "check_vma": False}
        return jit(jax.shard_map(f, **shared))

    state = jax.device_put(state, NamedSharding(mesh, state_spec))
    batches = jax.device_put(batches, NamedSharding(mesh, batch_spec))
    return scan_row(step, state, batches, compile_with)


def our_cores_row(batches: dict, batch_size: int) -> Row:
    """One network; the cores share its batches."""
    step = lambda state, batch: update(state, batch, axis_name=BATCH)[0]
    mesh, batch_sharded = make_batch_mesh(batch_size), PartitionSpec(None, BATCH)
    state = our_state(jax.random.key(0), batches["image"].shape[-1])
    if mesh.size == 1:
        return scan_row(our_step, state, batches, jit)
    return cores_row(step, state, batches, mesh, PartitionSpec(), batch_sharded)


def batches_of(batch_size: int, channels: int = 1) -> dict[str, jax.Array]:
    images, labels = make_batches(batch_size, channels)
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


def training_rows(batch_size: int) -> dict[str, Row]:
    batches, key = batches_of(batch_size), jax.random.key(0)
    rows = {
        "usual Flax, step by step": stepwise_row(
            jax.jit(usual_step, donate_argnums=0), usual_state(key), batches
        ),
        "usual Flax, in a scan": scan_row(usual_step, usual_state(key), batches),
        "ours, step by step": stepwise_row(
            lambda state, batch: train_step(state, batch)[0], our_state(key), batches
        ),
        "ours, in a scan": scan_row(our_step, our_state(key), batches, jit),
    }
    if on_cpu:
        return rows | {"ours, cores as devices": our_cores_row(batches, batch_size)}
    patches = our_state(key, 1, conv_relu_pool_patches)
    return rows | {"ours with patches, in a scan": scan_row(our_step, patches, batches, jit)}


def colour_rows(batch_size: int) -> dict[str, Row]:
    batches = batches_of(batch_size, 3)
    state = our_state(jax.random.key(0), 3)
    rows = {"ours, in a scan, 3 channels": scan_row(our_step, state, batches, jit)}
    if on_cpu:
        rows["ours, cores as devices, 3 channels"] = our_cores_row(batches, batch_size)
    return rows


def member_rows(batch_size: int) -> dict[str, Row]:
    """NUM_MEMBERS networks that see the same batches."""
    batches = batches_of(batch_size)
    keys = jax.random.split(jax.random.key(0), NUM_MEMBERS)
    together = lambda step: jax.vmap(step, in_axes=(0, None))
    our_scan = lambda states: scan_row(together(our_step), states, batches, jit)
    rows = {
        "usual Flax, vmap in a scan": scan_row(
            together(usual_step), jax.vmap(usual_state)(keys), batches
        ),
        "ours, vmap in a scan": our_scan(jax.vmap(our_state)(keys)),
    }
    if on_cpu:
        mesh, members = make_member_mesh(NUM_MEMBERS), PartitionSpec(MEMBERS)
        rows["ours, vmap, cores as devices"] = cores_row(
            together(our_step), jax.vmap(our_state)(keys), batches, mesh, members, PartitionSpec()
        )
        return rows
    patches = lambda key: our_state(key, 1, conv_relu_pool_patches)
    return rows | {"ours with patches, vmap in a scan": our_scan(jax.vmap(patches)(keys))}


def inference_rows(batch_size: int) -> dict[str, Row]:
    ours, usual = our_state(jax.random.key(0)), usual_state(jax.random.key(0))
    arrays = list(batches_of(batch_size)["image"])

    def row(forward: Callable, params: dict, arrays: list[jax.Array]) -> Row:
        def run(steps: int) -> None:
            for step in range(steps):
                logits = forward({"params": params}, arrays[step % NUM_BATCHES])
            logits.block_until_ready()

        return run

    rows = {
        "usual Flax": row(jax.jit(UsualLeNet().apply), usual[0], arrays),
        "ours": row(jit(ours.model.apply), ours.params, arrays),
    }
    if on_cpu:
        mesh, each = make_batch_mesh(batch_size), PartitionSpec(BATCH)
        specs = {"in_specs": (PartitionSpec(), each), "out_specs": each, "check_vma": False}
        forward = jit(jax.shard_map(ours.model.apply, mesh=mesh, **specs))
        params = jax.device_put(ours.params, NamedSharding(mesh, PartitionSpec()))
        shared = jax.device_put(arrays, NamedSharding(mesh, each))
        rows["ours, cores as devices"] = row(forward, params, shared)
    return rows
