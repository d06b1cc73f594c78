"""How many images per second does a training step take, against PyTorch and the usual Flax form?

Full steps (forward, cross-entropy, backward, adam) of the tutorial's network on the same batches,
and the forward pass alone. All rows of a batch size are timed in turn, round after round, so that
a machine whose speed drifts slows all alike: the ratios are taken within a round, and what is
printed is their median and quartiles. Our rows are compiled as `train_step` and `train_epoch` are,
with `lenet_jax.core.jit`; the usual form by JAX's defaults; PyTorch in four forms, its adam fused.
The batches are four of random pixels, in memory. "Cores as devices" is how
`python -m lenet_jax.train` runs: each core computes its part of a batch, or its networks, by
itself; a batch too small for that (`sharding.make_batch_mesh`) is computed on one device. The rows
of colour images, 3 channels, stand beside those of 1 channel in the same rounds, and are compared
by multiply-adds, too: the first convolution has three times as many.

    python experiments/throughput.py            # about 5 minutes on 2 cores
    python experiments/throughput.py --isa=avx2 # both sides held to AVX2
    python experiments/throughput.py --smoke    # one round of one small batch, nothing written

Writes results/throughput.{json,md,png}, or results/throughput_avx2.*.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch._inductor.config
import torch.nn.functional as F
from _figures import OURS, PYTORCH, USUAL_FLAX, label_ends
from _isa import VARIABLES, restart_with
from _results import path, write_json, write_markdown
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib import rc_context
from matplotlib.figure import Figure
from tqdm import tqdm
from tutorial_net import Net

from lenet_jax import LeNet, cli, create_train_state, make_optimizer, train_step, update
from lenet_jax.core.jit import jit
from lenet_jax.core.sharding import BATCH, MEMBERS, make_batch_mesh, make_member_mesh
from lenet_jax.viz.figures import STYLE

BATCH_SIZES = (16, 64, 256, 1024)
NUM_MEMBERS, MEMBER_BATCH = 8, 64
COLOUR_BATCH = 64
ROUNDS, SECONDS = 7, 0.2  # a measurement lasts at least so long
NUM_BATCHES = 4  # different ones, so that no cache sees the same pixels every step

# PyTorch's forms, each with Adam(fused=True): the layout of the memory, and whether it is compiled.
TORCH_FORMS = {
    "PyTorch eager, contiguous": (torch.contiguous_format, False),
    "PyTorch eager, channels-last": (torch.channels_last, False),
    "PyTorch torch.compile, contiguous": (torch.contiguous_format, True),
    "PyTorch torch.compile, channels-last": (torch.channels_last, True),
}

Row = Callable[[int], None]  # runs so many steps and waits for the last


class UsualLeNet(nn.Module):
    """The network as Flax's own examples write it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (6, 16):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


