"""What throughput.py times: training steps and forward passes of PyTorch, usual Flax and ours.

A row is a function that runs a given number of steps and waits for the last one. All rows of a
table see the same batches: NUM_BATCHES different ones of random pixels, in memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from _usual_flax import UsualLeNet, usual_state, usual_step
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tutorial_net import Net

from lenet_jax import LeNet, create_train_state, make_optimizer, train_step, update
from lenet_jax.core.jit import jit
from lenet_jax.core.sharding import BATCH, MEMBERS, make_batch_mesh, make_member_mesh

NUM_MEMBERS = 8
NUM_BATCHES = 4  # different ones, so that no cache sees the same pixels every step

# PyTorch's forms, each with Adam(fused=True): memory layout, and whether it is compiled.
TORCH_FORMS = {
    "PyTorch eager, contiguous": (torch.contiguous_format, False),
    "PyTorch eager, channels-last": (torch.channels_last, False),
    "PyTorch torch.compile, contiguous": (torch.contiguous_format, True),
    "PyTorch torch.compile, channels-last": (torch.channels_last, True),
}

Row = Callable[[int], None]  # runs that many steps and waits for the last


def make_batches(batch_size: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((NUM_BATCHES, batch_size, 32, 32, channels)).astype(np.float32)
    return images, rng.integers(0, 10, (NUM_BATCHES, batch_size)).astype(np.int32)


def torch_form(form: str, images: np.ndarray) -> tuple[Net, Callable, list[torch.Tensor]]:
    """The network, the function that computes its logits, and the batches in its layout."""
    layout, compiled = TORCH_FORMS[form]
    net = Net(in_channels=images.shape[-1]).to(memory_format=layout)
    pixels = torch.from_numpy(images.transpose(0, 1, 4, 2, 3).copy())
    batches = [batch.to(memory_format=layout) for batch in pixels]
    return net, torch.compile(net) if compiled else net, batches


def torch_row(form: str, images: np.ndarray, labels: np.ndarray) -> Row:
    net, forward, batches = torch_form(form, images)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    targets = torch.from_numpy(labels).long()

    def run(steps: int) -> None:
        for step in range(steps):
            i = step % NUM_BATCHES
            optimizer.zero_grad()
            F.cross_entropy(forward(batches[i]), targets[i]).backward()
            optimizer.step()

    return run


def our_state(key: jax.Array, channels: int = 1):
    return create_train_state(key, make_optimizer("adam"), LeNet(in_channels=channels))


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


def torch_members_row(images: np.ndarray, labels: np.ndarray) -> Row:
    """NUM_MEMBERS networks by torch.func, with plain SGD instead of adam, which is less work."""
    nets = [Net() for _ in range(NUM_MEMBERS)]
    params, buffers = torch.func.stack_module_state(nets)
    base = Net().to("meta")
    pixels = torch.from_numpy(images.transpose(0, 1, 4, 2, 3).copy())
    targets = torch.from_numpy(labels).long()

    def loss_of(params: dict, buffers: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(base, (params, buffers), (x,)), y)

    gradients = torch.func.vmap(torch.func.grad(loss_of), in_dims=(0, 0, None, None))

    def run(steps: int) -> None:
        for step in range(steps):
            i = step % NUM_BATCHES
            grads = gradients(params, buffers, pixels[i], targets[i])
            with torch.no_grad():
                for name, leaf in params.items():
                    leaf -= 1e-3 * grads[name]

    return run


def training_rows(batch_size: int) -> dict[str, Row]:
    images, labels = make_batches(batch_size)
    batches = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    key = jax.random.key(0)
    return {
        **{form: torch_row(form, images, labels) for form in TORCH_FORMS},
        "usual Flax, step by step": stepwise_row(
            jax.jit(usual_step, donate_argnums=0), usual_state(key), batches
        ),
        "usual Flax, in a scan": scan_row(usual_step, usual_state(key), batches),
        "ours, step by step": stepwise_row(
            lambda state, batch: train_step(state, batch)[0], our_state(key), batches
        ),
        "ours, in a scan": scan_row(our_step, our_state(key), batches, jit),
        "ours, cores as devices": our_cores_row(batches, batch_size),
    }


def colour_rows(batch_size: int) -> dict[str, Row]:
    """Training on images of 3 channels, and our rows on images of 1 channel, too."""
    rows, key = {}, jax.random.key(0)
    for channels in (3, 1):
        images, labels = make_batches(batch_size, channels)
        batches = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
        of = "3 channels" if channels == 3 else "1 channel"
        if channels == 3:
            rows |= {f"{form}, {of}": torch_row(form, images, labels) for form in TORCH_FORMS}
        rows[f"ours in a scan, {of}"] = scan_row(our_step, our_state(key, channels), batches, jit)
        rows[f"ours, cores as devices, {of}"] = our_cores_row(batches, batch_size)
    return rows


def member_rows(batch_size: int) -> dict[str, Row]:
    """NUM_MEMBERS networks that see the same batches."""
    images, labels = make_batches(batch_size)
    batches = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    keys = jax.random.split(jax.random.key(0), NUM_MEMBERS)
    together = lambda step: jax.vmap(step, in_axes=(0, None))
    return {
        "PyTorch torch.func": torch_members_row(images, labels),
        "PyTorch eager, channels-last, one network": torch_row(
            "PyTorch eager, channels-last", images, labels
        ),
        "usual Flax, vmap in a scan": scan_row(
            together(usual_step), jax.vmap(usual_state)(keys), batches
        ),
        "ours, vmap in a scan": scan_row(
            together(our_step), jax.vmap(our_state)(keys), batches, jit
        ),
        "ours, vmap, cores as devices": cores_row(
            together(our_step),
            jax.vmap(our_state)(keys),
            batches,
            make_member_mesh(NUM_MEMBERS),
            PartitionSpec(MEMBERS),
            PartitionSpec(),
        ),
        "ours, one network in a scan": scan_row(our_step, our_state(keys[0]), batches, jit),
        "ours, one network, cores as devices": our_cores_row(batches, batch_size),
    }


def inference_rows(batch_size: int) -> dict[str, Row]:
    images, _ = make_batches(batch_size)
    ours, usual = our_state(jax.random.key(0)), usual_state(jax.random.key(0))
    arrays = list(jnp.asarray(images))

    def torch_forward(form: str) -> Row:
        _, forward, batches = torch_form(form, images)

        def run(steps: int) -> None:
            with torch.inference_mode():
                for step in range(steps):
                    forward(batches[step % NUM_BATCHES])

        return run

    def jax_forward(forward: Callable, params: dict, arrays: list[jax.Array]) -> Row:
        def run(steps: int) -> None:
            for step in range(steps):
                logits = forward({"params": params}, arrays[step % NUM_BATCHES])
            logits.block_until_ready()

        return run

    def cores_forward() -> Row:
        mesh, rows = make_batch_mesh(batch_size), PartitionSpec(BATCH)
        specs = {"in_specs": (PartitionSpec(), rows), "out_specs": rows, "check_vma": False}
        forward = jit(jax.shard_map(ours.model.apply, mesh=mesh, **specs))
        params = jax.device_put(ours.params, NamedSharding(mesh, PartitionSpec()))
        return jax_forward(forward, params, jax.device_put(arrays, NamedSharding(mesh, rows)))

    return {
        **{form: torch_forward(form) for form in TORCH_FORMS},
        "usual Flax": jax_forward(jax.jit(UsualLeNet().apply), usual[0], arrays),
        "ours": jax_forward(jit(ours.model.apply), ours.params, arrays),
        "ours, cores as devices": cores_forward(),
    }
