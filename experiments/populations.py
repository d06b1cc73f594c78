"""How does the number of networks that train together affect the total speed?

Times `population.train_steps` for several numbers of networks in turn (adam, batch 64, each network
with its own order of the images), then the same with augmented images. All cores together compute a
single network, which shares its batches among them as `train` does; of several networks, each core
trains its own. Rounds in which a row is slow are repeated (see throughput.py).

On a GPU or TPU there are up to 1,024 networks, also with `_patches.conv_relu_pool_patches`, and
1,024 networks that see the same batches are trained to 99 % of MNIST's test images.

    python experiments/populations.py [--smoke]

Prints a table and writes it to results/populations.<device>.{json,md}; takes 5 minutes on 2 cores.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import _mnist
import _timed
import jax
import jax.numpy as jnp
import numpy as np
import time_to_accuracy as tta
from _patches import conv_relu_pool_patches
from _results import of_device, write_json, write_markdown, writes
from _throughput_page import ratio

from lenet_jax import LeNet, cli, create_train_state, data
from lenet_jax.core import epoch, metrics, population, seeds
from lenet_jax.core.population import MemberConfig
from lenet_jax.core.sharding import make_batch_mesh, make_member_mesh, replicate, shard

BATCH_SIZE, EXAMPLES = 64, 6400
# Numbers of networks, rounds, and updates of a measurement over all networks.
ON_CPU, ON_ACCELERATOR = ((1, 2, 4, 8, 16), 9, 480), ((1, 8, 64, 1024), 9, 8192)
SMOKE = ((1, 2), 2, 2)
PATCHES = LeNet(conv_relu_pool=conv_relu_pool_patches)


def one_network(split: data.Split, amount: float | None, model: LeNet) -> Callable[[int], None]:
    """Trains for so many steps; the devices share each batch, if there is more than one."""
    members = MemberConfig(0, 0, 1e-3, augment=amount)
    tx, loss_fn, prepare = population.named_recipe("adam")(members)
    key, mesh = seeds.epoch_key(0, 0), make_batch_mesh(BATCH_SIZE)
    state, shared = replicate(mesh, (create_train_state(0, tx, model), split))
    order = epoch.epoch_order(key, EXAMPLES, batch_size=BATCH_SIZE)
    box, kwargs = [state], {"key": key, "loss_fn": loss_fn, "prepare": prepare, "mesh": mesh}

    def run(steps: int) -> None:
        for start in range(0, steps, len(order)):
            stop = min(steps - start, len(order))
            box[0], _ = epoch.train_steps(box[0], shared, order, 0, stop, **kwargs)
        jax.block_until_ready(box[0])

    return run


def several(
    number: int, split: data.Split, amount: float | None, model: LeNet
) -> Callable[[int], None]:
    members = MemberConfig(np.arange(number), np.arange(number), 1e-3, augment=amount)
    make, mesh = population.named_recipe("adam"), make_member_mesh(number)
    orders = population.epoch_orders(members, 0, EXAMPLES, batch_size=BATCH_SIZE)
    box = [shard(mesh, population.create(members, make, model))]
    shared = replicate(mesh, split)
    train_steps = partial(population.train_steps, make=make, mesh=mesh)

    def run(steps: int) -> None:
        for start in range(0, steps, orders.shape[1]):
            stop = min(steps - start, orders.shape[1])
            box[0], _ = train_steps(box[0], members, shared, orders, 0, 0, stop)
        jax.block_until_ready(box[0])

    return run


def speeds_of(
    numbers: tuple[int, ...],
    rounds: int,
    updates: int,
    *,
    amount: float | None = None,
    model: LeNet | None = None,
) -> tuple[_timed.Speeds, list[dict[str, Any]]]:
    """Number of networks -> network-images per second, round by round; disturbed rounds."""
    images = jax.random.randint(jax.random.key(0), (EXAMPLES, 32, 32, 1), 0, 256).astype(jnp.uint8)
    split = data.Split(images, jnp.arange(EXAMPLES) % 10, 0.1307, 0.3081)
    model, rows = model or LeNet(), {}
    for number in numbers:
        row = one_network if number == 1 else partial(several, number)
        rows[str(number)] = row(split, amount, model)
        rows[str(number)](1)  # compiles
    steps = {name: max(1, updates // int(name)) for name in rows}
    images = {name: BATCH_SIZE * int(name) for name in rows}
    time_row = lambda name, steps: _timed.timed(rows[name], steps)
    return _timed.in_turn(time_row, steps, images, rounds)


def to_target(
    number: int, train: data.Split, test: data.Split, model: LeNet | None = None
) -> dict[str, Any]:
    """Seconds in which so many networks train, all compiled, and how many reach the target."""
    recipe = tta.SMALL_BATCHES  # fewer epochs and less memory; so many networks fill a GPU
    for first_seed in (number, 0):  # the first compiles
        members = MemberConfig(
            np.arange(number) + first_seed,
            learning_rate=recipe.learning_rate,
            label_smoothing=recipe.label_smoothing,
        )
        started = time.perf_counter()
        trained = population.train(
            members,
            train,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            slice_size=number,
            model=model,
        )
        seconds = time.perf_counter() - started
    logits = population.predict(trained.params, test, slice_size=min(number, 64))
    accuracies = np.asarray(jax.vmap(metrics.accuracy, (0, None))(logits, test.labels))
    return {
        "networks": number,
        "recipe": recipe._asdict(),
        "seconds": seconds,
        "reached": int((accuracies >= tta.TARGET).sum()),
        "mean accuracy": float(accuracies.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, see accelerator.py")
    smoke = parser.parse_args().smoke
    cli.start_jax(cache=False, cores_are_devices=True)
    on_cpu = jax.default_backend() == "cpu" and not smoke
    sizes = SMOKE if smoke else ON_CPU if on_cpu else ON_ACCELERATOR
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "augmented": {"amount": 1.0}}
    if not on_cpu:
        kinds["with patches"] = {"model": PATCHES}
    if smoke:
        kinds = {"with patches": kinds["with patches"]}
    found, disturbed = {}, {}
    for kind, options in kinds.items():
        found[kind], disturbed[kind] = speeds_of(*sizes, **options)
    lines = [
        "| networks | network-images/s | ratio to one | quartiles |",
        "|---|--:|--:|---|",
    ]
    for kind, speeds in found.items():
        for number in speeds:
            against = ratio(speeds, number, ["1"])
            low, high = against["quartiles"]
            lines.append(
                f"| {number}, {kind} | {np.median(speeds[number]):,.0f} | "
                f"**{against['median']:.2f}** | {low:.2f} to {high:.2f} |"
            )
    results: dict[str, Any] = {"speeds": found, "disturbed": disturbed}
    if not on_cpu:
        mnist = _mnist.load()
        number = 2 if smoke else 1024
        results["to target"] = reached = to_target(
            number, mnist.train, mnist.test, PATCHES if smoke else None
        )
        lines += [
            "",
            f"{reached['networks']:,} networks that see the same batches train in "
            f"{reached['seconds']:.1f} s (batch {reached['recipe']['batch_size']}, "
            f"{reached['recipe']['epochs']} epochs); {reached['reached']:,} of them read "
            f"{tta.TARGET:.0%} of the test images or more, on average "
            f"{reached['mean accuracy']:.2%}.",
        ]
    print("\n".join(lines))
    if writes(smoke):
        name = of_device("populations")
        write_json(name, results)
        write_markdown(name, "\n".join(lines))


if __name__ == "__main__":
    main()