def make_batches(batch_size: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((NUM_BATCHES, batch_size, 32, 32, channels)).astype(np.float32)
    return images, rng.integers(0, 10, (NUM_BATCHES, batch_size)).astype(np.int32)


def torch_form(form: str, images: np.ndarray) -> tuple[Net, Callable, list[torch.Tensor]]:
    """The network, what computes its logits, and the batches in its layout."""
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


def usual_step(state: tuple, batch: dict) -> tuple:
    params, opt_state = state

    def loss_of(params: dict) -> jax.Array:
        logits = UsualLeNet().apply({"params": params}, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    grads = jax.grad(loss_of)(params)
    updates, opt_state = optax.adam(1e-3).update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state


def usual_state(key: jax.Array) -> tuple:
    params = UsualLeNet().init(key, jnp.zeros((1, 32, 32, 1)))["params"]
    return params, optax.adam(1e-3).init(params)


def our_state(key: jax.Array, channels: int = 1):
    return create_train_state(key, make_optimizer("adam"), LeNet(in_channels=channels))


def our_step(state, batch: dict):
    return update(state, batch)[0]


def stepwise_row(step: Callable, state, batches: dict) -> Row:
    """One jitted call a step, its state donated."""
    pieces = [jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in range(NUM_BATCHES)]
    box = [state]

    def run(steps: int) -> None:
        for i in range(steps):
            box[0] = step(box[0], pieces[i % NUM_BATCHES])
        jax.block_until_ready(box[0])

    return run


def scan_row(step: Callable, state, batches: dict, compile_with: Callable = jax.jit) -> Row:
    """All steps in one compiled function; their number is data, so that it compiles once."""

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
    """`scan_row` with the cores as devices, among which the specs divide state and batches."""

    def compile_with(f: Callable) -> Callable:
        specs = (state_spec, batch_spec, PartitionSpec())
        shared = {"mesh": mesh, "in_specs": specs, "out_specs": state_spec, "check_vma": False}
        return jit(jax.shard_map(f, **shared))

    state = jax.device_put(state, NamedSharding(mesh, state_spec))
    batches = jax.device_put(batches, NamedSharding(mesh, batch_spec))
    return scan_row(step, state, batches, compile_with)


def our_cores_row(batches: dict, batch_size: int) -> Row:
    """One network, whose batches the cores share."""
    step = lambda state, batch: update(state, batch, axis_name=BATCH)[0]
    mesh, batch_sharded = make_batch_mesh(batch_size), PartitionSpec(None, BATCH)
    state = our_state(jax.random.key(0), batches["image"].shape[-1])
    if mesh.size == 1:
        return scan_row(our_step, state, batches, jit)
    return cores_row(step, state, batches, mesh, PartitionSpec(), batch_sharded)


def torch_members_row(images: np.ndarray, labels: np.ndarray) -> Row:
    """NUM_MEMBERS networks by torch.func, with plain SGD for adam, which is to its advantage."""
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
    """Training on 3 channels, and of ours on 1."""
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


def multiply_adds(channels: int) -> int:
    """Of one image in a training step: forward, and once more for each gradient.

    The images' own gradient is not computed.
    """
    conv1 = 28 * 28 * 6 * 25 * channels
    others = 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    return 2 * conv1 + 3 * others


def colour_ratios(speeds: dict[str, list]) -> list[dict]:
    torch_names = [name for name in speeds if name.startswith("PyTorch")]
    ratios = []
    for ours in ("ours in a scan", "ours, cores as devices"):
        three, one = f"{ours}, 3 channels", f"{ours}, 1 channel"
        work = multiply_adds(3) / multiply_adds(1)
        ratios.append(ratio(speeds, three, torch_names))
        per_multiply_add = {three: [speed * work for speed in speeds[three]], one: speeds[one]}
        found = ratio(per_multiply_add, three, [one])
        ratios.append(found | {"ours": f"{three}, per multiply-add"})
    return ratios


def member_rows() -> dict[str, Row]:
    """NUM_MEMBERS networks, the same batches for all."""
    images, labels = make_batches(MEMBER_BATCH)
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
        "ours, one network, cores as devices": our_cores_row(batches, MEMBER_BATCH),
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


def measure(
    rows: dict[str, Row], images_per_step: dict[str, int], rounds: int, seconds: float = SECONDS
) -> dict[str, list]:
    """Images per second of each row in each round, the rows in turn."""
    steps = {}
    for name, run in rows.items():
        for _ in range(2):  # compile, then warm up
            run(1)
        started = time.perf_counter()
        run(1)
        steps[name] = max(1, round(seconds / (time.perf_counter() - started)))
    speeds: dict[str, list] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            started = time.perf_counter()
            run(steps[name])
            elapsed = time.perf_counter() - started
            speeds[name].append(steps[name] * images_per_step[name] / elapsed)
    return speeds


def ratio(speeds: dict[str, list], ours: str, theirs: list[str]) -> dict[str, float]:
    """Of `ours` to the best (by median) of `theirs`, round by round."""
    best = max(theirs, key=lambda name: statistics.median(speeds[name]))
    ratios = [a / b for a, b in zip(speeds[ours], speeds[best], strict=True)]
    low, median, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return {"ours": ours, "to": best, "median": median, "quartiles": [low, high]}


def training_ratios(speeds: dict[str, list]) -> list[dict]:
    torch_names = [name for name in speeds if name.startswith("PyTorch")]
    return [
        ratio(speeds, "ours, cores as devices", torch_names),
        ratio(speeds, "ours, cores as devices", ["usual Flax, in a scan"]),
        ratio(speeds, "ours, in a scan", torch_names),
        ratio(speeds, "ours, in a scan", ["usual Flax, in a scan"]),
        ratio(speeds, "ours, step by step", torch_names),
        ratio(speeds, "ours, step by step", ["usual Flax, step by step"]),
    ]


def speed_table(title: str, results: dict[str, dict[str, list]]) -> list[str]:
    names = dict.fromkeys(name for speeds in results.values() for name in speeds)
    lines = [f"| {title} | {' | '.join(results)} |", "|---|" + "--:|" * len(results)]
    for name in names:
        cells = [f"{statistics.median(speeds[name]):,.0f}" for speeds in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def ratio_table(ratios: dict[str, list[dict]]) -> list[str]:
    lines = ["| ratio | to | at | median | quartiles |", "|---|---|---|--:|---|"]
    for where, rows in ratios.items():
        for row in rows:
            low, high = row["quartiles"]
            lines.append(
                f"| {row['ours']} | {row['to']} | {where} | **{row['median']:.2f}** "
                f"| {low:.2f} to {high:.2f} |"
            )
    return [*lines, ""]


@rc_context(STYLE)
def draw(training: dict[str, dict[str, list]]) -> Figure:
    """Images per second over the batch size: PyTorch grey, ours in colour."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes, ends = figure.subplots(), []
    for row in next(iter(training.values())):
        speeds = [np.quantile(s[row], (0.25, 0.5, 0.75)) for s in training.values()]
        low, median, high = np.array(speeds).T
        colour = {"ours": OURS, "usua": USUAL_FLAX, "PyTo": PYTORCH}[row[:4]]
        axes.plot(BATCH_SIZES, median, marker="o", markersize=4, color=colour)
        axes.fill_between(BATCH_SIZES, low, high, color=colour, alpha=0.2, linewidth=0)
        ends.append((BATCH_SIZES[-1], median[-1], row, colour))
    axes.set(xscale="log", yscale="log", xlabel="batch size")
    axes.set_title("images per second in training, two CPU cores", loc="left")
    axes.set_xticks(BATCH_SIZES, [f"{size:,}" for size in BATCH_SIZES], minor=False)
    axes.set_xticks([], minor=True)
    ticks = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yticks([], minor=True)
    label_ends(axes, ends)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--isa", choices=VARIABLES)
    parser.add_argument("--smoke", action="store_true")
    isa, smoke = (flags := parser.parse_args()).isa, flags.smoke
    restart_with(isa)
    if isa == "avx2":
        torch._inductor.config.cpp.simdlen = 256
    cli.make_cores_devices()
    sizes, rounds = ((16,), 1) if smoke else (BATCH_SIZES, ROUNDS)
    training, inference, ratios = {}, {}, {}
    for size in tqdm(sizes, desc="training and inference", disable=None):
        rows = training_rows(size)
        training[f"batch {size}"] = speeds = measure(rows, dict.fromkeys(rows, size), rounds)
        ratios[f"training, batch {size}"] = training_ratios(speeds)
        rows = inference_rows(size)
        inference[f"batch {size}"] = speeds = measure(rows, dict.fromkeys(rows, size), rounds)
        names = [name for name in rows if not name.startswith("ours")]
        ratios[f"inference, batch {size}"] = [
            ratio(speeds, name, names) for name in rows if name.startswith("ours")
        ]
    rows = member_rows()
    images = {name: MEMBER_BATCH * (1 if "one network" in name else NUM_MEMBERS) for name in rows}
    members = measure(rows, images, rounds)
    at = f"{NUM_MEMBERS} networks, batch {MEMBER_BATCH}"
    ratios[at] = [
        ratio(members, ours, [name])
        for ours in ("ours, vmap in a scan", "ours, vmap, cores as devices")
        for name in rows
        if "ours, vmap" not in name
        and (not name.startswith("ours") or ("cores" in name) == ("cores" in ours))
    ]
    size = sizes[0] if smoke else COLOUR_BATCH
    rows = colour_rows(size)
    colour = measure(rows, dict.fromkeys(rows, size), rounds)
    ratios[f"training, batch {size}, colour"] = colour_ratios(colour)
    text = "\n".join(
        [
            *speed_table("training, images/s", training),
            *speed_table("training, images/s", {f"batch {size}": colour}),
            *speed_table("network-images/s", {at: members}),
            *speed_table("inference, images/s", inference),
            *ratio_table(ratios),
        ]
    )
    print(text)
    if not smoke:
        results = {
            "training": training,
            "colour": colour,
            "members": members,
            "inference": inference,
        }
        name = f"throughput_{isa}" if isa else "throughput"
        write_json(name, {**results, "ratios": ratios})
        write_markdown(name, text)
        draw(training).savefig(path(f"{name}.png"), dpi=150)


if __name__ == "__main__":
    main()
